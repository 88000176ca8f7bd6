"""What is looked at before anything is written: that networks can be built, and that the tracking server answers."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from urllib.parse import urlparse

from orchestrator.home import Home
from orchestrator.team import Team, Tracking
from workers.errors import Rejected

ANSWER_SECONDS = 9.0  # the first call imports MLflow, which takes two
TRACKING_URI = "CONCLAVE_TRACKING_URI"  # not MLflow's own variable, which MLflow sets itself, for all that follows in the process


def networks(team: Team, paths: Sequence[str]) -> None:
    """Build every member's network once, before anything is written. Raises Rejected with every problem."""
    from workers.models import build, import_from, linear_head

    import_from(paths)
    problems = []
    for member in team.recipes:
        try:
            network = build(member, 2 if member.weights is None else 10, team.data.size)
            if "concat" in team.fusion and member in team.members and not linear_head(network):
                problems.append(
                    f"member {member.name}: {member.arch} doesn't end in a Linear head, which concat starts from. "
                    "Take concat out of `fusion:`, or give another network."
                )
        except Rejected as error:
            problems.append(str(error))
        except Exception as error:
            problems.append(f"member {member.name}: {member.arch} can't be built ({error}).")
    if problems:
        raise Rejected("\n".join(problems))


def tracked_at(asked: Tracking, home: Home, say: Callable[[str], None]) -> str:
    """The tracking store's URI: the team's, else CONCLAVE_TRACKING_URI, else the home's.

    Refuses a server that doesn't answer, before anything starts, unless it is not required.
    """
    named, uri = ("tracking.uri", asked.uri) if asked.uri else (TRACKING_URI, os.environ.get(TRACKING_URI))
    if not uri:
        return home.tracking_uri
    trouble = _trouble(uri)
    if trouble and asked.required:
        raise Rejected(f"{named}: {uri} {trouble}. Start the server, or leave it out.")
    if trouble:
        say(f"{named}: {uri} {trouble}; tracked in {home.path} instead")
        return home.tracking_uri
    return uri


def _trouble(uri: str) -> str | None:
    """What is wrong with a tracking store, or None. One in a file is made when it is opened."""
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
    """What it says to a call that changes nothing. In a thread: a database that is away is waited for longer than people wait."""
    said: list[str | None] = []

    def ask() -> None:
        from workers.tracking import Tracking

        try:
            Tracking(uri).client.search_experiments(max_results=1)
            said.append(None)
        except Exception as error:  # whatever a network, a server and a database driver can do
            said.append(f"can't be used ({str(error).strip().splitlines()[0][:200]})")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return said[0] if said else "doesn't answer"
