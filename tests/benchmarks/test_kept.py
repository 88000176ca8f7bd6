"""What is kept of trainings comes back as it was, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.kept import load_small, save_small


def test_arrays_come_back_as_they_were_and_halves_take_less_room(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(4000, 10)).astype(np.float16)
    arrays = {
        "logits": logits,
        "turned": logits[::-1].T,
        "nothing": logits[:0],
        "record": '{"epochs": 3}',
        "penalty": 0.5,
        "rows": np.arange(7, dtype=np.int32),
    }
    save_small(tmp_path / "kept.npz", arrays)
    loaded = load_small(tmp_path / "kept.npz")
    assert sorted(loaded) == sorted(arrays)
    for name, values in arrays.items():
        expected = np.asarray(values)
        assert (loaded[name].dtype, loaded[name].shape) == (expected.dtype, expected.shape)
        assert loaded[name].tobytes() == expected.tobytes()
    np.savez_compressed(tmp_path / "usual.npz", logits=logits)
    save_small(tmp_path / "small.npz", {"logits": logits})
    assert (tmp_path / "small.npz").stat().st_size < 0.95 * (tmp_path / "usual.npz").stat().st_size
