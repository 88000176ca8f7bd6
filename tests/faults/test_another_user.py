"""Another user of the machine: shut out of a running Ray, and at home in a shared home."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.another_user import NOBODY, needs_another_user, run_as_nobody
from tests.faults.place import TEAM, Place

# What a stranger tries with the folder of somebody's Ray, its sockets and its ports; prints what worked.
ATTACK = """
import json, os, socket, sys
folder, sockets, port = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
worked = []
def attempt(what, action):
    try:
        action()
    except Exception:
        return
    worked.append(what)
attempt("list", lambda: os.listdir(folder))
attempt("enter", lambda: os.chdir(folder))
attempt("move", lambda: os.rename(folder, folder + "x"))
attempt("write", lambda: open(os.path.join(folder, "x"), "w"))
attempt("read the token", lambda: open(os.path.join(folder, "token")).read())
for path in sockets:
    attempt(path, lambda: socket.socket(socket.AF_UNIX).connect(path))
from ray._raylet import GcsClient
attempt("the GCS", lambda: GcsClient(address=f"127.0.0.1:{port}").internal_kv_keys(b"", None, 5))
print(json.dumps(worked))
"""


@pytest.fixture
def open_place() -> Iterator[Place]:
    """A place that everybody can reach, in a folder of the group nogroup."""
    needs_another_user()
    folder = Path(tempfile.mkdtemp(prefix="conclave-shared-"))
    for path, mode in ((folder, 0o755), (folder / "p", 0o2775)):
        path.mkdir(exist_ok=True)
        os.chown(path, -1, NOBODY)
        path.chmod(mode)
    made = Place(folder / "p", prepared=False)
    yield made
    made.end()
    shutil.rmtree(folder)


def test_nothing_of_a_running_ray_is_open_to_another_user(open_place: Place) -> None:
    open_place.write(TEAM.replace("epochs: 3", "epochs: 100000"))
    open_place.start()
    open_place.wait_for("a: started")
    everybody = open_place.watch()
    token = next(Path(path) for process in everybody if (path := process.environ().get("RAY_AUTH_TOKEN_PATH")))
    sockets = [str(path) for path in token.parent.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
    gcs = next(process for process in everybody if process.name() == "gcs_server")
    listening = {
        connection.laddr
        for process in everybody
        for connection in _connections(process)
        if connection.status == psutil.CONN_LISTEN
    }
    assert {address.ip for address in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    ports = [connection.laddr.port for connection in _connections(gcs) if connection.status == psutil.CONN_LISTEN]
    assert len(sockets) >= 2, "of the raylet and of the object store"
    for port in ports:
        words = [sys.executable, "-c", ATTACK, str(token.parent), json.dumps(sockets), str(port)]
        done = run_as_nobody(words, Path("/tmp"), {"RAY_AUTH_MODE": "disabled"})
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == []
    harmless = open_place.folder / "harmless"  # in the folder's place: it is moved
    harmless.mkdir()
    words = [sys.executable, "-c", ATTACK, str(harmless), json.dumps(sockets), str(ports[0])]
    ours = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    done = subprocess.run(words, env=ours, capture_output=True, text=True, check=False)
    worked = json.loads(done.stdout.splitlines()[-1])
    assert {"list", "enter", "move", "the GCS", *sockets} <= set(worked), "each attempt works for whoever may"


def _connections(process: psutil.Process) -> list[Any]:
    try:
        return process.net_connections("inet")
    except psutil.Error:
        return []


def test_a_shared_home_works_for_two_users(open_place: Place) -> None:
    before = os.umask(0o002)
    try:
        mine = run_as_root(open_place)
    finally:
        os.umask(before)
    assert (mine["trained"], mine["reused"]) == (2, 0)
    open_place.write(TEAM + "  - {name: c, seed: 9}\n")
    words = [sys.executable, "-m", "conclave", "sweep", open_place.team.name, "--inline", "--json", "--home", "home"]
    done = run_as_nobody(words, open_place.folder, {"HOME": str(open_place.folder)})
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert (theirs["trained"], theirs["reused"], theirs["unsent"]) == (1, 2, 0)
    assert run_as_root(open_place)["reused"] == 3, "what the other one made is ours as well"


def run_as_root(place: Place) -> dict[str, object]:
    """Sweep in a process of its own, so that it takes this process's umask."""
    words = [sys.executable, "-m", "conclave", "sweep", place.team.name, "--inline", "--json", "--home", "home"]
    done = subprocess.run(words, cwd=place.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return summary
