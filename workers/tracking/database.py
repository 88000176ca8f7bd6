"""MLflow's SQLite database in a file: made whole or not at all, migrated on a copy, and moved together with its folder.

MLflow makes its tables one by one, and never looks back: a process that is killed on the way, a full disk or a second process
leave a file that no later command can use.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

from workers.errors import ConclaveError, CorruptFileError, first_line
from workers.storage.files import UMASK, file_lock, sync_folder

SCHEME = "sqlite:///"
HOME_DATABASE = "mlflow.db"  # of a home
LOCK_SECONDS = 120.0  # for another process to make the database, which takes ten
BUSY_SECONDS = 30.0  # for a writer of another process
MADE_BY_MLFLOW = {"alembic_version", "experiments", "workspaces"}  # tables with a row of its own in a fresh database
PASSING = ("sqlite_", "_alembic_tmp_")  # with which names of SQLite's and Alembic's own tables begin


def path_of(uri: str) -> Path | None:
    """Return the file of a tracking store that is a SQLite database in a file, or None."""
    if not uri.startswith(SCHEME):
        return None
    name = unquote(uri.removeprefix(SCHEME).partition("?")[0])
    return Path(name) if name and name != ":memory:" else None


def uri_of(database: Path) -> str:
    """Return the tracking store that a SQLite database in a file is."""
    return f"{SCHEME}{database.absolute()}"


def artifacts_beside(database: Path) -> Path:
    """Return the folder that the artifacts of a database in a file go to."""
    return database.absolute().parent / "artifacts"


def ensure_database(database: Path) -> None:
    """Make the database, migrate it or re-point it, wherever that is needed. Several processes may call this at once.

    Args:
        database: The file.

    Raises:
        ConclaveError: If it cannot be made, or is no database of MLflow's.
    """
    try:
        if _is_current(database):
            return
        database.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(database.with_name(f".{database.name}.lock"), timeout=LOCK_SECONDS):
            if not _is_current(database):
                _make_current(database)
    except (OSError, sqlite3.Error) as error:
        if "locked" in str(error):
            raise ConclaveError(
                f"{database}: another program holds the database. End it, or wait until it is done, and run again."
            ) from None
        raise ConclaveError(
            f"{database}: the database can't be written ({error}). Make room, or let the folder be written to."
        ) from None


def _is_current(database: Path) -> bool:
    """Return whether a database has the tables of this MLflow, and its artifacts where it lies itself."""
    if not database.is_file():
        return False
    with _opened(database) as connection:
        return _revision(connection) == _newest_revision() and not _moved_locations(connection, database)


def _make_current(database: Path) -> None:
    """Make a database that `_is_current` says yes to. The caller holds the lock."""
    new = database.with_name(f".{database.name}.new")
    _remove(database.parent, new.name)  # what a process left that was killed
    is_worth_keeping = _is_worth_keeping(database)
    if is_worth_keeping and _is_migrated(database):
        _move_locations(database)
        return
    try:
        if is_worth_keeping:
            with _opened(database) as source, contextlib.closing(sqlite3.connect(new)) as target:
                source.backup(target)
        _migrate(new, database)
        new.chmod(0o666 & ~UMASK)  # SQLite lets nobody else write
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(database)
    finally:
        _remove(database.parent, new.name)
    for rest in ("-journal", "-wal", "-shm"):  # of what was there before, and no part of what is there now
        database.with_name(database.name + rest).unlink(missing_ok=True)
    sync_folder(database.parent)
    _move_locations(database)


def _remove(folder: Path, beginning: str) -> None:
    for path in folder.glob(f"{beginning}*"):
        path.unlink(missing_ok=True)


def _is_worth_keeping(database: Path) -> bool:
    """Return whether anybody put anything into a database, beside what MLflow puts in when it makes one.

    Raises:
        CorruptFileError: If it is not MLflow's; or it is, somebody put something in, and its tables were never finished.
    """
    if not database.exists():
        return False
    with _opened(database) as connection:
        tables = {table for table in _tables(connection) if not table.startswith(PASSING)}
        others = sorted(tables - _mlflows_tables())  # of a plugin, of accounts, of a newer MLflow; or it is no MLflow's at all
        if others and not {"experiments", "runs"} <= tables:
            raise CorruptFileError(
                f"{database}: this database is not MLflow's (it has the table {others[0]}), and is left as it is. "
                "Name another file for the tracking store."
            )
        filled = [table for table in tables - MADE_BY_MLFLOW if connection.execute(f'SELECT 1 FROM "{table}" LIMIT 1').fetchone()]
        has_experiments = "experiments" in tables and connection.execute("SELECT COUNT(*) FROM experiments").fetchone()[0] > 1
        is_used = bool(others or filled or has_experiments)
        if is_used and _revision(connection) is None:
            raise CorruptFileError(
                f"{database}: it holds runs, but its tables are not whole. Move it elsewhere: the next sweep makes a new one, "
                "and no training is lost."
            )
        return is_used


def _mlflows_tables() -> set[str]:
    """Return the names of the tables that MLflow makes, in this version and in earlier ones."""
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.model_registry.dbmodels import models as registry
    from mlflow.store.tracking.dbmodels import models as tracking
    from mlflow.store.workspace.dbmodels import models as workspaces

    assert all((registry, tracking, workspaces))  # importing them is what fills the metadata
    return {*Base.metadata.tables, "alembic_version"}


def _is_migrated(database: Path) -> bool:
    with _opened(database) as connection:
        return _revision(connection) == _newest_revision()


def _migrate(new: Path, database: Path) -> None:
    """Bring a database to the tables of this MLflow, or make them where the file is not there. It stands for `database`."""
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine(f"{SCHEME}{new.absolute()}")
    try:
        if utils._all_tables_exist(engine):
            utils._upgrade_db(engine)
        else:
            utils._initialize_tables(engine)
    except Exception as error:  # whatever SQLAlchemy and Alembic raise
        reason = first_line(getattr(error, "orig", None) or error)
        raise ConclaveError(
            f"{database}: MLflow's database can't be made ({reason}). Make room, or let the folder be written to."
        ) from None
    finally:
        engine.dispose()


def _newest_revision() -> str:
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


@contextlib.contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    """Open a database. Raises CorruptFileError where the file is none."""
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
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _revision(connection: sqlite3.Connection) -> str | None:
    """Return the revision of the tables, or None where they were never finished."""
    tables = _tables(connection)
    if "alembic_version" not in tables or "runs" not in tables:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else None


def _moved_locations(connection: sqlite3.Connection, database: Path) -> list[str]:
    """Return the folders of artifacts beside another place of this same database: it was moved or copied from there."""
    here = artifacts_beside(database)
    sought = """SELECT DISTINCT artifact_location FROM experiments e WHERE EXISTS (SELECT 1 FROM runs r JOIN tags t
        ON t.run_uuid = r.run_uuid WHERE r.experiment_id = e.experiment_id AND t.key = 'role' AND t.value = 'sweep')"""
    locations = [str(location) for (location,) in connection.execute(sought)]
    return [one for one in locations if _is_elsewhere(one, here)]


def _is_elsewhere(location: str, here: Path) -> bool:
    """Return whether a location is a folder that a home gave its experiment, of another home than this one."""
    place = urlparse(location)
    if place.scheme != "file":
        return False
    path = Path(unquote(place.path))
    return path.name == here.name and path != here and path.resolve() != here.resolve()


def _move_locations(database: Path) -> None:
    """Make everything that lies beside the database be sought there."""
    here = artifacts_beside(database).as_uri()
    with _opened(database) as connection, connection:
        for old in _moved_locations(connection, database):
            for table, column in (
                ("experiments", "artifact_location"),
                ("runs", "artifact_uri"),
                ("model_versions", "source"),
                ("model_versions", "storage_location"),
                ("logged_models", "artifact_location"),
            ):
                if table in _tables(connection):
                    change = f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                    values = (here, len(old) + 1, old, _as_pattern(old) + "/%")
                    connection.execute(f"{change} WHERE {column} = ? OR {column} LIKE ? ESCAPE '!'", values)


def _as_pattern(text: str) -> str:
    return text.replace("!", "!!").replace("%", "!%").replace("_", "!_")
