"""What orchestration costs: supervision of jobs that do nothing, plans, status, and how long commands take to begin.

python -m benchmarks.sweep            # results/sweep.json, and figures on screen
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import describe, median_seconds, write_result
from benchmarks.simulated import SimulatedExecutor
from orchestrator.config import loader as config
from orchestrator.config import yaml_document as teamfile
from orchestrator.execution.executor import Executor
from orchestrator.execution.job_outcomes import Outcome
from orchestrator.execution.scheduler import Scheduler
from orchestrator.home import Home
from orchestrator.planning.plan import Plan, Planner
from orchestrator.results import SweepState
from tests.factories import FakeStore
from workers.runtime.heartbeat import Heartbeat

ROUNDS = 3
SLOTS, JOBS, SECONDS = 16, 10_000, 1.0  # of the supervision that is simulated
IMPORTS = "import typer, rich, pydantic, ruamel.yaml"
TEAM = """\
version: 1
name: bench
data: {dataset: digits, folds: 0}
train: {epochs: 1, batch_size: 64}
defaults: {width: 4}
members: [{name: a}, {name: b}]
"""
GOALS = {
    "no_op_jobs_a_second": 50,
    "simulated_over_bound": 1.03,
    "a_job_at_1000_over_100": 1.0,
    "plan_of_10000_seconds": 2.0,
    "status_of_1000_seconds": 2.0,
    "help_over_imports": 1.4,
    "validate_seconds": 1.0,
    "plan_seconds": 1.0,
    "start_existing_home_seconds": 8.0,
    "start_new_home_seconds": 25.0,
    "nothing_to_do_seconds": 6.0,
}


def planner_of(members: int, folds: int, home: Path) -> Planner:
    text = f"name: t\ndata: {{folds: {folds}}}\nmembers: [{{name: m, count: {members}}}]\n"
    team = config.resolve_team(teamfile.parse_document(text, Path("/nowhere/team.yaml")))
    return Planner(team, FakeStore(home / "store"), home)


def planned(members: int, folds: int, home: Path) -> Plan:
    return planner_of(members, folds, home).plan()


def idle_trainer() -> Any:
    """An actor class that finds every job done, in the place of the trainer."""
    import ray

    from workers.runtime import actor
    from workers.runtime.job_result import JobResult

    @ray.remote(max_restarts=0, max_concurrency=3)
    class Idle:
        def __init__(self, *arguments: Any) -> None: ...

        def run(self, *arguments: Any) -> JobResult:
            return JobResult()

        def heartbeat(self) -> Heartbeat:
            return Heartbeat(os.getpid(), ray.get_runtime_context().get_node_id(), 0, {}, [], 0)

        def stop(self) -> None: ...

    actor.TrainerActor = Idle  # type: ignore[misc, assignment]
    return Idle


def run_all(plan: Plan, executor: Executor) -> dict[str, Outcome]:
    """Run the jobs of a plan, without a tracking store."""
    return Scheduler(executor, plan.team.retries, lambda event: None).run(plan.jobs)


def no_ops() -> dict[str, Any]:
    """Jobs a second through the scheduler and Ray actors, beside a bare pool of two actors; interleaved."""
    from orchestrator.cluster.connection import Connection
    from orchestrator.execution.ray_executor import RayExecutor

    connection = Connection(None)  # before anybody imports Ray, which reads its token's settings then
    import ray

    from workers.runtime.actor import JobLocalizer

    executor = RayExecutor(connection, JobLocalizer())

    idle = idle_trainer()
    rates: dict[str, list[float]] = {"pool of two actors": [], "100": [], "1000": []}
    with tempfile.TemporaryDirectory() as work:
        plans = {count: planned(count, 0, Path(work)) for count in (10, 100, 1000)}
        run_all(plans[10], executor)
        pool = [idle.remote() for _ in range(2)]
        ray.get([actor.run.remote() for actor in pool])
        for _ in range(ROUNDS):
            began = time.perf_counter()
            list(ray.util.ActorPool(pool).map_unordered(lambda actor, job: actor.run.remote(job, None), plans[1000].jobs))
            rates["pool of two actors"].append(1000 / (time.perf_counter() - began))
            for count in (*[100] * 5, 1000, *[100] * 5):  # as many jobs of either kind
                began = time.perf_counter()
                ended = run_all(plans[count], executor)
                rates[str(count)].append(count / (time.perf_counter() - began))
                assert len(ended) == count
        executor.close()
        executor.connection.close()
    medians = {name: median(values) for name, values in rates.items()}
    return {
        "no_op_jobs_a_second": medians["1000"],
        "pool_of_two_actors_a_second": medians["pool of two actors"],
        "a_job_at_1000_over_100": medians["100"] / medians["1000"],
    }


def simulated() -> dict[str, float]:
    """The makespan of jobs of a second each, with all that the scheduler really takes for them, over the least there can be."""
    with tempfile.TemporaryDirectory() as work:
        plan = planned(JOBS // 10, 9, Path(work))
    bound = JOBS / SLOTS * SECONDS
    makespans = []
    for _ in range(ROUNDS):
        executor = SimulatedExecutor(SLOTS, SECONDS)
        assert len(run_all(plan, executor)) == JOBS
        makespans.append(executor.now)
    return {"simulated_over_bound": median(makespans) / bound, "simulated_bound_seconds": bound}


def plans() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as work:
        return {"plan_of_10000_seconds": _seconds(lambda: planned(1000, 9, Path(work)))}


def commands() -> dict[str, float]:
    """Whole commands, processes and all."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        (folder / "team.yaml").write_text(TEAM)
        seconds = {
            "imports_seconds": _seconds(lambda: _python("-c", IMPORTS, cwd=folder)),
            "help_seconds": _seconds(lambda: _conclave("--help", cwd=folder)),
            "validate_seconds": _seconds(lambda: _conclave("validate", "team.yaml", cwd=folder)),
            "start_new_home_seconds": _start(folder),
            "nothing_to_do_seconds": _seconds(lambda: _conclave("sweep", "team.yaml", "--home", "home", cwd=folder)),
            "plan_seconds": _seconds(lambda: _conclave("plan", "team.yaml", "--home", "home", cwd=folder)),
        }
        starts = []
        for number in range(ROUNDS):
            (folder / "team.yaml").write_text(TEAM.replace("name: b", f"name: c{number}"))
            starts.append(_start(folder))
        seconds["start_existing_home_seconds"] = median(starts)
        seconds["status_of_1000_seconds"] = _status(folder)
    return {**seconds, "help_over_imports": seconds["help_seconds"] / seconds["imports_seconds"]}


def _start(folder: Path) -> float:
    """From the command to the first step of the first fit."""
    before = {p.parent.parent for p in folder.glob("home/jobs/*/fit/manifest.json")}
    began = time.time()
    _conclave("sweep", "team.yaml", "--home", "home", cwd=folder)
    new = [p for p in folder.glob("home/jobs/*/fit/manifest.json") if p.parent.parent not in before]
    first = [json.loads(path.read_text())["history"][0] for path in new]
    return float(min(epoch["time"] / 1000 - epoch["seconds"] for epoch in first) - began)


def _status(folder: Path) -> float:
    """Over 1,000 members whose fits are done, as far as a home shows it."""
    home = folder / "large"
    plan = planned(1000, 0, home)
    for planned_member in plan.members:
        fit = planned_member.artifact.folder
        fit.mkdir(parents=True)
        (fit / "manifest.json").write_text("{}")
    members = {one.member.name: [one.signature] for one in plan.members}
    Home(home).sweep("t").team.parent.mkdir(parents=True)
    state = SweepState(
        team="t", team_file="t.yaml", store="", tracking_uri="", experiment_id="", parent_run_id="", runs={}, members=members
    )
    Home(home).sweep("t").keep(state)
    return _seconds(lambda: _conclave("status", "t", "--home", "large", cwd=folder))


def _python(*words: str, cwd: Path) -> None:
    subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, check=True)


def _conclave(*words: str, cwd: Path) -> None:
    _python("-m", "conclave", *words, cwd=cwd)


def _seconds(work: Callable[[], object]) -> float:
    return median_seconds(work, ROUNDS)


def main() -> None:
    result = {**plans(), **simulated(), **commands(), **no_ops()}
    write_result("sweep", "python -m benchmarks.sweep", {**result, "goals": GOALS})
    for name, value in result.items():
        print(f"{name:32} {value:10.3f}   {f'goal {GOALS[name]:g}' if name in GOALS else ''}")
    print(json.dumps(describe()))


if __name__ == "__main__":
    main()
