"""Ray itself ends: the store of its state, its raylet, or one of the agents that the raylet does not outlive."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.cluster.private_folder import remove_abandoned
from tests.faults.place import TEAM, Place, left, same
from workers.diagnostics.waiting import wait_until

LOST = "conclave: Ray ended on this machine. What is finished is kept: run the same command again."
SEARCH = (
    TEAM.partition("members:")[0] + "members:\n  - {name: m, search: {trials: 2, epochs: 20000, grace: 20000, lr: [0.01, 0.3]}}\n"
)


def ended(place: Place, name: str) -> None:
    """End a process of the sweep's Ray by its name."""
    for process in place.watch():
        with contextlib.suppress(psutil.NoSuchProcess):  # one that has just ended, and is a zombie
            if process.name().startswith(name) or f"/{name}" in " ".join(process.cmdline()[:1]):
                process.kill()
                return
    raise AssertionError(f"no {name} was seen")


def folder_of(pid: int) -> Path:
    """The folder of a driver's Ray. Others are there too, of tests that run side by side."""
    [folder] = [path.parent for path in Path("/tmp").glob("clv-*/owner") if path.read_text().startswith(f"{pid}\n")]
    return folder


def test_a_local_ray_is_private_and_started_again_where_it_ends_while_training(place: Place, undisturbed: dict[str, Any]) -> None:
    process = place.start(fault="fit.step@b:40:hang")
    place.wait_for("b: epoch")
    folder = folder_of(process.pid)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.glob("r/session_*/sockets/raylet"))
    heard = {
        connection.laddr.ip.removeprefix("::ffff:")
        for running in place.watch()
        for connection in running.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert heard == {"127.0.0.1"}
    ended(place, "gcs_server")
    assert process.wait(timeout=180) == 0, place.said()
    assert "Traceback" not in place.said()
    assert "Ray ended on this machine and was started again" in place.said()
    same(place.printed(), undisturbed)
    assert wait_until(lambda: not folder.exists(), 20)


def test_a_raylet_that_ends_while_fusing_is_started_again_and_the_second_time_it_is_said(
    place_of: Callable[[str], Place], undisturbed: dict[str, Any]
) -> None:
    place = place_of(TEAM)
    process = place.start(fault="fusion.fit:1:hang", once=False)
    place.wait_for("fusing")
    until_fusing(place)
    ended(place, "raylet")
    place.wait_for("was started again")
    until_fusing(place)
    everybody = place.watch()
    began = time.monotonic()
    ended(place, "raylet")
    assert process.wait(timeout=60) == 1, place.said()
    assert time.monotonic() - began < 30
    assert place.said().splitlines()[-1] == LOST
    assert "Traceback" not in place.said()
    assert left(everybody) == []
    again = place.sweep("--inline")
    assert again["trained"] == 0
    same(again, undisturbed)


def test_what_a_driver_leaves_that_is_killed_with_its_reaper_is_ended_by_the_next_command(
    place_of: Callable[[str], Place],
) -> None:
    place = place_of(TEAM.replace("epochs: 3", "epochs: 100000"))
    process = place.start()
    place.wait_for("a: started")
    everybody = place.watch()
    [reaper] = [one for one in everybody if "reaper.py" in " ".join(one.cmdline()[:2])]
    reaper.kill()
    ended(place, "gcs_server")
    process.kill()
    process.wait(10)
    remove_abandoned()
    assert left(everybody) == []


def test_a_ray_that_ends_in_a_search_is_said_at_once(place_of: Callable[[str], Place]) -> None:
    """Ray would end the driver after a minute, with words of its own."""
    place = place_of(SEARCH)
    process = place.start()
    place.wait_for("m: searching")
    everybody = place.watch()
    assert wait_until(lambda: list((place.home / "searches").glob("*/search.json")), 240), place.said()
    ended(place, "gcs_server")
    assert process.wait(timeout=30) == 1, place.said()
    assert place.said().splitlines()[-1] == LOST
    assert "Traceback" not in place.said()
    assert left(everybody) == []


def until_fusing(place: Place) -> None:
    """Wait until the fusion actor is at work: it begins while the last trainings run, or just now where there was none."""
    place.wait_for("fusing 2 members")
    assert wait_until(lambda: bool(list(place.actors("FusionActor"))), 240), place.said()
    time.sleep(1)


def test_a_fusion_actor_that_hangs_is_tried_again(place_of: Callable[[str], Place], undisturbed: dict[str, Any]) -> None:
    """With a TMPDIR that is too long for sockets, and the folder of a driver that is gone."""
    place = place_of(TEAM + "heartbeat: {seconds: 6}\n")
    long = place.folder / ("temporary-" * 12)
    long.mkdir()
    abandoned = Path(f"/tmp/clv-abandoned-{os.getpid()}")
    abandoned.mkdir(mode=0o700)
    (abandoned / "owner").touch()
    summary = place.sweep(fault="fusion.fit:1:stop", TMPDIR=str(long))
    assert place.happened() == ["fusion.fit:1:stop"]
    same(summary, undisturbed)
    assert not abandoned.exists()


def test_a_machine_without_loopback_is_told_before_ray_starts(place: Place) -> None:
    """In a network of its own, as a bad sandbox makes it. Ray alone warns for minutes, and then gives up."""
    apart = ["unshare", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no process may have a network of its own here")
    place.write(TEAM)
    words = [*apart, sys.executable, "-m", "conclave", "sweep", "team.yaml", "--home", "home"]
    done = subprocess.run(words, cwd=place.folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "can't reach another at 127.0.0.1 (Network is unreachable)" in done.stderr
    assert "`ip link set lo up`" in done.stderr
    assert not (place.folder / "home").exists()
