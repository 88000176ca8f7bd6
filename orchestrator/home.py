"""The home folder: its layout, its locks and the records of each sweep."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from filelock import Timeout
from pydantic import BaseModel

from fusion.results import FusionDetails
from orchestrator.results import Spending, SweepState, SweepSummary
from workers.errors import CorruptFileError, UserInputError
from workers.storage.files import LEASE_SECONDS, acquire_now, file_lock
from workers.tracking.database import HOME_DATABASE, check_folder, uri_of

Record = TypeVar("Record", bound=BaseModel)
RECORDS: dict[str, type[BaseModel]] = {
    "sweep.json": SweepState,
    "summary.json": SweepSummary,
    "fusion.json": FusionDetails,
    "spending.json": Spending,
}
ADVICE = "`conclave sweep` makes it again, and no training is lost."


@dataclass(frozen=True)
class Home:
    """A folder with mlflow.db, artifacts/, data/, jobs/, searches/, spool/ and sweeps/NAME/."""

    path: Path

    def __post_init__(self) -> None:
        check_folder(self.path.absolute(), "--home")

    @property
    def database(self) -> Path:
        """MLflow's database."""
        return self.path / HOME_DATABASE

    @property
    def tracking_uri(self) -> str:
        """URI of the tracking store in this home."""
        return uri_of(self.database)

    def sweep(self, name: str) -> SweepFolder:
        """Return the folder of a sweep, which may not exist yet."""
        return SweepFolder(self.path / "sweeps" / name)

    def existing(self, name: str) -> SweepFolder:
        """Return the folder of a started sweep. Raises UserInputError listing the known sweeps."""
        sweeps = self.sweeps()
        if name not in sweeps:
            known = f"Known: {', '.join(sweeps)}." if sweeps else "There are no sweeps yet; `conclave sweep` creates one."
            raise UserInputError(f"{self.path}: no sweep named {name!r}. {known}")
        return self.sweep(name)

    def sweeps(self) -> list[str]:
        """Return the names of all started sweeps."""
        return sorted(p.parent.name for p in (self.path / "sweeps").glob("*/sweep.json"))


@dataclass(frozen=True)
class SweepFolder:
    """HOME/sweeps/NAME: the team file, `sweep.json` with runs and jobs, and the results."""

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
        """The arrays behind all fusions (.npz)."""
        return self.path / "outputs.npz"

    @property
    def holder(self) -> Path:
        """A note naming the process that holds the lock; absent if the folder is unlocked."""
        return self.path / ".holder"

    @property
    def logs(self) -> Path:
        """The log folder: driver.log and one log per job."""
        return self.path / "logs"

    def result_digests(self) -> dict[str, str]:
        """Return the SHA-256 of each existing result file, by file name."""
        from workers.storage.files import file_sha256

        files = [path for path in (self.model, self.report, self.outputs) if path.is_file()]
        return {path.name: file_sha256(path) for path in files}

    def identifier(self) -> str:
        """Return the folder's unique id, creating it on first use. It tags the sweep's run in a tracking store."""
        from workers.storage.files import write_bytes

        path = self.path / ".identifier"
        with contextlib.suppress(FileNotFoundError):
            if re.fullmatch("[0-9a-f]{32}", known := path.read_text(encoding="utf-8", errors="replace")):
                return known
        write_bytes(path, uuid4().hex.encode())
        return self.identifier()

    def state(self) -> SweepState | None:
        """Return the jobs and tracking runs of the last run, or None before the first. Raises CorruptFileError."""
        return self._read("sweep.json", SweepState)

    def summary(self) -> SweepSummary | None:
        """Return the summary of the last run that ended, or None if no run has. Raises CorruptFileError."""
        return self._read("summary.json", SweepSummary)

    def details(self) -> FusionDetails | None:
        """Return the report's content beyond the summary, or None if nothing was fused. Raises CorruptFileError."""
        return self._read("fusion.json", FusionDetails)

    def spending(self) -> Spending | None:
        """Return what earlier runs spent, or None before the first. Raises CorruptFileError."""
        return self._read("spending.json", Spending)

    @property
    def has_newer_run(self) -> bool:
        """True if a run later than the summary's is in progress or did not end."""
        summary, state = self.summary(), self.state()
        return summary is not None and summary.state == "done" and (state is None or state.fingerprint is None)

    def keep(self, record: SweepState | SweepSummary | FusionDetails | Spending) -> None:
        """Write a record to the file of its kind."""
        from workers.storage.state_file import write_state

        write_state(self.path / next(name for name, kind in RECORDS.items() if isinstance(record, kind)), record)

    def _read(self, name: str, kind: type[Record]) -> Record | None:
        from workers.storage.state_file import read_state

        return read_state(self.path / name, kind, ADVICE)

    def remove_damaged(self, say: Callable[[str], None]) -> None:
        """Remove unreadable records, which this run rebuilds. Raises CorruptFileError if a record's path is a folder.

        Args:
            say: Shows a line to the user; called for each damaged record.
        """
        for name, kind in RECORDS.items():
            try:
                self._read(name, kind)
            except CorruptFileError:
                if (self.path / name).is_dir():
                    raise
                (self.path / name).unlink()
                say(f"{self.path / name} was damaged and is made again")

    def is_running(self) -> bool:
        """Return whether a process sweeps here: the one that the holder's note names, if it is alive or on another machine."""
        try:
            note = self.holder.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        import psutil  # most commands need none of it

        match = re.match(r"process (\d+) on (\S+), since ", note)
        return match is not None and (match[2] != os.uname().nodename or psutil.pid_exists(int(match[1])))

    @contextlib.contextmanager
    def locked(self, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """Allow only one process to sweep here at a time. The lock is released if its process dies.

        Args:
            say: Shows a line to the user; called for each damaged record that this run rebuilds.

        Raises:
            CorruptFileError: If a record's path is a folder.
            UserInputError: If another process sweeps here; the message names it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = file_lock(self.path / ".lock")
        wait = f"may still sweep here: waiting {LEASE_SECONDS:.0f} s for its sign of life"
        try:
            acquire_now(lock, lambda: say(f"{self._holder()}, {wait}"))
        except Timeout:
            who = self._holder()
            raise UserInputError(f"sweep {self.path.name} is running already ({who}). Wait for it, or end it.") from None
        try:
            for unfinished in self.path.glob(".*.*"):  # left by a killed process
                unfinished.unlink()
            since = datetime.now().astimezone().isoformat(" ")
            self.holder.write_text(f"process {os.getpid()} on {os.uname().nodename}, since {since}", encoding="utf-8")
            self.remove_damaged(say)
            yield
        finally:
            self.holder.unlink(missing_ok=True)
            lock.release()

    def _holder(self) -> str:
        """Return the process that holds the lock, as far as its note tells."""
        who = ""
        with contextlib.suppress(OSError):
            who = self.holder.read_text(encoding="utf-8", errors="replace")
        return who if who.startswith("process ") else "another process"
