"""The team's tracking server: MLflow's own, behind a password, with artifacts through it, no jobs and no pickle."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from workers.errors import Rejected
from workers.files import write_bytes

SAFE = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"  # MLflow's own variable, as are the two of clients: MLFLOW_TRACKING_USERNAME, _PASSWORD
SHORTEST = 12


@dataclass(frozen=True)
class Server:
    """Where it keeps what, and whom it answers."""

    home: Path
    host: str
    port: int
    database: str | None = None  # postgresql://USER:PASSWORD@HOST/NAME; a SQLite file of the home where left out
    artifacts: str | None = None  # a folder or s3://BUCKET/PATH; a folder of the home where left out
    allow: Sequence[str] = ()  # the names, with port, by which clients may call it

    def start(self) -> None:
        """Become the server. Raises Rejected where the password is missing, before anything is written."""
        if len(os.environ.get(PASSWORD, "")) < SHORTEST and not self._started_before():
            raise Rejected(
                f"{PASSWORD}: set it to a password of at least {SHORTEST} characters, the admin's, for the first start."
            )
        if find_spec("flask_wtf") is None:  # MLflow's authentication would end in a traceback
            raise Rejected("the server needs packages of its own: pip install 'conclave-ensembles[server]'")
        self.home.mkdir(parents=True, exist_ok=True)
        if not self.secret.exists():
            write_bytes(self.secret, secrets.token_hex(32).encode(), mode=0o600)
        write_bytes(self.settings, self._authentication().encode(), mode=0o600)
        os.execve(sys.executable, self.command(), {**os.environ, **self.env()})

    @property
    def secret(self) -> Path:
        return self.home / "server-secret"

    @property
    def settings(self) -> Path:
        return self.home / "server-auth.ini"

    def _started_before(self) -> bool:
        """With the same database of accounts: another one has no admin yet."""
        return self.settings.exists() and self.settings.read_text(encoding="utf-8") == self._authentication()

    def command(self) -> list[str]:
        artifacts = self.artifacts or str((self.home / "artifacts").absolute())
        hosts = ",".join([f"localhost:{self.port}", f"127.0.0.1:{self.port}", *self.allow])
        words = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", self.host]
        words += ["--port", str(self.port), "--serve-artifacts"]
        return [*words, "--artifacts-destination", artifacts, "--allowed-hosts", hosts]

    def env(self) -> Mapping[str, str]:
        """What is secret goes this way: a command line can be read by everybody on the machine."""
        return {
            **SAFE,
            "MLFLOW_BACKEND_STORE_URI": self.database or f"sqlite:///{self.home.absolute()}/mlflow.db",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.secret.read_text(encoding="utf-8"),
            "MLFLOW_AUTH_CONFIG_PATH": str(self.settings.absolute()),
        }

    def _authentication(self) -> str:
        """Nobody without an account; accounts may read what others made and write what is their own."""
        database = self.database or f"sqlite:///{self.home.absolute()}/server-users.db"
        return f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {database}\nadmin_username = admin\n" + (
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            "auth_cache_ttl_seconds = 60\n"  # else each request hashes its password anew
        )
