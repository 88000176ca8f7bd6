"""How cost grows with members x folds: supervision on a Ray of several machines, tracking runs, plans; jobs that do nothing.

    python -m benchmarks.scaling [MEMBERS ...]        # results/scaling.json; 10, 100 and 1,000 members with 5 folds each

The machines are raylets of this one. What a fit takes is left out: it is the sum of the fits over the machines.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import write_result
from benchmarks.sweep import idle_trainer, planner_of, run_all
from orchestrator.cluster.private_folder import PrivateFolder
from orchestrator.home import Home
from orchestrator.planning.plan import Plan, Planner
from orchestrator.tracking.sweep_runs import SweepLocation, SweepRuns
from workers.tracking.client import TrackingClient

FOLDS, MACHINES = 5, 4
MEMBERS = (10, 100, 1000)


def machines() -> Any:
    """A head without a core for trainers, and workers of one core each."""
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(PrivateFolder.make().token)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(MACHINES):
        cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    return cluster


def tracked(planner: Planner, plan: Plan, home: Path) -> dict[str, float]:
    """Until the first job may start: runs of the first jobs, and a look for fits that the store has already."""
    folder = Home(home).sweep("t")
    folder.path.mkdir(parents=True)
    (home / "team.yaml").write_text("name: t\n")
    TrackingClient(Home(home).tracking_uri).client.search_experiments()  # makes the tables
    empty = (home / "mlflow.db").stat().st_size
    began = time.perf_counter()
    runs = SweepRuns.open(SweepLocation(home / "team.yaml", Home(home), folder, Home(home).tracking_uri), plan)
    opened = time.perf_counter()
    runs.import_remote()
    looked = time.perf_counter()
    size = (home / "mlflow.db").stat().st_size
    return {
        "open_seconds": opened - began,
        "run_ms": 1000 * (opened - began) / len(runs.ids),
        "look_ms_a_job": 1000 * (looked - opened) / len(plan.jobs),
        "database_kb_a_run": (size - empty) / 1000 / len(runs.ids),
    }


def measure(members: int, executor: Any) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as work:
        began = time.perf_counter()
        planner = planner_of(members, FOLDS, Path(work))
        plan = planner.plan()
        plan_seconds = time.perf_counter() - began
        began = time.perf_counter()
        ended = run_all(plan, executor)
        seconds = time.perf_counter() - began
        assert len(ended) == len(plan.jobs) == members * (1 + FOLDS)
        return {
            "jobs": len(plan.jobs),
            "plan_ms_a_job": 1000 * plan_seconds / len(plan.jobs),
            "supervised_ms_a_job": 1000 * seconds / len(plan.jobs),
            **tracked(planner, plan, Path(work)),
        }


def main() -> None:
    sizes = [int(word) for word in sys.argv[1:]] or MEMBERS
    cluster = machines()
    try:
        from orchestrator.cluster.connection import Connection
        from orchestrator.execution.ray_executor import RayExecutor

        connection = Connection(cluster.address)  # before anybody imports Ray, which reads its token's settings then
        from workers.runtime.actor import JobLocalizer

        executor = RayExecutor(connection, JobLocalizer())
        idle_trainer()
        measure(2, executor)  # the actors are there, and the database's tables were made once
        result = {str(members): measure(members, executor) for members in sizes}
        executor.close()
        executor.connection.close()
    finally:
        cluster.shutdown()
    write_result("scaling", "python -m benchmarks.scaling", {"folds": FOLDS, "machines": MACHINES, "members": result})
    for members, row in result.items():
        print(f"{members} members: " + ", ".join(f"{name} {value:.2f}" for name, value in row.items()))


if __name__ == "__main__":
    main()
