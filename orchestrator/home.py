"""The home folder: where everything lives, and who owns which path in it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from workers.errors import Rejected


@dataclass(frozen=True)
class Home:
    """DIR/mlflow.db, DIR/artifacts/, DIR/data/, DIR/jobs/, DIR/sweeps/NAME/."""

    path: Path

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.path.absolute()}/mlflow.db"

    @property
    def artifacts(self) -> Path:
        return self.path / "artifacts"

    def sweep(self, name: str) -> SweepFolder:
        return SweepFolder(self.path / "sweeps" / name)

    def existing(self, name: str) -> SweepFolder:
        """The folder of a sweep that was started. Raises Rejected with the names that there are."""
        sweeps = self.sweeps()
        if name not in sweeps:
            known = f"Known: {', '.join(sweeps)}." if sweeps else "There is none yet; `conclave sweep` makes one."
            raise Rejected(f"{self.path}: no sweep named {name!r}. {known}")
        return self.sweep(name)

    def sweeps(self) -> list[str]:
        return sorted(p.parent.name for p in (self.path / "sweeps").glob("*/sweep.json"))


@dataclass(frozen=True)
class SweepFolder:
    """HOME/sweeps/NAME: the team file, `sweep.json` (runs and jobs), and what came out."""

    path: Path

    @property
    def team(self) -> Path:
        return self.path / "team.yaml"

    @property
    def model(self) -> Path:
        return self.path / "fused.onnx"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def outputs(self) -> Path:
        return self.path / "outputs.npz"

    @property
    def holder(self) -> Path:
        """Who sweeps here; gone where nobody does."""
        return self.path / ".holder"

    def state(self) -> dict[str, Any]:
        return _json(self.path / "sweep.json")

    def summary(self) -> dict[str, Any]:
        return _json(self.path / "summary.json")

    @property
    def overtaken(self) -> bool:
        """Whether a run later than the one that the summary tells of is under way, or did not end."""
        return self.summary().get("state") == "done" and self.state().get("fingerprint") is None

    def details(self) -> dict[str, Any]:
        """What the report shows beyond the summary."""
        return _json(self.path / "fusion.json")

    def write(self, name: str, content: Any) -> None:
        from workers.files import write_json

        write_json(self.path / name, content)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Only one process sweeps here at a time. Raises Rejected naming the holder; a dead holder's lock is free."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock, holder = FileLock(self.path / ".lock"), self.holder
        try:
            lock.acquire(timeout=0)
        except Timeout:
            who = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
            raise Rejected(f"sweep {self.path.name} is running already ({who}). Wait for it, or end it.") from None
        try:
            for begun in self.path.glob(".*.*"):  # by a process that was killed
                begun.unlink()
            holder.write_text(f"process {os.getpid()} on {os.uname().nodename}", encoding="utf-8")
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    assert isinstance(content, dict)
    return content
