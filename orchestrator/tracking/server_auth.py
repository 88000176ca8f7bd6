"""Refuse requests to the tracking server that set an artifact location. MLflow's basic auth does the rest.

MLflow calls `authenticate`, named in `server-auth.ini`, for each request. Without it, a client could set an experiment's
artifact location to a folder of the server, and then read the server's files.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

PROXIED = "mlflow-artifacts:"  # scheme of artifacts that go through the server
LOCATION_FIELDS = ("artifact_location", "artifactLocation", "mlflow.artifactLocation")  # the second is protobuf's JSON name
REFUSAL = "artifact_location: this server chooses where artifacts lie ({location} is not accepted). Leave it out."


def find_locations(body: object) -> Iterator[str]:
    """Yield every artifact location in the body of a request, in fields and in tags, at any depth.

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


def authenticate() -> Any:
    """Return the account of Flask's current request, or a response that refuses it."""
    from flask import jsonify, make_response, request
    from mlflow.server.auth import authenticate_request_basic_auth

    for location in find_locations(request.get_json(force=True, silent=True) if request.method != "GET" else None):
        if not location.startswith(PROXIED):
            refusal = jsonify(error_code="INVALID_PARAMETER_VALUE", message=REFUSAL.format(location=location))
            return make_response(refusal, 400)
    return authenticate_request_basic_auth()
