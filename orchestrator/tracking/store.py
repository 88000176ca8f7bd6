"""Choose the tracking store of a sweep, and check that it answers before anything is written."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from orchestrator.config.settings import TrackingSpec
from orchestrator.home import Home
from workers.errors import UserInputError, first_line
from workers.tracking.database import SCHEME, path_of, uri_of

ANSWER_SECONDS = 9.0  # the first call imports MLflow, which takes two
TRACKING_URI = "CONCLAVE_TRACKING_URI"  # not MLflow's own variable, which MLflow sets itself for the rest of the process
# Variables that take the user and password of a URI: MLflow and PostgreSQL read them, so no file or message holds them.
ACCOUNTS = {
    "http": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "https": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "postgresql": ("PGUSER", "PGPASSWORD"),
}
SECRETS = ("user", "password")  # URI parameters that move to the same variables


def resolve_tracking_uri(spec: TrackingSpec, team_file: Path, home: Home, say: Callable[[str], None]) -> str:
    """Return the URI of the tracking store: the team's, else CONCLAVE_TRACKING_URI, else the home's.

    Args:
        spec: The team's tracking settings.
        team_file: The team file; relative paths start at its folder.
        home: The home.
        say: Shows a line to the user if an optional store is away.

    Raises:
        UserInputError: If a required store does not answer, or the team file holds a password.
    """
    if spec.uri:
        source, uri = "tracking.uri", _absolute(spec.uri, team_file.resolve().parent, "tracking.uri")
        if _account_in(uri, source) is not None:
            user, password = ACCOUNTS.get(urlsplit(uri).scheme.partition("+")[0], (TRACKING_URI, TRACKING_URI))
            names = user if user == password else f"{user} and {password}"
            raise UserInputError(f"tracking.uri: it holds a password, and team files are passed around. Set {names} instead.")
    else:
        source, uri = TRACKING_URI, environment_uri()
    if not uri:
        return home.tracking_uri
    problem = _store_problem(uri)
    if problem and spec.required:
        raise UserInputError(f"{source}: {uri} {problem}. Start the server, or leave it out.")
    if problem:
        say(f"{source}: {uri} {problem}; tracked in {home.path} instead")
        return home.tracking_uri
    return uri


def environment_uri() -> str:
    """Return CONCLAVE_TRACKING_URI without its account, which moves to the variables in ACCOUNTS; "" if unset.

    Raises:
        UserInputError: If it holds a password that no other variable can take.
    """
    uri = _absolute(os.environ.get(TRACKING_URI, ""), Path.cwd(), TRACKING_URI)
    account = _account_in(uri, TRACKING_URI)
    if account is None:
        return uri
    parts = urlsplit(uri)
    names = ACCOUNTS.get(parts.scheme.partition("+")[0])
    if names is None:
        raise UserInputError(
            f"{TRACKING_URI}: a password can't be kept secret in a {parts.scheme} address. Use an MLflow server."
        )
    for name, value in zip(names, account, strict=True):
        if value:
            os.environ[name] = value
    query = urlencode([(name, value) for name, value in parse_qsl(parts.query) if name not in SECRETS], safe="/")
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # also without a host, as for a socket
    return f"{place}?{query}" if query else place


def _account_in(uri: str, source: str) -> tuple[str, str] | None:
    """Return the user and the password in an address, or None if it has no password.

    Raises:
        UserInputError: If the address can't be parsed, or has a user but no password. The message shows neither.
    """
    try:
        parts = urlsplit(uri)
        is_known = parts.scheme.partition("+")[0] in ACCOUNTS
        _ = parts.port if is_known else None  # others have no ports: databricks://PROFILE:PREFIX
    except ValueError:
        raise UserInputError(
            f"{source}: the address has no host with a port before its first /. In a user or a password, write /, ?, # and @ as "
            "%2F, %3F, %23 and %40."
        ) from None
    query = dict(parse_qsl(parts.query)) if is_known else {}
    user = query.get("user") if parts.username is None else unquote(parts.username)
    password = query.get("password") if parts.password is None else unquote(parts.password)
    if password is None and parts.username and parts.scheme in ("http", "https"):  # MLflow needs both
        raise UserInputError(f"{source}: the address holds a name without a password. Give a token by MLFLOW_TRACKING_TOKEN.")
    return None if password is None else (user or "", password)


def _absolute(uri: str, folder: Path, source: str) -> str:
    """Return a URI with the path of a SQLite file resolved against `folder`; other URIs stay unchanged.

    Raises:
        UserInputError: If the folder's path has a character that the address of a SQLite database can't hold.
    """
    database = path_of(uri)
    if database is None or database.is_absolute():
        return uri
    if unusable := [letter for letter in "?%" if letter in str(folder)]:
        raise UserInputError(
            f"{source}: it starts at {folder}, whose path has a {unusable[0]!r}, which the address of a SQLite database can't "
            "hold. Rename the folder."
        )
    query = uri.removeprefix(SCHEME).partition("?")[2]
    return uri_of(folder / database) + (f"?{query}" if query else "")


def _store_problem(uri: str) -> str | None:
    """Return the problem with a tracking store, or None. A SQLite file is created when it is opened."""
    scheme = urlsplit(uri).scheme
    if scheme == "sqlite":
        return None
    if scheme == "file" or (not scheme and uri != "databricks"):
        return "is a folder, in which MLflow no longer keeps runs; use a file, sqlite:///PATH"
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
