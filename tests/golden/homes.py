"""Unpack a fixture home, and point what it says of its own place to where it is now."""

from __future__ import annotations

import sqlite3
import tarfile
from pathlib import Path

ARCHIVES = Path(__file__).resolve().parents[1] / "fixtures" / "homes"
NAMES = sorted(path.name.removesuffix(".tar.xz") for path in ARCHIVES.glob("*.tar.xz"))


def unpack(name: str, folder: Path) -> Path:
    """Unpack the fixture NAME into `folder` and return the folder that holds team.yaml and home/."""
    target = folder / name
    with tarfile.open(ARCHIVES / f"{name}.tar.xz") as archive:
        archive.extractall(target, filter="data")
    _point(target, f"/srv/team/{name}", str(target))
    return target


def _point(folder: Path, old: str, new: str) -> None:
    for path in [*folder.glob("home/sweeps/*/*.json"), *folder.glob("home/spool/*.jsonl")]:
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    for path in folder.glob("home/spool/*.jsonl"):  # all was sent, and the count of its bytes has changed
        path.with_suffix(".sent").write_text(str(path.stat().st_size))
    connection = sqlite3.connect(folder / "home" / "mlflow.db")
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        for column in connection.execute(f"PRAGMA table_info('{table}')").fetchall():
            if column[2].upper().startswith(("VARCHAR", "TEXT", "CLOB")):
                connection.execute(f'UPDATE "{table}" SET "{column[1]}" = replace("{column[1]}", ?, ?)', (old, new))
    connection.commit()
    connection.close()
