"""The home folder: where everything lives, and who owns which path in it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from filelock import Timeout
from pydantic import BaseModel

from fusion.results import FusionDetails
from orchestrator.results import SweepState, SweepSummary
from workers.errors import CorruptFileError, UserInputError
from workers.storage.files import file_lock
from workers.tracking.database import HOME_DATABASE, uri_of

Record = TypeVar("Record", bound=BaseModel)
RECORDS: dict[str, type[BaseModel]] = {"sweep.json": SweepState, "summary.json": SweepSummary, "fusion.json": FusionDetails}
ADVICE = "`conclave sweep` makes it again, and no training is lost."


@dataclass(frozen=True)
class Home:
    """A folder with mlflow.db, artifacts/, data/, jobs/, searches/, spool/ and sweeps/NAME/."""

    path: Path

    def __post_init__(self) -> None:
        if unusable := [letter for letter in "?%" if letter in str(self.path.absolute())]:
            raise UserInputError(
                f"--home {self.path}: the path holds {unusable[0]!r}, which the address of MLflow's database can't hold. "
                "Use a folder of another name."
            )

    @property
    def database(self) -> Path:
        """MLflow's database."""
        return self.path / HOME_DATABASE

    @property
    def tracking_uri(self) -> str:
        """The tracking store in this home."""
        return uri_of(self.database)

    @property
    def artifacts(self) -> Path:
        """MLflow's artifacts."""
        return self.path / "artifacts"

    def sweep(self, name: str) -> SweepFolder:
        """Return the folder of a sweep, whether it is there or not."""
        return SweepFolder(self.path / "sweeps" / name)

    def existing(self, name: str) -> SweepFolder:
        """Return the folder of a sweep that was started. Raises UserInputError with the names that there are."""
        sweeps = self.sweeps()
        if name not in sweeps:
            known = f"Known: {', '.join(sweeps)}." if sweeps else "There is none yet; `conclave sweep` makes one."
            raise UserInputError(f"{self.path}: no sweep named {name!r}. {known}")
        return self.sweep(name)

    def sweeps(self) -> list[str]:
        """Return the names of the sweeps that were started."""
        return sorted(p.parent.name for p in (self.path / "sweeps").glob("*/sweep.json"))


@dataclass(frozen=True)
class SweepFolder:
    """HOME/sweeps/NAME: the team file, `sweep.json` with runs and jobs, and what came out."""

    path: Path

    @property
    def team(self) -> Path:
        """A copy of the team file."""
        return self.path / "team.yaml"

    @property
    def model(self) -> Path:
        """The recommended model."""
        return self.path / "fused.onnx"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"

    @property
    def outputs(self) -> Path:
        """The file with the arrays that every fusion was made from."""
        return self.path / "outputs.npz"

    @property
    def holder(self) -> Path:
        """A note of who sweeps here; gone where nobody does."""
        return self.path / ".holder"

    @property
    def logs(self) -> Path:
        """The folder of the logs: driver.log, and one for each job."""
        return self.path / "logs"

    def result_digests(self) -> dict[str, str]:
        """Return the SHA-256 of each file of results that is there, by its name."""
        from workers.storage.files import file_sha256

        files = [path for path in (self.model, self.report, self.outputs) if path.is_file()]
        return {path.name: file_sha256(path) for path in files}

    def identifier(self) -> str:
        """Return what tells this folder from all others, made at the first call. Its run in a tracking store has it as a tag."""
        from workers.storage.files import write_bytes

        path = self.path / ".identifier"
        with contextlib.suppress(FileNotFoundError):
            if re.fullmatch("[0-9a-f]{32}", known := path.read_text(encoding="utf-8", errors="replace")):
                return known
        write_bytes(path, uuid4().hex.encode())
        return self.identifier()

    def per_class(self, member: str) -> Path:
        """Return the file of a member's accuracy by class."""
        return self.path / "per_class" / member / "per_class.json"

    def state(self) -> SweepState | None:
        """Return what is known of the last run: its jobs and runs. None where there is none. Raises CorruptFileError."""
        return self._read("sweep.json", SweepState)

    def summary(self) -> SweepSummary | None:
        """Return the summary of the last run that ended. None where there is none. Raises CorruptFileError."""
        return self._read("summary.json", SweepSummary)

    def details(self) -> FusionDetails | None:
        """Return what the report shows beyond the summary. None where nothing was fused. Raises CorruptFileError."""
        return self._read("fusion.json", FusionDetails)

    @property
    def has_newer_run(self) -> bool:
        """True if a later run than that of the summary is under way, or did not end."""
        summary, state = self.summary(), self.state()
        return summary is not None and summary.state == "done" and (state is None or state.fingerprint is None)

    def keep_state(self, state: SweepState) -> None:
        """Write sweep.json."""
        self._write("sweep.json", state)

    def keep_summary(self, summary: SweepSummary) -> None:
        """Write summary.json."""
        self._write("summary.json", summary)

    def keep_details(self, details: FusionDetails) -> None:
        """Write fusion.json."""
        self._write("fusion.json", details)

    def _write(self, name: str, record: BaseModel) -> None:
        from workers.storage.state_file import write_state

        write_state(self.path / name, record)

    def _read(self, name: str, kind: type[Record]) -> Record | None:
        from workers.storage.state_file import read_state

        return read_state(self.path / name, kind, ADVICE)

    def remove_damaged(self, say: Callable[[str], None]) -> None:
        """Remove the records that can't be read: this run makes them again. Raises CorruptFileError for a folder in their place.

        Args:
            say: Is told, in a line, of each.
        """
        for name, kind in RECORDS.items():
            try:
                self._read(name, kind)
            except CorruptFileError:
                if (self.path / name).is_dir():
                    raise
                (self.path / name).unlink()
                say(f"{self.path / name} was damaged and is made again")

    @contextlib.contextmanager
    def locked(self, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """Let only one process sweep here at a time. A dead process's lock is free.

        Args:
            say: Is told, in a line, of each record that was damaged and is made again.

        Raises:
            CorruptFileError: If there is a folder in the place of a record.
            UserInputError: If another process sweeps here. It names that process.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = file_lock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            who = self._holder_in_words()
            raise UserInputError(f"sweep {self.path.name} is running already ({who}). Wait for it, or end it.") from None
        try:
            for unfinished in self.path.glob(".*.*"):  # by a process that was killed
                unfinished.unlink()
            holder = {"pid": os.getpid(), "host": os.uname().nodename, "since": round(time.time(), 3)}
            self.holder.write_text(json.dumps(holder), encoding="utf-8")
            self.remove_damaged(say)
            yield
        finally:
            self.holder.unlink(missing_ok=True)
            lock.release()

    def _holder_in_words(self) -> str:
        """Return who sweeps here, in words."""
        try:
            holder = json.loads(self.holder.read_text(encoding="utf-8"))
            return f"process {holder['pid']} on {holder['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"
