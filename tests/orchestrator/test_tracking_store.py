"""Where a sweep is tracked: what answers, what does not, and whose password nobody sees."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from orchestrator.config.settings import TrackingSpec
from orchestrator.home import Home
from orchestrator.tracking import store
from orchestrator.tracking.store import TRACKING_URI, resolve_tracking_uri
from workers.errors import UserInputError

SECRET = "hunter2-5f1c"


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that does this with whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def drips(connection: socket.socket) -> None:
    with connection, suppress(OSError):
        for letter in b"HTTP/1.1 200 OK\r\n" * 99:
            connection.send(bytes([letter]))
            time.sleep(0.5)


def speaks_another_protocol(connection: socket.socket) -> None:
    with connection:
        connection.send(b"220 mail.example ESMTP\r\n")


def is_slow(connection: socket.socket) -> None:
    with connection, suppress(OSError):
        time.sleep(5)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")


@pytest.mark.parametrize("answer", [drips, speaks_another_protocol, is_slow])
def test_a_hostile_server_ends_the_check_within_ten_seconds(answer: Callable[[socket.socket], None], tmp_path: Path) -> None:
    with listening(answer) as port:
        began = time.monotonic()
        with pytest.raises(UserInputError, match=rf"tracking\.uri: http://127\.0\.0\.1:{port} (doesn't answer|can't be used)"):
            resolve_tracking_uri(TrackingSpec(uri=f"http://127.0.0.1:{port}"), tmp_path / "t.yaml", Home(tmp_path), print)
        assert time.monotonic() - began < 10


def test_a_relative_database_lies_beside_the_team_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    spec = TrackingSpec(uri="sqlite:///runs.db?timeout=9")
    assert resolve_tracking_uri(spec, tmp_path / "team.yaml", Home(tmp_path), print) == f"sqlite:///{tmp_path}/runs.db?timeout=9"


def refusals(uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said of an address in a team file, and in CONCLAVE_TRACKING_URI."""
    sentences = []
    for spec, variable in ((TrackingSpec(uri=uri), ""), (TrackingSpec(), uri)):
        monkeypatch.setenv(TRACKING_URI, variable)
        with pytest.raises(UserInputError) as refused:
            resolve_tracking_uri(spec, folder / "team.yaml", Home(folder), print)
        sentences.append(str(refused.value))
    assert [sentence.partition(":")[0] for sentence in sentences] == ["tracking.uri", TRACKING_URI]
    assert not any(SECRET in sentence for sentence in sentences)
    return sentences


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        (f"http://ann:{SECRET}@lab:5000/x", "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead."),
        (f"https://u:{SECRET}@[::1]:5000/x", "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead."),
        (f"postgresql://ann:{SECRET}@lab/runs", "Set PGUSER and PGPASSWORD instead."),
        (f"postgresql+psycopg2://lab/db?sslmode=require&password={SECRET}", "Set PGUSER and PGPASSWORD instead."),
        (f"postgresql://u:{SECRET}@/db?host=/sock", "Set PGUSER and PGPASSWORD instead."),
        (f"mysql://ann:{SECRET}@lab/runs", "Use an MLflow server."),
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(
    uri: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sentence in refusals(uri, tmp_path, monkeypatch):
        assert "it holds a password" in sentence
        assert sentence.endswith(advice)


@pytest.mark.parametrize(
    "given", [f"http://admin:{SECRET}/b@lab:5000", f"http://admin:{SECRET}#b@lab", "http://lab:5000x", "http://[::1"]
)
def test_an_address_that_can_t_be_taken_apart_is_refused_without_its_words(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all("no host with a port" in sentence for sentence in refusals(given, tmp_path, monkeypatch))


@pytest.mark.parametrize("name", ["a%20b", "a?b"])
def test_a_database_beside_a_team_file_is_not_put_elsewhere(name: str, tmp_path: Path) -> None:
    team = tmp_path / name / "team.yaml"
    with pytest.raises(UserInputError, match="the address of a SQLite database can't hold"):
        resolve_tracking_uri(TrackingSpec(uri="sqlite:///runs.db"), team, Home(tmp_path), print)


def test_a_token_in_the_place_of_a_name_is_refused_with_the_variable_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow would not use it, once it stands in a variable for names."""
    for sentence in refusals(f"http://{SECRET}@lab:5000", tmp_path, monkeypatch):
        assert "Give a token by MLFLOW_TRACKING_TOKEN" in sentence


def test_an_address_without_an_account_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_store_problem", lambda uri: None)
    for uri in ("databricks", "databricks://scope:prefix", "http://h", "sqlite:////tmp/a/b.db?timeout=5"):
        monkeypatch.setenv(TRACKING_URI, uri)
        assert resolve_tracking_uri(TrackingSpec(), tmp_path / "team.yaml", Home(tmp_path), print) == uri
