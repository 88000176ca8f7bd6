"""The split of a store: stratified, whole, from the seed, and the same for all once it is kept."""

import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import FakeStore
from workers.config.specs import DataSpec
from workers.data.packing import pack_data
from workers.data.split_draw import Splitter
from workers.data.splits import Split, get_split, hold_out, keep_split, read_split
from workers.data.store import Store
from workers.errors import CorruptFileError, UserInputError

SPEC = DataSpec(folds=3)


def same(one: Split, two: Split) -> bool:
    return all(np.array_equal(getattr(one, part), getattr(two, part)) for part in ("fit", "fuse", "test", "folds"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return pack_data(SPEC, tmp_path)


def kept(store: Store) -> Path:
    [path] = (store.folder / "splits").glob("*.json")
    return path


def test_digits_are_the_real_ones_and_split_whole(store: Store) -> None:
    parts = get_split(store, SPEC, 0)
    rows = np.concatenate([parts.fit, parts.fuse, parts.test])
    assert len(store.labels) == 1797
    assert sorted(rows.tolist()) == list(range(1797))
    assert len(parts.test) == 360
    for part in (parts.fit, parts.fuse, parts.test):
        shares = np.bincount(store.labels[part]) / len(part)
        assert np.abs(shares - 0.1).max() < 0.02
    assert sorted(np.bincount(parts.folds)) == [431, 431, 431]


@pytest.mark.parametrize(
    ("seed", "keys", "expected"),
    [
        (0, {}, "3b5bdac8d941fa9dc1a5"),
        (1, {"folds": 2}, "e73cddc3eef88006732f"),
        (2, {"folds": 0, "fuse_fraction": 0.25, "test_fraction": 0.4}, "41894f0068a538195f98"),
    ],
)
def test_the_rows_are_split_as_version_0_2_split_them(store: Store, seed: int, keys: dict[str, Any], expected: str) -> None:
    split = get_split(store, DataSpec.model_validate(keys), seed)
    parts = [np.ascontiguousarray(part, dtype=np.int64).tobytes() for part in (split.fit, split.fuse, split.test, split.folds)]
    assert hashlib.sha256(b"".join(parts)).hexdigest()[:20] == expected


def test_another_seed_splits_otherwise_and_the_same_seed_the_same(store: Store) -> None:
    one, two, other = (get_split(store, SPEC, seed) for seed in (0, 0, 1))
    assert (one.fuse == two.fuse).all()
    assert (one.folds == two.folds).all()
    assert (one.fuse != other.fuse).any()


def test_more_folds_than_rows_of_a_class_are_rejected(store: Store) -> None:
    with pytest.raises(
        UserInputError, match=r"200 folds, but the largest class has 131 rows to fit\. Set data.folds to 131 or fewer"
    ):
        get_split(store, SPEC.model_copy(update={"folds": 200}), 0)
    assert not (store.folder / "splits").exists()


def test_a_kept_split_is_read_without_sklearn(store: Store, tmp_path: Path) -> None:
    made = keep_split(store, SPEC, 0, tmp_path)
    code = (
        "import sys; from pathlib import Path; from workers.data.packing import Store\n"
        "from workers.data.splits import read_split\n"
        f"parts = read_split(Store(Path({str(store.folder)!r})), {made.key!r})\n"
        "print(len(parts.fit), len(parts.fuse), len(parts.test), 'sklearn' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stdout.split() == [str(len(made.fit)), str(len(made.fuse)), str(len(made.test)), "False"], found.stderr
    assert same(read_split(store, made.key), made)
    assert same(made, get_split(store, SPEC, 0))


@pytest.mark.parametrize(
    "asked",
    [(SPEC, 1), *((SPEC.model_copy(update=u), 0) for u in ({"folds": 2}, {"fuse_fraction": 0.2}, {"test_fraction": 0.3}))],
)
def test_what_is_asked_otherwise_is_split_otherwise(asked: tuple[DataSpec, int], store: Store, tmp_path: Path) -> None:
    other = get_split(store, *asked)
    kept_split = keep_split(store, SPEC, 0, tmp_path)
    assert same(get_split(store, *asked, tmp_path), other)
    assert not same(kept_split, other)


def test_a_kept_split_holds_whatever_would_be_drawn_later(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by another version of scikit-learn: the trainings that are done were of these rows."""
    made = keep_split(store, SPEC, 0, tmp_path)
    for draw in ("set_apart", "folds"):
        monkeypatch.setattr(Splitter, draw, lambda *given: pytest.fail("drawn again"))
    assert same(get_split(store, SPEC, 0, tmp_path), made)


@pytest.mark.parametrize("damage", [b"", b"{}", b"no JSON"])
def test_kept_rows_that_are_damaged_are_named_and_written_again(damage: bytes, store: Store, tmp_path: Path) -> None:
    made = keep_split(store, SPEC, 0, tmp_path)
    kept(store).write_bytes(damage)
    with pytest.raises(CorruptFileError, match="damaged"):
        read_split(store, made.key)
    assert same(keep_split(store, SPEC, 0, tmp_path), made)
    assert same(read_split(store, made.key), made)


def test_a_flipped_byte_in_a_history_is_named(store: Store, tmp_path: Path) -> None:
    keep_split(store, SPEC, 0, tmp_path)
    [path] = (tmp_path / "splits").glob("*.json")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(CorruptFileError, match="draws a new split"):
        get_split(store, SPEC, 0, tmp_path)


def labelled_store(labels: list[int], tested: list[bool]) -> Store:
    """A store of these labels, without images. `tested` says which rows the data set keeps for the test."""
    names = [str(label) for label in range(max(labels) + 1)]
    rows = {"labels": np.array(labels), "tested": np.array(tested), "classes": names}
    return type("LabelledStore", (FakeStore,), rows)(Path("/nowhere"))


@settings(max_examples=40)
@given(
    per_class=st.lists(st.integers(12, 40), min_size=2, max_size=5),
    seed=st.integers(0, 10_000),
    folds=st.sampled_from([0, 2, 3]),
    fuse_fraction=st.floats(0.15, 0.4),
    has_test_rows=st.booleans(),
)
def test_the_parts_are_disjoint_and_leave_no_row_out(
    per_class: list[int], seed: int, folds: int, fuse_fraction: float, has_test_rows: bool
) -> None:
    labels = [label for label, count in enumerate(per_class) for _ in range(count)]
    tested = [has_test_rows and i % 5 == 0 for i in range(len(labels))]
    spec = DataSpec(folds=folds, fuse_fraction=fuse_fraction)
    split = get_split(labelled_store(labels, tested), spec, seed)
    rows = np.concatenate([split.fit, split.fuse, split.test])
    assert sorted(rows.tolist()) == list(range(len(labels))), "each row is in one part, and no row is in two"
    if has_test_rows:
        assert split.test.tolist() == np.flatnonzero(tested).tolist()
    assert set(split.folds.tolist()) == (set(range(folds)) if folds else {-1})
    for part in (split.fit, split.fuse, split.test):
        assert set(np.asarray(labels)[part].tolist()) == set(range(len(per_class))), "every class is in every part"


def test_rows_held_out_of_a_training_divide_no_group_and_are_the_same_each_time() -> None:
    labels, groups = np.arange(200) % 4, np.repeat(np.arange(40), 5)
    grouped: Any = SimpleNamespace(labels=labels, classes=list("abcd"), groups=groups)
    rows = np.arange(20, 200)
    remaining, held_out = hold_out(grouped, rows, 0.1, 7)
    assert sorted([*remaining, *held_out]) == rows.tolist()
    assert 10 <= len(held_out) <= 30
    assert not set(groups[remaining]) & set(groups[held_out])
    assert np.array_equal(hold_out(grouped, rows, 0.1, 7)[1], held_out)
    with pytest.raises(UserInputError, match="all images are of one group"):
        hold_out(SimpleNamespace(labels=labels, groups=np.zeros(200, int)), rows, 0.1, 7)  # type: ignore[arg-type]
