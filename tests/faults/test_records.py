"""Records of a home that are damaged, blocked or shared, and a terminal that hangs up."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.tracking.store import TRACKING_URI
from tests.faults.place import TEAM, Place, same, weights

SECRET = "hunter2-5f1c"


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_a_folder_in_the_place_of_a_file_is_named_on_every_command(place: Place) -> None:
    for name in ("sweep.json", "summary.json"):
        (place.home / "sweeps" / "tiny" / name).mkdir(parents=True)
    for words in ("status tiny", "report tiny", "export tiny --method vote", "sweep team.yaml --inline"):
        place.command(*words.split(), "--home", "home", code=1)
        assert "there is a folder in the place of this file. Move it elsewhere" in place.said().splitlines()[-1]


def test_damaged_records_are_made_again_with_a_line_and_nothing_is_trained_again(place: Place) -> None:
    first = place.sweep("--inline")
    sweep = place.home / "sweeps" / "tiny"
    for name, content in (
        ("sweep.json", "[]"),
        ("summary.json", '{"version": 1'),
        ("fusion.json", "garbage \xff"),
        ("spending.json", "{}"),
    ):
        (sweep / name).write_text(content, encoding="latin-1")
    place.command("report", "tiny", "--home", "home", code=1)
    assert "no training is lost" in place.said()
    again = place.sweep("--inline")
    assert place.said().count("was damaged and is made again") == 4
    assert (again["trained"], again["parent_run_id"]) == (0, first["parent_run_id"])
    same(again, first)
    record = json.loads((sweep / "summary.json").read_text())
    record["recommended"] = "another"
    (sweep / "summary.json").write_text(json.dumps(record))
    place.command("report", "tiny", "--home", "home", code=1)
    assert "its checksum does not fit" in place.said()


def test_a_store_that_was_damaged_gives_the_same_weights(place_of: Callable[[str], Place], undisturbed: dict[str, Any]) -> None:
    place = place_of(TEAM)
    place.fit()
    [store] = (place.home / "data").iterdir()
    (store / "images.npy").write_bytes(flip((store / "images.npy").read_bytes()))
    summary = place.sweep("--inline")
    assert f"{store.name}/images.npy is damaged: the data is packed again" in place.said()
    assert weights(summary) == weights(undisturbed)
    (store / "labels.npy").write_bytes(flip((store / "labels.npy").read_bytes()))
    place.command("export", "tiny", "--method", "vote", "--home", "home", code=1)
    assert "labels.npy: damaged. `conclave sweep` packs the data again" in place.said()


def test_hanging_up_ends_as_an_interrupt_does(place_of: Callable[[str], Place]) -> None:
    place = place_of(TEAM.replace("epochs: 3", "epochs: 90000"))
    process = place.start("--inline")
    place.wait_for("a: started")
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 130, place.said()


@pytest.mark.parametrize("kind", ["full", "terminal"])
def test_a_screen_that_takes_no_more_ends_no_sweep(kind: str, place: Place) -> None:
    """As after `disown`, or an ssh that closed: the terminal is gone, and nobody hangs up."""
    master, slave = os.openpty()
    screen = slave if kind == "terminal" else os.open("/dev/full", os.O_WRONLY)
    words = [sys.executable, "-m", "conclave", "sweep", "team.yaml", "--inline", "--home", "home"]
    process = subprocess.Popen(words, cwd=place.folder, stdout=screen, stderr=screen, stdin=subprocess.DEVNULL)
    os.close(slave)
    if kind == "terminal":
        os.read(master, 20)
    os.close(master)
    process.wait(timeout=300)
    summary = json.loads((place.home / "sweeps" / "tiny" / "summary.json").read_text())
    assert summary["state"] == "done"
    assert (place.home / "sweeps" / "tiny" / "fused.onnx").is_file()
    assert process.returncode in (0, 1), "1 where the table found no place"


def test_a_shared_home_is_open_to_whom_the_umask_lets_in(place: Place) -> None:
    place.home.mkdir()
    place.home.chmod(0o2775)
    words = f"umask 002; exec {sys.executable} -m conclave sweep team.yaml --inline --home home"
    done = subprocess.run(["sh", "-c", words], cwd=place.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    closed = [
        f"{path.relative_to(place.folder)} {stat.filemode(path.stat().st_mode)}"
        for path in place.home.rglob("*")
        if not path.stat().st_mode & stat.S_IWGRP or (path.is_dir() and not path.stat().st_mode & stat.S_ISGID)
    ]
    assert closed == []


def test_a_password_reaches_no_file_and_no_message(place_of: Callable[[str], Place]) -> None:
    place = place_of(TEAM + "tracking: {required: false}\n")
    account = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": SECRET}
    place.sweep("--inline", code=2, **{TRACKING_URI: f"http://ann:{SECRET}@127.0.0.1:9"})
    assert "CONCLAVE_TRACKING_URI: it holds a password" in place.said()
    place.sweep("--inline", code=0, **account, **{TRACKING_URI: "http://127.0.0.1:9"})
    assert "CONCLAVE_TRACKING_URI: http://127.0.0.1:9 doesn't answer" in place.said()
    files = [path for path in place.folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("name", ["tested.npy", "labels.npy", "store.json"])
def test_a_packed_file_that_is_gone_is_made_again(name: str, place: Place, undisturbed: dict[str, Any]) -> None:
    place.sweep("--inline")
    next(place.home.glob(f"data/*/{name}")).unlink()
    again = place.sweep("--inline")
    assert again["trained"] == 0
    same(again, undisturbed)
    assert next(place.home.glob(f"data/*/{name}")).is_file()
