"""The app of the team's tracking server: MLflow's own behind a password, which also guards what MLflow shows to everybody.

MLflow finds it by the entry point `conclave` of the group `mlflow.app`. Three things are added. Wrong passwords are slowed down.
`/health` and `server-info` want the password like the rest. No artifacts can be said to lie in a folder of the server, which
would let clients read its files.

    python -m orchestrator.tracking.server_app --host 127.0.0.1 ...     # the options of `mlflow server`
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from orchestrator.tracking.guesses import GuessLimiter

NAME = "conclave"  # of the entry point
REMEMBERED = 60.0  # seconds for which a right password is not looked at again, here and in MLflow
MOST_REMEMBERED = 10_000
SHOWN_TO_ALL = ("/health", "/mlflow/server-info")  # by MLflow
PROXIED = "mlflow-artifacts:"  # the scheme of artifacts that go through the server
LOCATION_FIELDS = ("artifact_location", "artifactLocation", "mlflow.artifactLocation")  # the second is protobuf's for the first
LOCAL_LOCATION = (
    "artifact_location: this server keeps artifacts in a place of its own, and takes no other ({location}). Leave it out."
)
Scope = Mapping[str, Any]  # what ASGI says of a request


@dataclass
class PasswordGate:
    """An ASGI app before another one: it looks at passwords, and slows down those who guess them.

    Attributes:
        app: The app behind it, which looks at passwords too and says who may do what.
        is_right: Returns whether an account has this password. It may take a tenth of a second.
        is_allowed_host: Returns whether clients may call the server by this name.
        limiter: Counts wrong passwords.
    """

    app: Any
    is_right: Callable[[str, str], bool]
    is_allowed_host: Callable[[str], bool] = lambda host: True
    limiter: GuessLimiter = field(default_factory=GuessLimiter)
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    _right: dict[bytes, float] = field(default_factory=dict)  # digests of right credentials, and until when they count
    _checks: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)  # of addresses that wait for one

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer a request, or hand it on."""
        refusal = await self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await _answer(send, *refusal)

    async def _refusal(self, scope: Scope) -> tuple[int, str, dict[str, str]] | None:
        """Return the status, the sentence and the headers by which a request is refused, or None."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        is_shown_to_all = scope["path"].endswith(SHOWN_TO_ALL)
        if is_shown_to_all and not self.is_allowed_host(headers.get(b"host", "")):
            return 403, "This server does not answer to that name.", {}
        given = headers.get(b"authorization")
        if given is None:
            return _no_password() if is_shown_to_all else None  # MLflow refuses the rest itself
        digest = hmac.digest(self._key, given.encode(), hashlib.sha256)
        if self._right.get(digest, 0.0) > time.monotonic():
            return None
        address = str((scope.get("client") or ("", 0))[0])
        lock = self._checks.setdefault(address, asyncio.Lock())
        async with lock:  # one after another: what the first one shows counts for the others
            return await self._refusal_of(given, digest, address)

    async def _refusal_of(self, given: str, digest: bytes, address: str) -> tuple[int, str, dict[str, str]] | None:
        """Return the same of a password that was not right within the last minute. One of an address is looked at at a time."""
        if self._right.get(digest, 0.0) > time.monotonic():
            return None
        was_right = self._right.pop(digest, None) is not None  # nobody's guesses keep out who was in
        if not was_right and (wait := self.limiter.seconds_to_wait(address)):
            seconds = math.ceil(wait)
            return 429, f"Too many wrong passwords. Try again in {seconds} s.", {"retry-after": str(seconds)}
        account, password = _account(given)
        if not await asyncio.to_thread(self.is_right, account, password):
            self.limiter.add_wrong(address)
            return _no_password()
        if len(self._right) >= MOST_REMEMBERED:
            self._right.clear()
        self._right[digest] = time.monotonic() + REMEMBERED
        return None


def _account(given: str) -> tuple[str, str]:
    """Return the name and the password of an Authorization header; two empty strings where it has none."""
    scheme, _, credentials = given.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        name, _, password = base64.b64decode(credentials, validate=True).decode().partition(":")
    except ValueError:
        return "", ""
    return name, password


def _no_password() -> tuple[int, str, dict[str, str]]:
    return 401, "You are not authenticated.", {"www-authenticate": 'Basic realm="mlflow"'}


async def _answer(send: Any, status: int, text: str, headers: Mapping[str, str]) -> None:
    lines = [(name.encode(), value.encode()) for name, value in {"content-type": "text/plain", **headers}.items()]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": text.encode()})


def find_locations(body: object) -> Iterator[str]:
    """Return where the body of a request says that artifacts lie, in fields and in tags, however deep.

    MLflow also reads a body that is JSON in a JSON string, as its older clients sent it.
    """
    if isinstance(body, str):
        with contextlib.suppress(ValueError):
            yield from find_locations(json.loads(body))
    elif isinstance(body, Mapping):
        if body.get("key") in LOCATION_FIELDS and isinstance(body.get("value"), str):
            yield body["value"]
        for key, value in body.items():
            if key in LOCATION_FIELDS and isinstance(value, str) and value:
                yield value
            elif not isinstance(value, str):
                yield from find_locations(value)
    elif isinstance(body, list):
        for value in body:
            if not isinstance(value, str):
                yield from find_locations(value)


def _refuse_other_locations() -> Any:
    """Refuse a request that names a place for artifacts which is not the server's own. Flask calls it before each request."""
    from flask import jsonify, request

    for location in find_locations(request.get_json(force=True, silent=True) if request.method != "GET" else None):
        if not location.startswith(PROXIED):
            return jsonify(error_code="INVALID_PARAMETER_VALUE", message=LOCAL_LOCATION.format(location=location)), 400
    return None


def create_app() -> PasswordGate:
    """Return the app. MLflow's workers call it."""
    from mlflow.server import app as flask_app
    from mlflow.server import auth
    from mlflow.server.security_utils import get_allowed_hosts_from_env, is_allowed_host_header

    served = auth.create_app(flask_app)
    flask_app.before_request(_refuse_other_locations)
    hosts = get_allowed_hosts_from_env() or []
    return PasswordGate(served, auth.store.authenticate_user, lambda host: is_allowed_host_header(hosts, host))


def main() -> None:
    """Create the admin's account, and run the server."""
    from mlflow.cli import cli
    from mlflow.environment_variables import _MLFLOW_AUTH_ADMIN_BOOTSTRAPPED
    from mlflow.server import auth

    auth.bootstrap_admin_user()  # once, and not by four workers at the same time
    os.environ[_MLFLOW_AUTH_ADMIN_BOOTSTRAPPED.name] = "true"
    cli(["server", "--app-name", NAME, *sys.argv[1:]])


if __name__ == "__main__":
    main()
