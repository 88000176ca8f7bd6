"""Choose the tracking store of a sweep, and check that it answers before anything is written."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from urllib.parse import urlparse

from orchestrator.config.settings import TrackingSpec
from orchestrator.home import Home
from workers.errors import UserInputError

ANSWER_SECONDS = 9.0  # the first call imports MLflow, which takes two
TRACKING_URI = "CONCLAVE_TRACKING_URI"  # not MLflow's own variable, which MLflow sets itself for the rest of the process


def resolve_tracking_uri(spec: TrackingSpec, home: Home, say: Callable[[str], None]) -> str:
    """Return the URI of the tracking store: the team's, else CONCLAVE_TRACKING_URI, else the home's.

    Args:
        spec: What the team file says of tracking.
        home: The home.
        say: Shows a line to people, where a store that is not required is away.

    Raises:
        UserInputError: If a required store does not answer.
    """
    source, uri = ("tracking.uri", spec.uri) if spec.uri else (TRACKING_URI, os.environ.get(TRACKING_URI))
    if not uri:
        return home.tracking_uri
    problem = _problem_with(uri)
    if problem and spec.required:
        raise UserInputError(f"{source}: {uri} {problem}. Start the server, or leave it out.")
    if problem:
        say(f"{source}: {uri} {problem}; tracked in {home.path} instead")
        return home.tracking_uri
    return uri


def _problem_with(uri: str) -> str | None:
    """Return what is wrong with a tracking store, or None. One in a file is created when it is opened."""
    scheme = urlparse(uri).scheme
    if scheme == "sqlite":
        return None
    if scheme == "file" or (not scheme and uri != "databricks"):
        return "is a folder, which MLflow keeps no runs in any more; sqlite:///PATH is a file for them"
    if scheme in ("http", "https"):
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5).close()
        except urllib.error.HTTPError:
            pass  # somebody answers; whether they let us in is seen next
        except (OSError, ValueError) as error:
            return f"doesn't answer ({getattr(error, 'reason', error)})"
    return _refusal(uri)


def _refusal(uri: str) -> str | None:
    """Return the store's problem with a call that changes nothing; in a thread, for a database may keep people waiting."""
    answers: list[str | None] = []

    def ask() -> None:
        from workers.tracking.client import TrackingClient

        try:
            TrackingClient(uri).client.search_experiments(max_results=1)
            answers.append(None)
        except Exception as error:  # whatever a network, a server and a database driver can do
            answers.append(f"can't be used ({str(error).strip().splitlines()[0][:200]})")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return answers[0] if answers else "doesn't answer"
