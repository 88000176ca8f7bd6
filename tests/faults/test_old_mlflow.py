"""A tracking store of an older MLflow, whose server runs, is left as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request

import pytest

from tests.faults.mlflow_server import free_port
from tests.faults.place import Place
from tests.old_packages import environment_with
from workers.diagnostics.waiting import wait_until

OLD = ("mlflow==2.16.2", "sqlalchemy<2.1")  # with what is installed for the present one


@pytest.fixture(scope="module")
def old_mlflow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process in which `import mlflow` is the old one."""
    return environment_with(OLD, tmp_path_factory.mktemp("old"))


def test_a_database_whose_server_is_of_an_older_mlflow_is_never_migrated(old_mlflow: dict[str, str], place: Place) -> None:
    database, port = place.folder / "team.db", free_port()
    make = ["-c", f"import mlflow; mlflow.MlflowClient('sqlite:///{database}').create_experiment('theirs')"]
    subprocess.run([sys.executable, *make], env=old_mlflow, check=True, capture_output=True)
    serve = ["-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}", "--port", str(port), "--workers", "1"]
    with (place.folder / "old.log").open("wb") as log:
        server = subprocess.Popen([sys.executable, *serve], env=old_mlflow, stdout=log, stderr=log, start_new_session=True)
    try:
        assert wait_until(lambda: _answers(port), 90), (place.folder / "old.log").read_text()
        before = database.stat().st_ino, database.read_bytes()
        place.write(place.text + "tracking: {uri: sqlite:///team.db}\n")
        place.sweep("--inline", code=2)
        assert "its tables are of another version of MLflow, and it is left as it is" in place.said()
        assert f"`mlflow db upgrade sqlite:///{database}`" in place.said()
        assert (database.stat().st_ino, database.read_bytes()) == before
        assert not list(place.home.glob("jobs/*"))
        address = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/create"
        request = urllib.request.Request(address, b'{"name": "more"}', {"Content-Type": "application/json"})
        assert "experiment_id" in json.loads(urllib.request.urlopen(request, timeout=30).read()), "it still reads and writes"
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
    except OSError:
        return False
    return True
