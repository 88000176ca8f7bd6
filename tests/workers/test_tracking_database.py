"""MLflow's database in a home: made whole or not at all, whoever comes in between; and moved with its home."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workers.errors import ConclaveError, CorruptFileError
from workers.storage.files import write_bytes
from workers.tracking import database
from workers.tracking.client import TrackingClient
from workers.tracking.database import HOME_DATABASE, artifacts_beside, ensure_database, path_of

MAKE = """
import sys
from workers.tracking.client import TrackingClient
print("begins", flush=True)
print(TrackingClient(sys.argv[1]).experiment("e", None), flush=True)
"""
LOG = """
import sys
from pathlib import Path
from workers.tracking.client import TrackingClient
uri, experiment, run, path = sys.argv[1:]
tracking = TrackingClient(uri, is_own=True)
for one in (run, tracking.create_run(experiment, "another", {})):
    tracking.log_artifact(one, Path(path))
"""


def uri_of(home: Path) -> str:
    return f"sqlite:///{home / 'mlflow.db'}"


def making(home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", MAKE, uri_of(home)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def left_over(home: Path) -> set[str]:
    return {path.name for path in home.iterdir()} - {"mlflow.db", ".mlflow.db.lock"}


def test_a_kill_while_it_is_made_leaves_a_home_that_works(tmp_path: Path) -> None:
    """At three moments from the first import to the last table."""
    for number in range(3):
        home = tmp_path / str(number)
        process = making(home)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.7 * number)
        process.kill()
        process.communicate()
        assert TrackingClient(uri_of(home)).experiment("e", None)
        assert not left_over(home)


def test_several_processes_make_one_database(tmp_path: Path) -> None:
    processes = [making(tmp_path) for _ in range(4)]
    answers = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, answers
    assert len({out for out, _ in answers}) == 1


@pytest.mark.parametrize("content", [b"no database at all, but some text that is longer than a header" * 99])
def test_a_file_that_is_no_database_is_named_and_left_alone(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"mlflow\.db: not a readable database"):
        ensure_database(tmp_path / "mlflow.db")
    assert (tmp_path / "mlflow.db").read_bytes() == content


def test_a_full_disk_is_said_in_a_sentence_and_nothing_is_left(tmp_path: Path) -> None:
    small = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    small += "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))"
    code = f"{small}\nfrom workers.tracking.database import ensure_database\nfrom pathlib import Path\n"
    code += "from workers.errors import ConclaveError\nimport sys\nimport workers.tracking.client\n"
    code += "try:\n    ensure_database(Path(sys.argv[1]))\nexcept ConclaveError as error:\n    print(error)\n"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "mlflow.db"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mlflow.db: MLflow can't use this database (" in done.stdout
    assert not (tmp_path / "mlflow.db").exists()
    assert not left_over(tmp_path)


def test_an_older_database_is_migrated_on_a_copy(tmp_path: Path) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase

    database = tmp_path / "mlflow.db"
    engine = utils.create_sqlalchemy_engine(f"sqlite:///{database}")
    InitialBase.metadata.create_all(engine)
    config = utils._get_alembic_config(f"sqlite:///{database}")
    older = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][3]
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, older)
    engine.dispose()
    with sqlite3.connect(database) as connection:
        connection.execute("INSERT INTO runs (run_uuid, name, lifecycle_stage) VALUES ('r', 'old', 'active')")
    before = database.stat().st_ino, database.read_bytes()
    with pytest.raises(ConclaveError, match="its tables are of another version of MLflow, and it is left as it is"):
        ensure_database(database)  # a team's, which a server of that version may have open
    assert (database.stat().st_ino, database.read_bytes()) == before
    ensure_database(database, is_own=True)
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT name FROM runs").fetchall() == [("old",)]
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() != (older,)
    assert not left_over(tmp_path)


@pytest.mark.parametrize("name", ["plain", "with a space", "a#b", "ümlaut"])
def test_a_home_that_is_moved_or_copied_writes_into_itself(name: str, tmp_path: Path) -> None:
    old, new = tmp_path / name / "old", tmp_path / name / "new"
    old.mkdir(parents=True)
    tracking = TrackingClient(uri_of(old))
    experiment = tracking.experiment("e", artifacts_beside(old / "mlflow.db"))
    run = tracking.create_run(experiment, "sweep", {"role": "sweep"})
    write_bytes(tmp_path / "a.txt", b"first")
    tracking.log_artifact(run, tmp_path / "a.txt")
    assert (old / "artifacts" / run / "artifacts" / "a.txt").read_bytes() == b"first"
    shutil.copytree(old, new)
    write_bytes(tmp_path / "b.txt", b"second")
    subprocess.run([sys.executable, "-c", LOG, uri_of(new), experiment, run, tmp_path / "b.txt"], check=True)
    assert len(list((new / "artifacts").rglob("b.txt"))) == 2
    assert not list(old.rglob("b.txt"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "a.txt", "b.txt"])
    shutil.rmtree(old)
    found = TrackingClient(uri_of(new)).download(run, "a.txt")
    assert found is not None
    assert found.read_bytes() == b"first"


def test_a_store_of_somebody_elses_stays_as_it_is(tmp_path: Path) -> None:
    tracking = TrackingClient(uri_of(tmp_path))
    experiment = tracking.experiment("e", tmp_path / "elsewhere" / "artifacts")
    tracking.create_run(experiment, "no sweep", {"role": "other"})
    ensure_database(tmp_path / "mlflow.db", is_own=True)
    location = TrackingClient(uri_of(tmp_path)).client.get_experiment(experiment).artifact_location
    assert location.endswith("/elsewhere/artifacts")


def test_files_of_tracking_stores() -> None:
    assert path_of("sqlite:////a/b%23c/m.db") == Path("/a/b#c/m.db")
    assert path_of("sqlite:////a/b c/m.db?timeout=3") == Path("/a/b c/m.db")
    assert path_of("sqlite:///:memory:") is None
    assert path_of("postgresql://x/y") is None
    with pytest.raises(ConclaveError, match=r"can't be used \(.*No such file"):
        ensure_database(Path("/proc/nowhere/mlflow.db"))


def test_a_database_that_another_program_holds_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    assert TrackingClient(uri_of(tmp_path)).experiment("e", None)
    with contextlib.closing(sqlite3.connect(tmp_path / HOME_DATABASE)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ConclaveError, match=r"mlflow\.db: another program holds the database\. End it, or wait"):
            TrackingClient(uri_of(tmp_path)).client.search_experiments()


def test_a_database_of_somebody_else_is_left_as_it_is(tmp_path: Path) -> None:
    """A tracking store may be named by mistake."""
    foreign = tmp_path / "app.db"
    with contextlib.closing(sqlite3.connect(foreign)) as connection, connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
        connection.execute("INSERT INTO customers VALUES ('Ada')")
    before = foreign.read_bytes()
    with pytest.raises(CorruptFileError, match="is not MLflow's \\(it has the table customers\\)"):
        ensure_database(foreign)
    assert foreign.read_bytes() == before


def test_a_migration_that_fails_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    ours = tmp_path / "mlflow.db"
    making(tmp_path).communicate(timeout=120)  # by another process: MLflow looks at the tables once per process
    with contextlib.closing(sqlite3.connect(ours)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (database._revisions()[9],))  # what follows is there
    before = ours.read_bytes()
    with pytest.raises(ConclaveError, match=r"mlflow\.db: MLflow's migration failed"):
        ensure_database(ours, is_own=True)
    assert ours.read_bytes() == before
    assert not left_over(tmp_path)


def test_a_database_of_a_newer_mlflow_is_left_as_it_is(tmp_path: Path) -> None:
    ours = tmp_path / "mlflow.db"
    ensure_database(ours)
    with contextlib.closing(sqlite3.connect(ours)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'of2030'")
    before = ours.read_bytes()
    with pytest.raises(ConclaveError, match=r"its tables are of a newer MLflow, and it is left as it is\. Install that version"):
        ensure_database(ours, is_own=True)
    assert ours.read_bytes() == before
