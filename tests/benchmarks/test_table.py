"""The accuracy table: what is kept of a fit is what the fusions would have read from its artifact."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import table
from benchmarks.kept import KeptFits
from fusion.predictions import TrainingFolders, load_predictions
from tests.factories import TEAM


def test_kept_outputs_are_those_of_the_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "team.yaml").write_text(TEAM)
    for name, path in (("TEAM", "team.yaml"), ("HERE", ""), ("HOME", "home")):
        monkeypatch.setattr(table, name, tmp_path / path)
    monkeypatch.setattr(table, "KEPT", KeptFits(tmp_path / "results/table"))
    monkeypatch.delenv("CONCLAVE_CIFAR10", raising=False)
    made, parts = table.planned()
    assert not any(map(table.KEPT.has, made.members))
    for job in made.jobs:
        table.fit(job.label)
    assert all(map(table.KEPT.has, made.members))
    (tmp_path / "results/table-cost.json").write_text(json.dumps({"result": {"seconds_an_image": {"a": 1e-3, "b": 3e-3}}}))
    ours, seconds = table.gathered()
    roots = {one.label: one.artifact.root for one in made.members}
    folds = {name: [roots[f"{name} fold {k}"] for k in (0, 1)] for name in "ab"}
    full = {name: roots[name] for name in "ab"}
    theirs = load_predictions(TrainingFolders(full, folds), made.store, parts)
    assert (ours.names, ours.classes) == (theirs.names, theirs.classes)
    for mine, other in ((ours.inputs.fuse, theirs.inputs.fuse), (ours.test, theirs.test)):
        assert np.allclose(mine.logits, other.logits, rtol=1e-3, atol=1e-3), "float16"
        assert mine.folds is not None
        assert other.folds is not None
        assert np.allclose(mine.folds, other.folds, rtol=1e-3, atol=1e-3)
        assert np.array_equal(mine.labels, other.labels)
    assert ours.inputs.oof is not None
    assert theirs.inputs.oof is not None
    assert np.allclose(ours.inputs.oof.logits, theirs.inputs.oof.logits, rtol=1e-3, atol=1e-3)
    images = len(parts.fit)
    assert seconds["b"].full == pytest.approx(3e-3 * images * 2)
    assert sum(seconds["a"].folds) == pytest.approx(1e-3 * images * 2), "two fits on one half each"


def test_the_kept_outputs_are_gathered_with_their_costs() -> None:
    found, seconds = table.gathered()
    assert found.names == ("plain", "adamw", "color")
    assert found.test.student is not None
    assert found.test.student.shape == (10_000, 10)
    assert set(seconds) == {*found.names, "student"}
    assert len(seconds["plain"].folds) == 3
    assert sum(seconds["plain"].folds) == pytest.approx(seconds["plain"].full * 3 * 2 / 3 * 12 / 60, rel=0.01)
    assert seconds["student"].full > 0
    assert seconds["student"].folds == ()
