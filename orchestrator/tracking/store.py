"""Choose the tracking store of a sweep, and check that it answers before anything is written."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from orchestrator.config.settings import TrackingSpec
from orchestrator.home import Home
from workers.errors import ConclaveError, UserInputError, first_line
from workers.tracking.database import SCHEME, check_folder, path_of, uri_of

ANSWER_SECONDS = 9.0
TRACKING_URI = "CONCLAVE_TRACKING_URI"  # not MLflow's own variable, which MLflow sets itself for the rest of the process
# Variables that MLflow and PostgreSQL read, for the user and the password of an address: no file or message holds them.
ACCOUNTS = {
    "http": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "https": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "postgresql": "PGUSER and PGPASSWORD",
}


def resolve_tracking_uri(
    spec: TrackingSpec, team_file: Path, home: Home, say: Callable[[str], None], experiment: str = "Default"
) -> str:
    """Return the URI of the tracking store: the team's, else CONCLAVE_TRACKING_URI, else the home's.

    Args:
        spec: The team's tracking settings.
        team_file: The team file; relative paths start at its folder.
        home: The home.
        say: Shows a line to the user if an optional store is away.
        experiment: Name of the experiment.

    Raises:
        UserInputError: If a required store does not answer, an address holds a password, or artifacts would go nowhere.
    """
    source, address, folder = "tracking.uri", spec.uri, team_file.resolve().parent
    if not address:
        source, address, folder = TRACKING_URI, os.environ.get(TRACKING_URI), Path.cwd()
    if not address:
        return home.tracking_uri
    uri = _absolute(address, folder, source)
    _check_no_password(uri, source)
    if database := path_of(uri):
        _check_database(uri, database, source)
        return uri
    problem = _store_problem(uri)
    if not problem and urlsplit(uri).scheme in ("http", "https"):
        _check_artifacts(uri, experiment)
    if problem and spec.required:
        raise UserInputError(f"{source}: {uri} {problem}. Start the server, or leave it out.")
    if problem:
        say(f"{source}: {uri} {problem}; tracked in {home.path} instead")
        return home.tracking_uri
    return uri


def _check_no_password(uri: str, source: str) -> None:
    """Check that an address holds no password: files and messages would repeat it.

    Raises:
        UserInputError: If it has a password or a user without one, or can't be parsed. The message shows neither.
    """
    try:
        parts = urlsplit(uri)
        variables = ACCOUNTS.get(parts.scheme.partition("+")[0])
        _ = parts.port if variables else None  # others have no ports: databricks://PROFILE:PREFIX
    except ValueError:
        raise UserInputError(
            f"{source}: the address has no host with a port before its first /. In a user or a password, write /, ?, # and @ as "
            "%2F, %3F, %23 and %40."
        ) from None
    if parts.password is not None or "password" in dict(parse_qsl(parts.query)):
        advice = f"Set {variables} instead." if variables else "Use an MLflow server."
        raise UserInputError(f"{source}: it holds a password, which would be shown and passed around. {advice}")
    if parts.username and parts.scheme in ("http", "https"):  # MLflow needs both
        raise UserInputError(f"{source}: the address holds a name without a password. Give a token by MLFLOW_TRACKING_TOKEN.")


def _absolute(uri: str, folder: Path, source: str) -> str:
    """Return a URI with the path of a SQLite file resolved against `folder`; other URIs stay unchanged.

    Raises:
        UserInputError: If the folder's path has a character that the address of a SQLite database can't hold.
    """
    database = path_of(uri)
    if database is None or database.is_absolute():
        return uri
    check_folder(folder, source)
    query = uri.removeprefix(SCHEME).partition("?")[2]
    return uri_of(folder / database) + (f"?{query}" if query else "")


def _check_database(uri: str, database: Path, source: str) -> None:
    """Check an existing SQLite file. Raises UserInputError if this MLflow can't use it as it is."""
    if not database.is_file():
        return  # created later
    from workers.tracking.client import TrackingClient

    try:
        _ = TrackingClient(uri).client
    except ConclaveError as error:
        raise UserInputError(f"{source}: {error}") from None


def _check_artifacts(uri: str, experiment: str) -> None:
    """Check where the artifacts of an existing experiment go; a new one is checked when it is made. Raises UserInputError."""
    from workers.tracking.client import TrackingClient, check_artifacts

    try:
        location = TrackingClient(uri).artifact_location(experiment)
    except ConclaveError:  # the user may not look at the experiment; the sweep will tell
        return
    if location is not None:
        check_artifacts(uri, experiment, location)


def _store_problem(uri: str) -> str | None:
    """Return the problem with a tracking store that is not a SQLite file, or None."""
    scheme = urlsplit(uri).scheme
    if scheme == "sqlite":
        return None  # in memory
    if scheme == "file" or (not scheme and uri != "databricks"):
        return "is a folder, in which MLflow no longer keeps runs; use a file, sqlite:///PATH"
    import workers.tracking.client  # noqa: F401  # takes seconds, which are not the server's

    answers: list[str | None] = []

    def ask() -> None:
        answers.append((_http_problem(uri) if scheme in ("http", "https") else None) or _access_problem(uri))

    thread = threading.Thread(target=ask, daemon=True)  # a server that sends byte by byte would never time out
    thread.start()
    thread.join(ANSWER_SECONDS)
    return answers[0] if answers else f"doesn't answer within {ANSWER_SECONDS:g} s"


def _http_problem(uri: str) -> str | None:
    """Return the problem with an HTTP request to a URI, or None if a server answers."""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5).close()
    except urllib.error.HTTPError:
        return None  # a server answers; `_access_problem` checks access next
    except Exception as error:  # a network error, or an answer that is not HTTP
        return f"doesn't answer as a web server does ({getattr(error, 'reason', None) or type(error).__name__})"
    return None


def _access_problem(uri: str) -> str | None:
    """Return the problem with a read-only request to the store, or None."""
    from workers.tracking.client import TrackingClient

    try:
        TrackingClient(uri).client.search_experiments(max_results=1)
    except Exception as error:  # any error of the network, the server or the database driver
        return f"can't be used ({first_line(error)[:200]})"
    return None
