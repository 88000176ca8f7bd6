"""A search whose driver is killed: what was tried is not tried again, and its runs are nested in the sweep's."""

from __future__ import annotations

import contextlib
import json
import signal
import time

import psutil

from tests.faults.place import TEAM, Place, left
from workers.diagnostics.waiting import wait_until
from workers.tracking.client import TrackingClient

SEARCH = "search: {trials: 5, keep: 2, epochs: 3, lr: [0.001, 0.3], augment: {crop: [0.05, 0.3]}}"
TEXT = TEAM.replace("{name: a}", "{name: a, %s}" % SEARCH)  # noqa: UP031  # braces are YAML's
KEPT = ("choice", "state", "epochs")


def test_a_search_goes_on_after_its_driver_was_killed_and_its_best_are_members(place: Place) -> None:
    place.write(TEXT)
    process = place.start()
    place.wait_for(": done after 3 epochs", 240)
    everybody = place.watch()
    process.kill()
    process.wait()
    assert left(everybody) == []
    [file] = place.home.glob("searches/*/search.json")
    before = {n: t for n, t in json.loads(file.read_text())["trials"].items() if t["state"] != "running"}
    assert 1 <= len(before) < 5
    summary = place.sweep()
    after = json.loads(file.read_text())["trials"]
    assert {n: after[n] for n in before} == before, "what was tried is not tried again"
    assert sum(t["state"] in ("done", "stopped") for t in after.values()) == 5
    assert sorted(summary["members"]) == ["a-1", "a-2", "b"]
    assert summary["trained"] == 3
    _nested(summary["tracking_uri"], summary["parent_run_id"], after)
    spent = sum(e["seconds"] for t in after.values() for e in t["epochs"])
    details = json.loads((place.home / "sweeps/tiny/fusion.json").read_text())
    for name in ("a-1", "a-2"):
        paid = details["candidates"][name]["train_seconds"] - summary["members"][name]["train_seconds"]
        assert abs(paid - spent / 2) < 1e-6, "its share of the search"
    began = time.monotonic()
    assert place.sweep()["trained"] == 0
    assert time.monotonic() - began < 60
    assert "searching" not in place.said()


def test_a_trial_whose_process_dies_is_tried_again_and_its_traceback_is_for_the_log(place: Place) -> None:
    """Ray Tune would log it to the terminal."""
    long = "{trials: 2, epochs: 20000, grace: 20000, lr: [0.01, 0.3]}"
    place.write(TEAM.replace("{name: a}", f"{{name: a, search: {long}}}"))
    process = place.start()
    died: list[int] = []

    def killed() -> bool:
        for one in place.watch():
            with contextlib.suppress(psutil.Error):
                if "ImplicitFunc" in " ".join(one.cmdline()[:1]):
                    one.kill()
                    died.append(one.pid)
        return bool(died)

    assert wait_until(killed, 60), place.said()
    log = place.home / "sweeps" / "tiny" / "logs" / "driver.log"
    assert wait_until(lambda: log.is_file() and "ActorDiedError" in log.read_text(), 60), place.said()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130, place.said()
    assert "Traceback" not in place.said()
    assert "ActorDiedError" not in place.said()


def _nested(uri: str, parent: str, trials: dict[str, dict[str, object]]) -> None:
    client = TrackingClient(uri).client
    experiment = client.get_run(parent).info.experiment_id
    runs = client.search_runs([experiment], "tags.role = 'search'")
    [top] = [r for r in runs if r.data.tags["mlflow.parentRunId"] == parent]
    nested = {r.data.tags["signature"]: r for r in runs if r.data.tags["mlflow.parentRunId"] == top.info.run_id}
    assert set(nested) == set(trials)
    for name, run in nested.items():
        epochs = trials[name]["epochs"]
        assert isinstance(epochs, list)
        assert [p.value for p in client.get_metric_history(run.info.run_id, "stop/loss")] == [e["loss"] for e in epochs]
        assert "lr" in run.data.params
        assert run.info.status == "FINISHED"
