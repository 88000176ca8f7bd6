"""Create MLflow's SQLite database atomically; migrate a home's own on a copy, and update it after its folder was moved.

MLflow creates its tables one by one: a killed process, a full disk or a second process would leave a file that no later command
can use.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlparse

from workers.errors import ConclaveError, CorruptFileError, UserInputError, first_line
from workers.storage.files import UMASK, file_lock, sync_folder

SCHEME = "sqlite:///"
HOME_DATABASE = "mlflow.db"  # file name in a home
LOCK_SECONDS = 120.0  # wait for another process to create the database, which takes 10 s
BUSY_SECONDS = 30.0  # wait for another process to finish writing


def path_of(uri: str) -> Path | None:
    """Return the file of a SQLite tracking store, or None for any other store."""
    if not uri.startswith(SCHEME):
        return None
    name = unquote(uri.removeprefix(SCHEME).partition("?")[0])
    return Path(name) if name and name != ":memory:" else None


def uri_of(database: Path) -> str:
    """Return the tracking URI of a SQLite database file."""
    return f"{SCHEME}{database.absolute()}"


def check_folder(folder: Path, source: str) -> None:
    """Check that a SQLite file in a folder has an address. `source` names the folder's option or key.

    Raises:
        UserInputError: If the folder's path has a character that would end the address or be decoded.
    """
    if unusable := [letter for letter in "?%" if letter in str(folder)]:
        raise UserInputError(
            f"{source}: the address of a SQLite database can't hold the {unusable[0]!r} of {folder}. Rename that folder."
        )


def artifacts_beside(database: Path) -> Path:
    """Return the artifact folder of a database file."""
    return database.absolute().parent / "artifacts"


def ensure_database(database: Path, is_own: bool = False) -> None:
    """Create the database if there is none. Safe to call concurrently.

    Args:
        database: The file.
        is_own: Whether it is the home's own. Only that is migrated to this MLflow, and pointed to the artifact folder next to
            it: a server may have another one open, and an older MLflow could no longer use it.

    Raises:
        ConclaveError: If the file cannot be created, is not an MLflow database, or is another's and of an older MLflow.
    """
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        if not _is_ready(database):
            if not is_own and _has_tables(database):
                raise ConclaveError(
                    f"{database}: its tables are of another version of MLflow, and it is left as it is. Use that version; or end "
                    f"its server, make a copy of the file, and run `mlflow db upgrade {uri_of(database)}`."
                )
            with file_lock(database.with_name(f".{database.name}.lock"), timeout=LOCK_SECONDS):
                if not _is_ready(database):
                    _make(database)
        if is_own:
            with _opened(database) as connection, connection:
                for old in _moved_locations(connection, database):
                    _move_location(connection, old, artifacts_beside(database).as_uri())
    except (OSError, sqlite3.Error) as error:
        if "locked" in str(error):
            raise ConclaveError(
                f"{database}: another program holds the database. End it, or wait until it is done, and run again."
            ) from None
        raise ConclaveError(f"{database}: the database can't be used ({error}).{_advice(error)}") from None


def _advice(error: Exception) -> str:
    """Return what to do about an error of a file, as a sentence after a space; "" if its cause is not known."""
    number, text = getattr(error, "errno", None), str(error)
    if number in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in text:
        return " Free some disk space, and run again."
    if number in (errno.EACCES, errno.EPERM, errno.EROFS) or "readonly" in text or "unable to open" in text:
        return " Make the folder writable, or give another --home."
    return ""


def _has_tables(database: Path) -> bool:
    if not database.is_file() or not database.stat().st_size:
        return False
    with _opened(database) as connection:
        return bool(_tables(connection))


def _is_ready(database: Path) -> bool:
    """Return whether a database has the tables of this MLflow. Looks without MLflow, which would migrate it in place.

    Raises:
        CorruptFileError: If its tables are not MLflow's.
        ConclaveError: If they are of a newer MLflow.
    """
    if not database.is_file():
        return False
    with _opened(database) as connection:
        tables = sorted(_tables(connection))
        if not tables:
            return False
        if "alembic_version" not in tables:
            raise CorruptFileError(
                f"{database}: this database is not MLflow's (it has the table {tables[0]}), and is left as it is. "
                "Name another file for the tracking store."
            )
        revision = next((name for (name,) in connection.execute("SELECT version_num FROM alembic_version")), "")
    known = _revisions()
    if revision not in known:
        raise ConclaveError(f"{database}: its tables are of a newer MLflow, and it is left as it is. Install that version.")
    return revision == known[0]


@cache
def _revisions() -> tuple[str, ...]:
    """Return the revisions of the tables that this MLflow knows, the latest first."""
    from importlib.util import find_spec

    from alembic.script import ScriptDirectory

    package = find_spec("mlflow")
    assert package
    assert package.origin
    migrations = ScriptDirectory(str(Path(package.origin).parent / "store" / "db_migrations"))
    return tuple(script.revision for script in migrations.walk_revisions())


def _create(database: Path) -> None:
    """Let MLflow create its tables in a new file. Raises ConclaveError."""
    import mlflow

    try:
        mlflow.MlflowClient(uri_of(database)).search_experiments(max_results=1)
    except Exception as error:  # whatever SQLAlchemy and Alembic raise
        raise ConclaveError(f"{database}: MLflow can't use this database ({_reason(error)}).") from None


def _make(database: Path) -> None:
    """Create the database, or replace it by a migrated copy. The caller holds the lock."""
    new = database.with_name(f".{database.name}.new")
    _remove(new)  # left by a killed process
    try:
        if database.exists() and database.stat().st_size:
            with _opened(database) as source, contextlib.closing(sqlite3.connect(new)) as target:
                source.backup(target)
            _upgrade(new, database)
        else:
            _create(new)
        new.chmod(0o666 & ~UMASK)  # SQLite makes it writable only for its owner
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(database)
    except ConclaveError as error:  # its message names the temporary file
        raise ConclaveError(str(error).replace(str(new), str(database))) from None
    finally:
        _remove(new)
    sync_folder(database.parent)


def _upgrade(new: Path, database: Path) -> None:
    """Run MLflow's migration on a copy of a database."""
    command = [sys.executable, "-P", "-m", "mlflow", "db", "upgrade", uri_of(new)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConclaveError(f"{database}: MLflow's migration failed ({last[:200]}); the file is left as it is.")


def _remove(new: Path) -> None:
    for path in new.parent.glob(f"{new.name}*"):
        path.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return first_line(getattr(error, "orig", None) or error)[:200]


@contextlib.contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    """Open a database. Raises CorruptFileError if the file is not a database."""
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=BUSY_SECONDS)) as connection:
            yield connection
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
            raise
        raise CorruptFileError(
            f"{database}: not a readable database ({error}). Move it elsewhere: the next sweep makes a new one, and no training "
            "is lost."
        ) from None


def _tables(connection: sqlite3.Connection) -> set[str]:
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    return {name for (name,) in connection.execute(query)}


def _moved_locations(connection: sqlite3.Connection, database: Path) -> list[str]:
    """Return the artifact folders next to earlier locations of this database, if it was moved or copied."""
    here = artifacts_beside(database)
    query = """SELECT DISTINCT artifact_location FROM experiments e WHERE EXISTS (SELECT 1 FROM runs r JOIN tags t
        ON t.run_uuid = r.run_uuid WHERE r.experiment_id = e.experiment_id AND t.key = 'role' AND t.value = 'sweep')"""
    locations = [str(location) for (location,) in connection.execute(query)]
    return [location for location in locations if _is_elsewhere(location, here)]


def _is_elsewhere(location: str, here: Path) -> bool:
    """Return whether a location is the artifact folder of another home."""
    uri = urlparse(location)
    if uri.scheme != "file":
        return False
    path = Path(unquote(uri.path))
    return path.name == here.name and path != here and path.resolve() != here.resolve()


def _move_location(connection: sqlite3.Connection, old: str, new: str) -> None:
    """Replace an artifact folder's URI, and all paths below it, throughout the database."""
    for table, column in (
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("model_versions", "source"),
        ("model_versions", "storage_location"),
        ("logged_models", "artifact_location"),
    ):
        if table in _tables(connection):
            change = f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
            values = (new, len(old) + 1, old, _as_pattern(old) + "/%")
            connection.execute(f"{change} WHERE {column} = ? OR {column} LIKE ? ESCAPE '!'", values)


def _as_pattern(text: str) -> str:
    return text.replace("!", "!!").replace("%", "!%").replace("_", "!_")
