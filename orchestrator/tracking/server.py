"""Run the team's tracking server: MLflow's, with a password and proxied artifacts, without jobs or pickle."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from workers.diagnostics.cores import available_cores
from workers.diagnostics.waiting import wait_until
from workers.errors import ConclaveError, UserInputError
from workers.storage.files import write_bytes
from workers.tracking.database import HOME_DATABASE, ensure_database

MAX_WORKERS = 4  # MLflow's default; each worker imports all of MLflow
SAFE = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "PYTHONSAFEPATH": "1",  # imports nothing from the folder that it is started in
}
PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"  # read by MLflow; clients use MLFLOW_TRACKING_USERNAME and _PASSWORD
MIN_PASSWORD_CHARACTERS = 12
LOCAL_HOSTS = ("localhost:*", "127.0.0.1:*")  # at any port: a tunnel may end at another one
START_SECONDS = 180.0


def check_port(host: str, port: int) -> None:
    """Check that a server can listen on a port. Raises UserInputError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            used = error.errno == errno.EADDRINUSE
            why = "another program uses this port" if used else f"this port can't be used ({error.strerror})"
            raise UserInputError(f"--port {port}: {why} of {host}. Name another.") from None


@dataclass(frozen=True)
class Server:
    """A tracking server.

    Attributes:
        home: Folder of its files.
        host: The address that it listens on.
        port: Its port.
        database: postgresql://USER:PASSWORD@HOST/NAME; defaults to a SQLite file in the home.
        artifacts: A folder, or s3://BUCKET/PATH; defaults to a folder in the home.
        allow: Host names, with port, that clients may use for it.
    """

    home: Path
    host: str
    port: int
    database: str | None = None
    artifacts: str | None = None
    allow: Sequence[str] = ()

    def in_background(self, words: Sequence[str]) -> None:
        """Start the same command in the background, and return once it answers. Return too if this home's server runs already.

        Raises:
            UserInputError: If another program uses the port.
            ConclaveError: If the server does not answer in time.
        """
        self.check()
        self.home.mkdir(parents=True, exist_ok=True)
        log = self.home / "server.log"
        if self._is_running() and wait_until(self._answers, START_SECONDS, give_up=lambda: not self._is_running()):
            return
        if self._is_running():  # else it was ending
            raise ConclaveError(f"the server does not answer; {log} ends with:\n{log.read_text()[-1000:]}")
        check_port(self.host, self.port)
        with open(log, "ab") as log_file:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, start_new_session=True)
        if not wait_until(self._answers, START_SECONDS, give_up=lambda: process.poll() is not None):
            raise ConclaveError(f"the server does not answer; {log} ends with:\n{log.read_text()[-1000:]}")

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2).close()
        except OSError as error:
            return isinstance(error, urllib.error.HTTPError)  # the server asks for a password
        return True

    def start(self) -> None:
        """Become the server process. Raises UserInputError before anything is written if it can't."""
        self.check()
        check_port(self.host, self.port)
        self.write()
        mine = psutil.Process()
        write_bytes(self.note, f"{mine.pid} {mine.create_time()} {self.port}".encode())
        os.execve(sys.executable, self.command(), {**os.environ, **self.env()})

    def check(self) -> None:
        """Check the password and the packages. Raises UserInputError."""
        if len(os.environ.get(PASSWORD, "")) < MIN_PASSWORD_CHARACTERS and not self._started_before():
            raise UserInputError(
                f"{PASSWORD}: set it to the admin's password ({MIN_PASSWORD_CHARACTERS} characters or more) for the first start."
            )
        if find_spec("flask_wtf") is None:  # MLflow's authentication would end in a traceback
            raise UserInputError("the server needs extra packages: pip install 'conclave-ensembles[server]'")

    def write(self) -> None:
        """Write the files that MLflow reads at its start, including secrets."""
        self.home.mkdir(parents=True, exist_ok=True)
        if not self.secret.exists():
            write_bytes(self.secret, secrets.token_hex(32).encode(), mode=0o600)
        write_bytes(self.settings, self._authentication().encode(), mode=0o600)
        if not self.database:
            ensure_database(self.home / HOME_DATABASE, is_own=True)  # atomic, unlike MLflow's own first start
            users = self.home / "server-users.db"  # it holds hashes of passwords
            users.touch(mode=0o600)
            users.chmod(0o600)

    def _is_running(self) -> bool:
        """Return whether the server that this home last started still runs, on the same port."""
        try:
            pid, began, port = self.note.read_text(encoding="utf-8").split()
            process = psutil.Process(int(pid))
            is_same = int(port) == self.port and process.create_time() == float(began)
            return is_same and process.status() != psutil.STATUS_ZOMBIE
        except (OSError, ValueError, psutil.Error):
            return False

    @property
    def note(self) -> Path:
        """The file that names the server's process, its start and its port."""
        return self.home / "server-process"

    @property
    def secret(self) -> Path:
        """The file of the secret key."""
        return self.home / "server-secret"

    @property
    def settings(self) -> Path:
        """The file of the authentication's settings."""
        return self.home / "server-auth.ini"

    def _started_before(self) -> bool:
        """Return whether a server was started before with this account database: a new database has no admin yet."""
        return self.settings.exists() and self.settings.read_text(encoding="utf-8") == self._authentication()

    def command(self) -> list[str]:
        """Return MLflow's command line."""
        artifacts = self.artifacts or str((self.home / "artifacts").absolute())
        hosts = ",".join([*LOCAL_HOSTS, *self.allow])
        words = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", self.host]
        words += ["--port", str(self.port), "--serve-artifacts"]
        words += ["--workers", str(min(MAX_WORKERS, available_cores()))]
        return [*words, "--artifacts-destination", artifacts, "--allowed-hosts", hosts]

    def env(self) -> Mapping[str, str]:
        """Return MLflow's environment variables. They hold the secrets, because any user can read a command line."""
        return {
            **SAFE,
            "MLFLOW_BACKEND_STORE_URI": self.database or f"sqlite:///{self.home.absolute()}/mlflow.db",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.secret.read_text(encoding="utf-8"),
            "MLFLOW_AUTH_CONFIG_PATH": str(self.settings.absolute()),
        }

    def _authentication(self) -> str:
        """Return the authentication settings: an account is required; it can read all runs, and write only its own."""
        database = self.database or f"sqlite:///{self.home.absolute()}/server-users.db"
        escaped = database.replace("%", "%%")  # %% is a literal % in an INI file
        return f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {escaped}\nadmin_username = admin\n" + (
            "authorization_function = orchestrator.tracking.server_auth:authenticate\n"
            "auth_cache_ttl_seconds = 60\n"  # else each request hashes its password anew
        )
