"""A sweep over two hosts that share a network and no disk, tracked on a third; and nobody gets in without token or password."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.hosts import MISSING, Hosts, available
from tests.faults.place import RESNET, Place, weights
from workers.data.store import Store, content_digest

RAY = (sys.executable, "-m", "ray.scripts.scripts")
PORT, TRACKING = 6391, "http://10.77.0.3:5000"
# A member is trained in a second: without labels, whichever host is up first would train both.
REMOTE = RESNET.replace("{name: a", "{name: a, resources: {labels: {host: head}}")
REMOTE = REMOTE.replace("seed: 5", "seed: 5, resources: {labels: {host: worker}}")
REMOTE += f"tracking: {{uri: '{TRACKING}'}}\nresources: {{cpus: 1}}\nretries: {{errors: 0}}\n"


@dataclass
class Lab:
    hosts: Hosts
    folder: Path  # seen by all: logs, token, the server's disk
    place: Place  # the driver's disk
    env: dict[str, str]
    password: str
    worker: subprocess.Popen[bytes] | None = None  # its Ray, which sees that host's own disk


def _wait(true: Callable[[], bool], what: str, log: Path, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"{what}:\n{log.read_text()}"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if not available():
        pytest.skip(MISSING)
    folder, session = (Path(tempfile.mkdtemp(prefix=prefix)) for prefix in ("ch-", "cr-"))
    (folder / "token").write_text(secrets.token_hex(32))
    (folder / "token").chmod(0o600)
    password = secrets.token_hex(12)
    place = Place(tmp_path_factory.mktemp("driver") / "p", REMOTE)
    env = {
        **os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0", "CONCLAVE_CACHE": str(place.folder / "cache"),
        "MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password, "MLFLOW_AUTH_ADMIN_PASSWORD": password,
    }  # fmt: skip
    hosts = Hosts("head", "worker", "tracking")
    try:
        words = [sys.executable, "-m", "conclave", "server", "--home", str(folder / "server"), "--host", "10.77.0.3"]
        hosts.start("tracking", [*words, "--allow", "10.77.0.3:5000"], env, folder / "server.log")
        shared = ["--block", "--num-cpus=1", "--object-store-memory=100000000"]
        head = ["--head", f"--port={PORT}", "--node-ip-address=10.77.0.1", f"--temp-dir={session}", "--labels=host=head"]
        hosts.start("head", [*RAY, "start", *shared, *head, "--include-dashboard=true"], env, folder / "head.log")
        made = Lab(hosts, folder, place, env, password)
        _wait(lambda: _code(made, "head", "http://127.0.0.1:8265/api/version") > 0, "the head", folder / "head.log")
        _wait(lambda: _code(made, "worker", f"{TRACKING}/health") == 200, "the tracking server", folder / "server.log")
        joined = [f"--address=10.77.0.1:{PORT}", "--node-ip-address=10.77.0.2", "--labels=host=worker"]
        made.worker = hosts.start(
            "worker", [*RAY, "start", *shared, *joined], env, folder / "worker.log", [place.folder, session]
        )
        _wait(lambda: "Ray runtime started" in (folder / "worker.log").read_text(), "the worker", folder / "worker.log")
        yield made
    finally:
        hosts.end()
        for path in (folder, session):
            shutil.rmtree(path, ignore_errors=True)


def test_a_sweep_runs_on_both_hosts_and_all_of_it_comes_back(lab: Lab, tmp_path: Path) -> None:
    reference = Place(tmp_path / "undisturbed", RESNET).sweep("--inline")
    out, log = lab.place.folder / "out.txt", lab.place.folder / "err.txt"
    words = [sys.executable, "-m", "conclave", "sweep", "team.yaml", "--home", "home", "--json"]
    command = ["sh", "-c", f'cd {lab.place.folder} && exec "$@" > {out} 2> {log}', "sh", *words, "--address", f"10.77.0.1:{PORT}"]
    process = lab.hosts.start("head", command, lab.env, lab.folder / "sweep.log")
    assert process.wait(timeout=400) == 0, log.read_text()
    summary = json.loads(out.read_text().splitlines()[-1])
    assert (summary["state"], summary["tracking_uri"]) == ("done", TRACKING)
    assert weights(summary) == weights(reference)
    assert lab.worker
    cache = Path(f"/proc/{lab.worker.pid}/root{lab.place.folder}/cache")  # as that host sees its own disk
    [fit] = cache.glob("home/jobs/*/fit/manifest.json")
    assert fit.parts[-3] in {path.parent.name for path in lab.place.home.glob("jobs/*/fit")}, "made there, and here now"
    [store] = cache.glob("data/[!.]*")
    assert content_digest(Store(store)) == store.name
    assert not (lab.place.folder / "cache").exists(), "the driver's host has the home itself"


def test_who_has_no_token_is_refused_by_ray(lab: Lab) -> None:
    (lab.folder / "other").write_text(secrets.token_hex(32))
    ask = [
        sys.executable,
        "-c",
        f"import ray; print(ray._raylet.GcsClient(address='10.77.0.1:{PORT}').internal_kv_keys(b'', None))",
    ]
    assert lab.hosts.run("worker", ask, lab.env).returncode == 0
    for stranger in ({"RAY_AUTH_TOKEN_PATH": str(lab.folder / "other")}, {"RAY_AUTH_MODE": "disabled"}):
        found = lab.hosts.run("worker", ask, {**lab.env, **stranger})
        assert found.returncode != 0
        assert "nauthenticated" in found.stderr or "token" in found.stderr.lower(), found.stderr


def test_who_has_no_token_is_refused_by_the_job_server(lab: Lab) -> None:
    token = (lab.folder / "token").read_text()
    assert _code(lab, "head", "http://127.0.0.1:8265/api/jobs/", "Authorization: Bearer " + token) == 200
    assert _code(lab, "head", "http://127.0.0.1:8265/api/jobs/") == 401
    assert _code(lab, "worker", "http://10.77.0.1:8265/api/jobs/", "Authorization: Bearer " + token) == 0, "not even there"


def test_who_has_no_password_is_refused_by_the_tracking_server(lab: Lab) -> None:
    url = f"{TRACKING}/api/2.0/mlflow/experiments/search?max_results=1"
    right = base64.b64encode(f"admin:{lab.password}".encode()).decode()
    assert _code(lab, "worker", url, f"Authorization: Basic {right}") == 200
    assert _code(lab, "worker", url, f"Authorization: Basic {base64.b64encode(b'admin:guess').decode()}") == 401
    assert _code(lab, "worker", url) == 401


def _code(lab: Lab, host: str, url: str, *headers: str) -> int:
    """The HTTP status; 0 where nobody answers."""
    asked = [word for header in headers for word in ("-H", header)]
    return int(lab.hosts.run(host, ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *asked, url], lab.env).stdout)
