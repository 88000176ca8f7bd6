"""Where a sweep is tracked: what answers, what does not, and whose password nobody sees."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from orchestrator.config.settings import TrackingSpec
from orchestrator.home import Home
from orchestrator.tracking.store import TRACKING_URI, environment_uri, resolve_tracking_uri
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


@pytest.mark.parametrize(
    ("uri", "clean", "names"),
    [
        (f"http://ann:{SECRET}@lab:5000/x", "http://lab:5000/x", ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")),
        (f"postgresql://ann:{SECRET}@lab/runs", "postgresql://lab/runs", ("PGUSER", "PGPASSWORD")),
    ],
)
def test_an_account_goes_to_the_variables_that_are_meant_for_it(
    uri: str, clean: str, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRACKING_URI, uri)
    for name in names:
        monkeypatch.setenv(name, "")
    assert environment_uri() == clean
    assert [os.environ[name] for name in names] == ["ann", SECRET]
    monkeypatch.setenv(TRACKING_URI, f"mysql://ann:{SECRET}@lab/runs")
    with pytest.raises(UserInputError, match="be kept secret in a mysql address") as refused:
        environment_uri()
    assert SECRET not in str(refused.value)


def test_a_password_in_a_team_file_is_refused_and_not_repeated(tmp_path: Path) -> None:
    spec = TrackingSpec(uri=f"http://ann:{SECRET}@lab:5000")
    with pytest.raises(UserInputError, match="it holds a password") as refused:
        resolve_tracking_uri(spec, tmp_path / "team.yaml", Home(tmp_path), print)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "uri", "account"),
    [
        (f"http://u:{SECRET}@[::1]:5000/x", "http://[::1]:5000/x", ("u", SECRET)),
        (f"postgresql://lab/db?user=u&password={SECRET}", "postgresql://lab/db", ("u", SECRET)),
        (f"postgresql://u:{SECRET}@/db?host=/sock", "postgresql:///db?host=/sock", ("u", SECRET)),
        (f"postgresql:///db?password={SECRET}", "postgresql:///db", (None, SECRET)),
        (f"postgresql://lab/db?sslmode=require&password={SECRET}", "postgresql://lab/db?sslmode=require", (None, SECRET)),
    ],
)
def test_an_account_is_found_wherever_an_address_holds_it(
    given: str, uri: str, account: tuple[str | None, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (
        ("PGUSER", "PGPASSWORD") if given.startswith("postgresql") else ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    )
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv(TRACKING_URI, given)
    assert environment_uri() == uri
    assert tuple(os.environ.get(name) for name in names) == account
    with pytest.raises(UserInputError, match="it holds a password") as caught:
        resolve_tracking_uri(TrackingSpec(uri=given), tmp_path / "team.yaml", Home(tmp_path), print)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "given", [f"http://admin:{SECRET}/b@lab:5000", f"http://admin:{SECRET}#b@lab", "http://lab:5000x", "http://[::1"]
)
def test_an_address_that_can_t_be_taken_apart_is_refused_without_its_words(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRACKING_URI, given)
    for call in (
        environment_uri,
        lambda: resolve_tracking_uri(TrackingSpec(uri=given), tmp_path / "team.yaml", Home(tmp_path), print),
    ):
        with pytest.raises(UserInputError, match="no host with a port") as caught:
            call()
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["a%20b", "a?b"])
def test_a_database_beside_a_team_file_is_not_put_elsewhere(name: str, tmp_path: Path) -> None:
    team = tmp_path / name / "team.yaml"
    with pytest.raises(UserInputError, match="the address of a SQLite database can't hold"):
        resolve_tracking_uri(TrackingSpec(uri="sqlite:///runs.db"), team, Home(tmp_path), print)


def test_a_token_in_the_place_of_a_name_is_refused_with_the_variable_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow would not use it, once it stands in a variable for names."""
    monkeypatch.setenv(TRACKING_URI, f"http://{SECRET}@lab:5000")
    with pytest.raises(UserInputError, match="Give a token by MLFLOW_TRACKING_TOKEN") as caught:
        environment_uri()
    assert SECRET not in str(caught.value)


def test_an_address_without_an_account_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("databricks", "databricks://scope:prefix", "http://h", "sqlite:////tmp/a/b.db?timeout=5", ""):
        monkeypatch.setenv(TRACKING_URI, uri)
        assert environment_uri() == uri


def test_an_escaped_password_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "")
    monkeypatch.setenv(TRACKING_URI, "postgresql+psycopg2://u:a%2541b@h/db?sslmode=require")
    assert environment_uri() == "postgresql+psycopg2://h/db?sslmode=require"
    assert os.environ["PGPASSWORD"] == "a%41b"
    monkeypatch.setenv(TRACKING_URI, "postgresql://h/db?password=a%2541b")
    assert environment_uri() == "postgresql://h/db"
    assert os.environ["PGPASSWORD"] == "a%41b"
