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
# Where the user and the password of a URI go: MLflow and PostgreSQL read these, and no file or message has them.
ACCOUNTS = {
    "http": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "https": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "postgresql": ("PGUSER", "PGPASSWORD"),
}
SECRETS = ("user", "password")  # parameters of an address that go the same way


def resolve_tracking_uri(spec: TrackingSpec, team_file: Path, home: Home, say: Callable[[str], None]) -> str:
    """Return the URI of the tracking store: the team's, else CONCLAVE_TRACKING_URI, else the home's.

    Args:
        spec: What the team file says of tracking.
        team_file: The team file, whose folder relative paths count from.
        home: The home.
        say: Shows a line to people, where a store that is not required is away.

    Raises:
        UserInputError: If a required store does not answer, or the team file holds a password.
    """
    if spec.uri:
        source, uri = "tracking.uri", _absolute(spec.uri, team_file.resolve().parent, "tracking.uri")
        if _account_in(uri, source) is not None:
            user, password = ACCOUNTS.get(urlsplit(uri).scheme.partition("+")[0], (TRACKING_URI, TRACKING_URI))
            names = user if user == password else f"{user} and {password}"
            raise UserInputError(
                f"tracking.uri: it holds a password, and team files are passed around. Give the password by {names}."
            )
    else:
        source, uri = TRACKING_URI, environment_uri()
    if not uri:
        return home.tracking_uri
    problem = _problem_with(uri)
    if problem and spec.required:
        raise UserInputError(f"{source}: {uri} {problem}. Start the server, or leave it out.")
    if problem:
        say(f"{source}: {uri} {problem}; tracked in {home.path} instead")
        return home.tracking_uri
    return uri


def environment_uri() -> str:
    """Return CONCLAVE_TRACKING_URI without its account, which goes to the variables that are meant for it; "" for none.

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
    """Return the user and the password that an address holds, or None where it holds neither.

    Raises:
        UserInputError: If it can't be told where they end, or there is a name alone. The message does not have them.
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
    if password is None and parts.username and parts.scheme in ("http", "https"):  # MLflow takes no name alone
        raise UserInputError(f"{source}: the address holds a name without a password. Give a token by MLFLOW_TRACKING_TOKEN.")
    return None if password is None else (user or "", password)


def _absolute(uri: str, folder: Path, source: str) -> str:
    """Return a URI whose file, where it is one, does not depend on the folder that one is in.

    Raises:
        UserInputError: If the folder's path holds what the address of a SQLite database can't hold.
    """
    database = path_of(uri)
    if database is None or database.is_absolute():
        return uri
    if unusable := [letter for letter in "?%" if letter in str(folder)]:
        raise UserInputError(
            f"{source}: it counts from {folder}, whose path holds {unusable[0]!r}, which the address of a SQLite database can't "
            "hold. Use a folder of another name."
        )
    query = uri.removeprefix(SCHEME).partition("?")[2]
    return uri_of(folder / database) + (f"?{query}" if query else "")


def _problem_with(uri: str) -> str | None:
    """Return what is wrong with a tracking store, or None. One in a file is created when it is opened."""
    scheme = urlsplit(uri).scheme
    if scheme == "sqlite":
        return None
    if scheme == "file" or (not scheme and uri != "databricks"):
        return "is a folder, which MLflow keeps no runs in any more; sqlite:///PATH is a file for them"
    answers: list[str | None] = []

    def ask() -> None:
        answers.append((_silence(uri) if scheme in ("http", "https") else None) or _refusal(uri))

    thread = threading.Thread(target=ask, daemon=True)  # a server that drips byte by byte is never done
    thread.start()
    thread.join(ANSWER_SECONDS)
    return answers[0] if answers else f"doesn't answer within {ANSWER_SECONDS:g} s"


def _silence(uri: str) -> str | None:
    """Return why nobody answers HTTP at a URI, or None where somebody does."""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5).close()
    except urllib.error.HTTPError:
        return None  # somebody answers; whether they let us in is seen next
    except Exception as error:  # a network's, or an answer that is no HTTP
        return f"doesn't answer as a web server does ({getattr(error, 'reason', None) or type(error).__name__})"
    return None


def _refusal(uri: str) -> str | None:
    """Return the store's problem with a call that changes nothing."""
    from workers.tracking.client import TrackingClient

    try:
        TrackingClient(uri).client.search_experiments(max_results=1)
    except Exception as error:  # whatever a network, a server and a database driver can do
        return f"can't be used ({first_line(error)[:200]})"
    return None
