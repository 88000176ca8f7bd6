"""The notice that a spot machine is taken away: read from a local stand-in for the provider's, and obeyed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.nodes import Nodes, tree
from tests.faults.place import TEAM, Place, same
from workers.diagnostics.waiting import wait_until
from workers.runtime import preemption as notice

LONG = TEAM.replace("epochs: 3", "epochs: 6").replace("  - {name: b, seed: 5}\n", "") + "retries: {errors: 0}\n"


class Provider(ThreadingHTTPServer):
    """EC2's metadata service, as far as it matters here: a token is needed, and there is no notice until there is one."""

    notice: Any = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: Provider

    def do_PUT(self) -> None:
        wanted = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self._answer(*((200, "secret") if wanted else (400, "")))

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != "secret":
            self._answer(401, "")
        elif self.path != "/latest/meta-data/spot/instance-action" or self.server.notice is None:
            self._answer(404, "")
        else:
            self._answer(200, json.dumps(self.server.notice))

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider(("127.0.0.1", 0), _Answers)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def _in(seconds: int) -> dict[str, str]:
    return {"action": "terminate", "time": (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")}


def test_the_notice_tells_how_long_there_is(provider: Provider) -> None:
    assert notice.seconds_left(provider.address) is None
    provider.notice = _in(100)
    left = notice.seconds_left(provider.address)
    assert left is not None
    assert 95 <= left <= 100
    provider.notice = _in(-50)
    assert notice.seconds_left(provider.address) == 0
    provider.notice = {"action": "stop"}
    assert notice.seconds_left(provider.address) == notice.WARNING_SECONDS


def test_a_machine_with_a_notice_is_left_before_it_goes(provider: Provider, tmp_path: Path) -> None:
    reference = Place(tmp_path / "undisturbed", LONG).sweep("--inline")
    place = Place(tmp_path / "p", LONG)
    nodes = Nodes(place.env(fault="fit.step@a:60:stop"))  # in its third epoch, until it is told to go on
    try:
        ids = ["a" * 56, "b" * 56]
        machines = {node: nodes.add(node=node) for node in ids}
        process = place.start("--address", nodes.address, **nodes.env)
        assert wait_until(place.happened, 300), place.said()
        [taken] = [node for node, machine in machines.items() if _trains(machine.pid)]
        provider.notice = _in(60)
        command = [sys.executable, "-m", "workers.runtime.preemption", "--address", provider.address, "--node-id", taken]
        callback = subprocess.run(command, env=place.env(RAY_ADDRESS=nodes.address, **nodes.env), timeout=240, check=False)
        assert callback.returncode == 0
        os.kill(int((place.folder / "faults" / place.happened()[0]).read_text()), signal.SIGCONT)
        place.wait_for("a: retry  its machine is being taken away", 180)
        assert place.checkpoints("a"), "from which it goes on"
        nodes.remove(machines[taken])
        assert process.wait(timeout=400) == 0, place.said()
        same(place.printed(), reference, ("a",))
        assert "went away" not in place.said()
        [manifest] = [json.loads(p.read_text()) for p in place.home.glob("jobs/*/fit/manifest.json")]
        assert manifest["resumed_from"] > 0
    finally:
        place.end()
        nodes.end()


def _trains(pid: int) -> bool:
    """Whether a trainer is at work on this machine."""
    for process in tree(pid):
        with contextlib.suppress(psutil.Error):  # which ended meanwhile
            if "ray::TrainerActor" in " ".join(process.cmdline()):
                return True
    return False
