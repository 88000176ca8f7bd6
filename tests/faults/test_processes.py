"""Processes that die, hang or are told to stop: real ones, by real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.place import RESNET, TEAM, Place, left, points, same
from workers.tracking.client import TrackingClient

LONG = RESNET.replace("epochs: 3", "epochs: 20")


CANARY = "canary-7f3a9c51d2"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, dict[str, Any]]:
    """A sweep on Ray whose trainer of `a` was killed in its second epoch, with a secret in its environment."""
    place = Place(tmp_path_factory.mktemp("killed") / "p")
    secrets: dict[str, Any] = {"AWS_SECRET_ACCESS_KEY": CANARY, "MLFLOW_TRACKING_PASSWORD": CANARY}
    return place, place.sweep(fault="fit.step@a:30:kill", **secrets)


def test_a_trainer_killed_in_mid_epoch_goes_on_to_the_same_weights(
    killed: tuple[Place, dict[str, Any]], undisturbed: dict[str, Any]
) -> None:
    place, summary = killed
    assert place.happened() == ["fit.step@a:30:kill"]
    assert "a: retry" in place.said()
    same(summary, undisturbed)


def test_a_secret_of_the_environment_reaches_nothing(killed: tuple[Place, dict[str, Any]]) -> None:
    place, _ = killed
    files = [p for p in place.folder.rglob("*") if p.is_file()]
    assert len(files) > 20
    assert [p for p in files if CANARY.encode() in p.read_bytes()] == []


def test_more_kills_than_the_budget_fail_that_member_alone(place_of: Callable[[str], Place], undisturbed: dict[str, Any]) -> None:
    place = place_of(TEAM + "  - {name: c, seed: 9}\nretries: {errors: 1}\n")
    summary = place.sweep(fault="fit.step@c:3:kill", once=False, code=3)
    assert summary["state"] == "partial"
    assert summary["members"]["c"]["state"] == "failed"
    assert "(2 times)" in summary["members"]["c"]["reason"]
    assert summary["members"]["a"]["weights_sha256"] == undisturbed["members"]["a"]["weights_sha256"]
    again = place.sweep("--inline")
    assert again["trained"] == 1
    same(again, undisturbed)


def test_a_heartbeat_that_fails_is_asked_for_again(place_of: Callable[[str], Place]) -> None:
    """As when a busy machine leaves a call unanswered: without the next, nobody would see the training go on, or hang."""
    place = place_of(RESNET.replace("epochs: 3", "epochs: 40"))
    summary = place.sweep(fault="trainer.heartbeat@a:1:raise,trainer.heartbeat@b:1:raise")
    assert len(place.happened()) == 2
    assert summary["state"] == "done"
    assert "a: epoch" in place.said()
    assert "b: epoch" in place.said()


def test_a_trainer_told_to_end_loses_nothing(place_of: Callable[[str], Place]) -> None:
    """Ray lets a worker that is told to end finish what it does; either way the sweep is done, each point once."""
    place = place_of(LONG)
    process = place.start()
    place.wait_for("epoch")
    os.kill(place.trainer(), signal.SIGTERM)
    assert process.wait(timeout=240) == 0, place.said()
    summary = place.printed()
    assert summary["state"] == "done"
    assert {step for at in points(summary).values() for _, step in at} == set(range(21))


def test_a_trainer_whose_imports_hang_is_ended_and_its_job_goes_to_another(
    place_of: Callable[[str], Place], undisturbed: dict[str, Any]
) -> None:
    """As on a network disk that stopped answering. It has a machine, so it is not waiting for one."""
    place = place_of(TEAM + "heartbeat: {seconds: 5, stall_minutes: 0.3}\n")
    summary = place.sweep(fault="trainer.prepare:1:hang,trainer.prepare@:1:hang")
    assert len(place.happened()) == 2, "both trainers"
    assert "retry  hung: its imports took more than 0.3 minutes; the trainer was ended" in place.said()
    same(summary, undisturbed)


def test_a_stopped_trainer_and_one_without_a_step_are_ended_and_tried_again(
    place_of: Callable[[str], Place], undisturbed: dict[str, Any]
) -> None:
    place = place_of(TEAM + "heartbeat: {seconds: 5, stall_minutes: 0.3}\n")
    summary = place.sweep(fault="fit.step@a:30:stop,fit.step@b:30:hang")
    assert place.happened() == ["fit.step@a:30:stop", "fit.step@b:30:hang"]
    assert "a: retry  hung: no sign of life for 5 s" in place.said()
    assert "b: retry  hung: no step finished" in place.said()
    same(summary, undisturbed)


def test_the_driver_killed_leaves_no_process_and_the_next_sweep_goes_on(place: Place, undisturbed: dict[str, Any]) -> None:
    process = place.start(fault="fit.step@b:40:hang")
    place.wait_for("b: epoch")
    everybody = place.watch()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert left(everybody) == []
    summary = place.sweep("--inline")
    assert summary["trained"] <= 2
    same(summary, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_ends_in_order_and_goes_on(
    number: signal.Signals, place_of: Callable[[str], Place], undisturbed: dict[str, Any]
) -> None:
    place = place_of(RESNET.replace("epochs: 3", "epochs: 300"))
    process = place.start()
    place.wait_for("b: epoch")
    everybody = place.watch()
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=30) == 130, place.said()
    assert time.monotonic() - began < 15
    summary = place.printed()
    assert summary["state"] == "interrupted"
    client = TrackingClient(summary["tracking_uri"]).client
    runs = client.search_runs([client.get_run(summary["parent_run_id"]).info.experiment_id])
    assert {r.info.status for r in runs} == {"KILLED"}
    assert left(everybody) == []
    between = [p.name for member in "ab" for p in place.checkpoints(member) if not p.name.endswith("-00000000")]
    assert between, "asked to stop, a fit writes a checkpoint between two steps"


def test_three_interrupts_within_a_second_leave_no_run_running(place_of: Callable[[str], Place]) -> None:
    place = place_of(RESNET.replace("epochs: 3", "epochs: 300"))
    process = place.start()
    place.wait_for("b: epoch")
    everybody = place.watch()
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert process.wait(timeout=30) == 130, place.said()
    assert "Ctrl-C again stops at once" in place.said()
    assert "Traceback" not in place.said()
    client = TrackingClient(f"sqlite:///{place.home.absolute() / 'mlflow.db'}").client
    experiment = client.get_experiment_by_name("tiny")
    assert {r.info.status for r in client.search_runs([experiment.experiment_id])} == {"KILLED"}
    assert left(everybody) == []


def test_the_fusion_actor_killed_is_tried_again(place: Place, undisturbed: dict[str, Any]) -> None:
    summary = place.sweep(fault="fusion.fit:1:kill")
    assert place.happened() == ["fusion.fit:1:kill"]
    same(summary, undisturbed)


@pytest.mark.parametrize(
    "point",
    [
        *("export.onnx.half", "fusion.fit"),
        *(
            pytest.param(point, marks=pytest.mark.nightly)
            for point in ("export.half", "export.onnx.opened", "export.onnx.rename")
        ),
    ],
)
def test_killed_in_export_nothing_partial_is_visible_and_nothing_is_trained_again(
    point: str, place: Place, undisturbed: dict[str, Any]
) -> None:
    place.sweep("--inline", fault=f"{point}:1:kill", code=-signal.SIGKILL)
    assert place.happened() == [f"{point}:1:kill"]
    folder = place.home / "sweeps/tiny"
    assert not (folder / "fused.onnx").exists()
    assert not (folder / "summary.json").exists()
    summary = place.sweep("--inline")
    assert (summary["trained"], summary["reused"]) == (0, 2)
    same(summary, undisturbed)


def test_a_job_that_no_machine_can_hold_is_told_and_the_rest_go_on(place_of: Callable[[str], Place]) -> None:
    place = place_of(TEAM + "  - {name: huge, resources: {gpus: 8}}\n")
    summary = place.sweep(code=3)
    huge = summary["members"]["huge"]
    assert huge["state"] == "unschedulable"
    assert "asks for 8 GPUs and 1 CPUs" in huge["reason"]
    assert "there are machines with 0 GPUs" in huge["reason"]


def test_killed_for_memory_has_its_own_budget(place_of: Callable[[str], Place]) -> None:
    place = place_of(TEAM + "retries: {errors: 9, oom: 1}\n")
    summary = place.sweep(code=1, RAY_memory_usage_threshold="0.02", RAY_memory_monitor_refresh_ms="100")
    reasons = [member["reason"] for member in summary["members"].values() if member["reason"]]
    assert reasons
    assert all(reason.startswith("out of memory, ") and "(2 times)" in reason for reason in reasons), reasons


def test_out_of_device_memory_halves_the_micro_batch(place: Place) -> None:
    summary = place.sweep("--inline", fault="fit.step@a:30:oom")
    assert summary["state"] == "done"
    manifest = json.loads((place.fits()["a"] / "fit/manifest.json").read_text())
    assert manifest["micro_batch"] == 32
    assert manifest["resumed_from"] == 1


def test_a_nan_stops_that_member_without_another_try(place_of: Callable[[str], Place]) -> None:
    place = place_of(TEAM + "  - {name: c, seed: 9}\n")
    summary = place.sweep("--inline", fault="fit.step@c:30:nan", code=3)
    assert summary["members"]["c"]["state"] == "diverged"
    assert "epoch 2" in summary["members"]["c"]["reason"]


def test_two_sweeps_at_once_are_told_apart_and_a_dead_holders_lock_is_free(place: Place, undisturbed: dict[str, Any]) -> None:
    first = place.start("--inline", fault="fit.step@b:40:hang")
    until = time.monotonic() + 240
    while not place.happened() and time.monotonic() < until:
        time.sleep(0.1)
    second = place.beside(place.text)
    assert second.sweep("--inline", code=2) == {}
    assert f"running already (process {first.pid}" in second.said()
    first.kill()
    first.wait()
    same(place.sweep("--inline"), undisturbed)


def test_two_teams_with_the_same_members_train_each_once(place_of: Callable[[str], Place]) -> None:
    place = place_of(TEAM)
    (place.folder / "other.yaml").write_text(TEAM.replace("name: tiny", "name: other"))
    place.sweep("--inline")  # the store and the database are there; now both at once over a new member
    place.write(TEAM + "  - {name: c, seed: 9}\n")
    (place.folder / "other.yaml").write_text((place.folder / "team.yaml").read_text().replace("name: tiny", "name: other"))
    commands = [
        subprocess.Popen(
            [sys.executable, "-m", "conclave", "sweep", name, "--home", "home", "--inline", "--json"],
            cwd=place.folder,
            env=place.env(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for name in ("team.yaml", "other.yaml")
    ]
    summaries = [json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in commands]
    assert [s["state"] for s in summaries] == ["done", "done"]
    assert summaries[0]["members"]["c"]["weights_sha256"] == summaries[1]["members"]["c"]["weights_sha256"]
    assert len(list((place.home / "jobs").glob("*/fit/manifest.json"))) == 3


def test_a_machine_with_another_torch_is_refused_by_name_and_tolerated_with_a_note(place_of: Callable[[str], Place]) -> None:
    """Faked at the probe, in the trainers alone."""
    place = place_of(TEAM + "environment: strict\n")
    place.sweep(fault="environment.probe@a:1:other,environment.probe@b:1:other", code=1)  # whichever begins first
    assert "torch is 0.0.0, and " in place.said()
    assert not [name for name in place.fits() if (place.fits()[name] / "fit").exists()]
    place.write(TEAM + "environment: warn\n")
    place.sweep(fault="environment.probe@b:1:other", once=False)
    assert "torch is 0.0.0, and " in place.said()
