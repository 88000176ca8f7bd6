"""Disks that fill, files that rot, checkpoints that are cut off, and what is asked to be trained again."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fusion.export.onnx_export import load_model
from orchestrator import sweep as pipeline
from orchestrator.execution.ray_backend import inline_executor
from orchestrator.home import Home
from tests.factories import snapshot
from tests.faults.place import SMALL, TEAM, Place, begun, equal, points, rewrite, same, weights
from workers.errors import ConclaveError, CorruptFileError
from workers.storage.artifacts import MemberArtifact
from workers.storage.manifest import Manifest, read_manifest
from workers.training import trainer

THREE = TEAM + "  - {name: c, seed: 9}\n"
STAGES = ("opened", "half", "fsync", "rename", "manifest", "manifest.half", "manifest.rename", "publish")


@pytest.mark.parametrize("stage", STAGES)
def test_killed_while_a_checkpoint_is_written(stage: str, place: Place, whole: dict[str, Any]) -> None:
    fault = f"checkpoint.{stage}:{2 if stage in ('manifest', 'publish') else 3}:kill"
    place.fit(fault=fault, code=-signal.SIGKILL)
    assert place.happened() == [fault]
    equal(place.fit(), whole)


@pytest.mark.parametrize("point", ["artifact.half", "artifact.manifest", "artifact.publish"])
def test_killed_while_a_fit_is_published(point: str, place: Place, whole: dict[str, Any]) -> None:
    place.fit(fault=f"{point}:1:kill", code=-signal.SIGKILL)
    assert place.happened() == [f"{point}:1:kill"]
    assert not (place.job() / "fit").exists()
    again = place.fit()
    assert again["resumed_from"] == 3, "nothing is trained again"
    equal(again, whole)


@pytest.mark.parametrize(
    "point",
    [
        *("split.half", "artifact.published"),
        *(pytest.param(point, marks=pytest.mark.nightly) for point in ("checkpoint.half", "artifact.half", "export.onnx.half")),
    ],
)
def test_what_a_killed_process_left_behind_is_removed_by_the_next(point: str, place: Place) -> None:
    place.sweep("--inline", fault=f"{point}:1:kill", code=-signal.SIGKILL)
    assert begun(place.home)
    place.sweep("--inline")
    assert begun(place.home) == []


def test_killed_while_metrics_are_sent(place: Place, undisturbed: dict[str, Any]) -> None:
    place.sweep("--inline", fault="outbox.sent:1:kill", code=-signal.SIGKILL)
    assert place.happened() == ["outbox.sent:1:kill"]
    same(place.sweep("--inline"), undisturbed)


def test_a_checkpoint_that_finds_no_room_does_not_end_the_fit(place: Place, whole: dict[str, Any]) -> None:
    result = place.fit(fault="checkpoint.half:2:disk-full")
    assert place.happened() == ["checkpoint.half:2:disk-full"]
    assert "could not be written (No space left on device)" in result["notes"][0]
    equal(result, whole)


def _cut_off(place: Place) -> None:
    """A sweep killed in the third epoch of `a`: two checkpoints are there."""
    place.sweep("--inline", fault="fit.step@a:52:kill", code=-signal.SIGKILL)
    assert len(place.checkpoints("a")) == 2


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("damage", [_flip, _truncate, Path.unlink])
@pytest.mark.parametrize("file", ["network.safetensors", "optimizer.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: Callable[[Path], None], file: str, place: Place, whole: dict[str, Any]
) -> None:
    place.fit(fault="fit.step:52:kill", code=-signal.SIGKILL)
    checkpoints = sorted((place.job() / "checkpoint").glob("[0-9]*"))
    assert len(checkpoints) == 2
    damage(checkpoints[-1] / file)
    result = place.fit()
    assert result["resumed_from"] == 1
    assert file == "manifest.json" or file in result["notes"][0]
    equal(result, whole)


def test_all_checkpoints_bad_fails_that_member_and_never_starts_it_afresh_in_silence(
    place_of: Callable[[str], Place], undisturbed: dict[str, Any]
) -> None:
    place = place_of(THREE)
    _cut_off(place)
    bad = [folder / "network.safetensors" for folder in place.checkpoints("a")]
    for path in bad:
        _flip(path)
    summary = place.sweep("--inline", code=3)
    assert summary["members"]["a"]["state"] == "failed"
    for path in bad:
        assert str(path) in summary["members"]["a"]["reason"]
    again = place.sweep("--inline", "--restart", "a")
    assert again["trained"] == 1
    same(again, undisturbed)


def test_a_checkpoint_of_another_fit_is_refused(place_of: Callable[[str], Place]) -> None:
    place = place_of(THREE)
    _cut_off(place)
    for folder in place.checkpoints("a"):
        rewrite(folder, owner="somebody")
    assert "belongs to another training (somebody)" in place.sweep("--inline", code=3)["members"]["a"]["reason"]


@pytest.mark.parametrize("change", [{"step": 4}, {"epoch": 1}, {"micro_batch": 10}])
def test_a_manifest_that_says_something_else_is_noticed(change: dict[str, int], place: Place, whole: dict[str, Any]) -> None:
    """A number that was changed is still JSON. Where somebody made its checksum right, the folder's name tells."""
    place.fit(fault="fit.step:52:kill", code=-signal.SIGKILL)
    last = max((place.job() / "checkpoint").glob("[0-9]*"))
    written = json.loads((last / "manifest.json").read_text())
    assert written[next(iter(change))] != next(iter(change.values()))
    if "micro_batch" in change:
        (last / "manifest.json").write_text(json.dumps({**written, **change}))
    else:
        rewrite(last, **change)
    result = place.fit()
    assert result["resumed_from"] == 1
    equal(result, whole)


def test_a_checkpoint_of_another_architecture_is_refused(place_of: Callable[[str], Place]) -> None:
    place, wide = place_of(THREE), place_of(THREE.replace("small:Small", "small:Wide"))
    _cut_off(place)
    _cut_off(wide)
    owner = place.fits()["a"].name
    for ours, theirs in zip(place.checkpoints("a"), wide.checkpoints("a"), strict=True):
        shutil.rmtree(ours)
        shutil.copytree(theirs, ours)
        rewrite(ours, owner=owner)
    assert "not a checkpoint of this network" in place.sweep("--inline", code=3)["members"]["a"]["reason"]


def test_restart_trains_one_member_afresh(place: Place, undisturbed: dict[str, Any]) -> None:
    place.sweep("--inline")
    again = place.sweep("--inline", "--restart", "b")
    assert (again["trained"], again["reused"]) == (1, 1)
    same(again, undisturbed)
    before = snapshot(place.folder / "home/jobs")
    place.sweep("--inline", "--restart", "nobody", code=2)
    assert "--restart nobody: no such member; there are a, b." in place.said()
    assert snapshot(place.folder / "home/jobs") == before


def test_what_changed_between_two_runs_is_told(place: Place) -> None:
    place.sweep("--inline")
    place.write(TEAM.replace("{name: b, seed: 5}", "{name: b, seed: 6}").replace("fusion: [vote]", "fusion: [vote, weighted]"))
    summary = place.sweep("--inline")
    assert (summary["trained"], summary["reused"]) == (1, 1)
    assert "changed since the last run: members.b.seed: 5 -> 6" in place.said()
    assert 'changed since the last run: fusion: ["vote"] -> ["vote", "weighted"]' in place.said()


needs_mount = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs, which needs root; runs in CI, which is root")


@pytest.fixture
def small(place: Place) -> Iterator[Callable[[str, str], Path]]:
    """Mounts a tmpfs over a folder of the home."""
    mounted: list[Path] = []

    def mount(name: str, options: str) -> Path:
        folder = place.home / name
        folder.mkdir(parents=True)
        found = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
        )
        if found.returncode:
            pytest.skip(f"this machine lets nobody mount ({found.stderr.strip()}); runs wherever root may")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


@needs_mount
def test_a_full_disk_under_the_checkpoints(place: Place, small: Callable[[str, str], Path], undisturbed: dict[str, Any]) -> None:
    folder = small("jobs", "size=200k")
    summary = place.sweep("--inline", code=1)
    assert "No space left on device" in summary["members"]["a"]["reason"]
    assert not list(folder.glob("*/fit"))
    _remount(folder, "size=50m")
    same(place.sweep("--inline"), undisturbed)


@needs_mount
def test_a_full_disk_under_the_export(place: Place, small: Callable[[str, str], Path], undisturbed: dict[str, Any]) -> None:
    folder = small("sweeps", "size=400k")
    process = place.start("--inline")
    assert process.wait(timeout=300) == 1, place.said()
    assert "there is no room left on the disk" in place.said()
    assert not (folder / "tiny/fused.onnx").exists()
    _remount(folder, "size=50m")
    summary = place.sweep("--inline")
    assert summary["trained"] == 0
    same(summary, undisturbed)


@needs_mount
def test_a_home_that_can_only_be_read_is_refused(place: Place, small: Callable[[str, str], Path]) -> None:
    small("", "ro,size=1m")
    place.sweep("--inline", code=2)
    assert "can't be written" in place.said() or "can be written to" in place.said()


def test_a_home_that_is_deleted_in_mid_sweep_is_said(place_of: Callable[[str], Place]) -> None:
    place = place_of(TEAM.replace("epochs: 3", "epochs: 3000"))
    process = place.start("--inline")
    place.wait_for("a: started")
    for _ in range(20):  # a trainer that writes meanwhile makes some folders again
        shutil.rmtree(place.home, ignore_errors=True)
    assert process.wait(timeout=60) == 1, place.said()
    assert "Traceback" not in place.said()
    assert any("home/" in line and ("is gone" in line or "No such file" in line) for line in place.said().splitlines())


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("pwned", "w")


def test_a_pickle_in_the_place_of_weights_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its checksum made right, as somebody who wants in would do."""
    place.sweep("--inline")
    monkeypatch.chdir(place.folder)
    evil = pickle.dumps({"w": Evil()})
    fit = place.fits()["a"] / "fit"
    for name in ("weights", "outputs"):
        (fit / f"{name}.safetensors").write_bytes(evil)
        files = {**read_manifest(fit, Manifest).files, f"{name}.safetensors": hashlib.sha256(evil).hexdigest()}
        rewrite(fit, files=files)
    with pytest.raises(CorruptFileError):
        MemberArtifact(fit.parent).weights()
    with pytest.raises(CorruptFileError):
        MemberArtifact(fit.parent).outputs()
    model = place.home / "sweeps/tiny/fused.onnx"
    model.with_suffix(".safetensors").write_bytes(evil)
    with pytest.raises(ConclaveError):
        load_model(model)
    assert not (place.folder / "pwned").exists()


def test_malicious_member_weights_are_refused_by_the_command(place: Place) -> None:
    import torch

    torch.save({"conv1.weight": Evil()}, place.folder / "w.pt")
    place.write(TEAM.replace("{name: a}", "{name: a, weights: w.pt}"))
    place.sweep("--inline", code=2)
    assert "plain state dict" in place.said()
    assert not (place.folder / "pwned").exists()
    assert not place.home.exists()


def test_a_clock_set_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Any]) -> None:
    now = [2e9]

    class Backwards:
        def __getattr__(self, name: str) -> Any:
            return getattr(__import__("time"), name)

        def time(self) -> float:
            now[0] -= 3600
            return now[0]

    monkeypatch.setattr(trainer, "time", Backwards())
    monkeypatch.setattr("workers.tracking.job_run.time", Backwards())
    (tmp_path / "team.yaml").write_text(TEAM)
    (tmp_path / "small.py").write_text(SMALL)
    result = pipeline.run_sweep(tmp_path / "team.yaml", pipeline.SweepOptions(Home(tmp_path / "home"), inline_executor))
    assert weights(result.summary) == weights(undisturbed)
    assert points(result.summary) == points(undisturbed)
    assert all(member.train_seconds >= 0 for member in result.summary.members.values())
