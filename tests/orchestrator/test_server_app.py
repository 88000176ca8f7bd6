"""What guards the tracking server: guesses are slowed down, and no folder of the server can be named as a place of artifacts."""

from __future__ import annotations

import asyncio
import base64
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.tracking.guesses import FREE, LONGEST, GuessLimiter
from orchestrator.tracking.server import Server
from orchestrator.tracking.server_app import PasswordGate, find_locations

RUNS = "/api/2.0/mlflow/runs/search"


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Served:
    """A gate before an app that counts its requests; its right password is `right`."""

    clock: Clock = field(default_factory=Clock)
    reached: int = 0
    looked_at: int = 0

    def __post_init__(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            self.reached += 1
            await send({"type": "http.response.start", "status": 200, "headers": []})

        def is_right(account: str, password: str) -> bool:
            self.looked_at += 1
            return (account, password) == ("admin", "right")

        self.gate = PasswordGate(app, is_right, lambda host: host == "lab:5000", GuessLimiter(self.clock))

    def ask(self, path: str, password: str | None = None, address: str = "10.0.0.7", host: str = "lab:5000") -> int:
        given = base64.b64encode(f"admin:{password}".encode())
        headers = [(b"host", host.encode()), *([] if password is None else [(b"authorization", b"Basic " + given)])]
        scope = {"type": "http", "path": path, "headers": headers, "client": (address, 1234)}
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        asyncio.run(self.gate(scope, None, send))
        return int(sent[0]["status"])


@pytest.mark.parametrize(("cores", "workers"), [(1, "1"), (2, "2"), (64, "4")])
def test_a_server_has_a_worker_a_core_and_at_most_four(
    cores: int, workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    words = Server(tmp_path, "127.0.0.1", 5000, None).command()
    assert words[words.index("--workers") + 1] == workers


def test_wrong_passwords_are_slowed_down_and_right_ones_are_not() -> None:
    served = Served()
    assert served.ask(RUNS, "right") == 200
    assert [served.ask(RUNS, f"guess{i}") for i in range(FREE + 3)] == [401] * FREE + [429] * 3
    assert served.looked_at == 1 + FREE, "a guess that comes too early is not looked at"
    assert served.ask(RUNS, "right") == 200, "whoever is known goes on"
    served.gate._right = dict.fromkeys(served.gate._right, 0.0)  # a minute later
    assert served.ask(RUNS, "right") == 200
    assert served.looked_at == 2 + FREE
    assert served.ask(RUNS, "guess", address="10.0.0.8") == 401, "another address has its own count"
    guesses = 0
    for _ in range(3600):
        served.clock.now += 1
        guesses += served.ask(RUNS, "guess") == 401
    assert 50 < guesses <= 70, "about one a minute"


@pytest.mark.parametrize("path", ["/static/main.js", "/health", RUNS])
def test_no_path_makes_a_guess_known_or_free(path: str) -> None:
    served = Served()
    assert [served.ask(path, f"guess{i}") for i in range(FREE)] == [401] * FREE
    assert served.ask(path, "guess0") == 429


@pytest.mark.parametrize("path", ["/health", "/api/3.0/mlflow/server-info", "/ajax-api/3.0/mlflow/server-info"])
def test_what_mlflow_shows_to_everybody_wants_the_password(path: str) -> None:
    served = Served()
    assert served.ask(path) == 401
    assert served.ask(path, "right", host="evil.example") == 403
    assert served.reached == 0
    assert served.ask(path, "right") == 200


def test_an_address_is_forgotten_and_waits_no_longer_than_a_minute() -> None:
    clock = Clock()
    limiter = GuessLimiter(clock)
    for _ in range(100):
        limiter.add_wrong("a")
    assert limiter.seconds_to_wait("a") == LONGEST
    clock.now += 3600
    limiter.add_wrong("a")
    assert limiter.seconds_to_wait("a") == 0


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"name": "x", "artifact_location": "file:///etc"}, ["file:///etc"]),
        ({"name": "x", "artifactLocation": "file:///etc"}, ["file:///etc"]),
        ('{"name": "x", "artifact_location": "/etc"}', ["/etc"]),
        ({"name": "x", "artifact_location": ""}, []),
        ({"name": '{"artifact_location": "a name"}'}, []),
        ({"name": "x", "tags": [{"key": "mlflow.artifactLocation", "value": "/etc"}]}, ["/etc"]),
        ({"trace": {"trace_info": {"tags": {"mlflow.artifactLocation": "file:/etc"}}}}, ["file:/etc"]),
        ({"run_id": "x", "metrics": [{"key": "loss", "value": 0.1}]}, []),
        (None, []),
    ],
)
def test_where_a_request_says_that_artifacts_lie(body: object, found: list[str]) -> None:
    assert list(find_locations(body)) == found


def test_guesses_of_one_moment_are_counted_before_any_is_looked_at() -> None:
    """Each is looked at in a thread of its own, and many may wait for that at once."""
    served = Served()

    def slowly(account: str, password: str) -> bool:
        served.looked_at += 1
        time.sleep(0.05)
        return False

    served.gate.is_right = slowly
    statuses: list[int] = []

    async def guess(number: int) -> None:
        given = base64.b64encode(f"admin:guess{number}".encode())
        headers = [(b"host", b"lab:5000"), (b"authorization", b"Basic " + given)]

        async def send(message: dict[str, Any]) -> None:
            statuses.append(message.get("status", 0))

        await served.gate({"type": "http", "path": RUNS, "headers": headers, "client": ("10.0.0.7", 1)}, None, send)

    async def all_at_once() -> None:
        await asyncio.gather(*(guess(number) for number in range(50)))

    asyncio.run(all_at_once())
    assert served.looked_at <= FREE
    assert statuses.count(429) >= 50 - FREE


def test_right_passwords_of_one_moment_are_all_let_in() -> None:
    """As of a browser's connections, or of trainers that start together."""
    served = Served()

    def slowly(account: str, password: str) -> bool:
        time.sleep(0.05)
        return password == "right"

    served.gate.is_right = slowly
    statuses: list[int] = []

    async def ask() -> None:
        headers = [(b"host", b"lab:5000"), (b"authorization", b"Basic " + base64.b64encode(b"admin:right"))]

        async def send(message: dict[str, Any]) -> None:
            statuses.append(message.get("status", 0))

        await served.gate({"type": "http", "path": RUNS, "headers": headers, "client": ("10.0.0.7", 1)}, None, send)

    async def all_at_once() -> None:
        await asyncio.gather(*(ask() for _ in range(20)))

    asyncio.run(all_at_once())
    assert statuses.count(200) == 20
