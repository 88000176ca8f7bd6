"""Sweep on a cluster: start its machines, run the same command as a Ray job on the head, and fetch the results."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cluster.launcher import Cluster
from orchestrator.cluster.machines import EXPECTS_GPUS
from orchestrator.config import loader as config
from orchestrator.config.team import Team
from orchestrator.home import Home
from workers.config.extensions import is_reference
from workers.diagnostics.waiting import wait_until
from workers.errors import ConclaveError, UserInputError

NOT_READY, READY_SECONDS = "No available agent", 60.0  # answer of a head that has just started, and how long to retry
STOP_SECONDS = 30  # limit for a sweep to stop; Ray's default is three
AGENT_PORT = " If another process on the head uses port 52365, end it: the agent that starts jobs listens there."
FETCHED = (0, 1, 3, 130)  # exit codes of sweeps that leave results; a rejected sweep leaves none
TEAM_FOLDER = "team"  # of what the head gets: Ray lets each process import from the folder above, where no module may lie
HOME = "/mnt/conclave/runs"  # on the head, unless the cluster file says otherwise


@dataclass(frozen=True)
class RemoteSweep:
    """The options of one `conclave sweep --on`.

    Attributes:
        cluster: The cluster.
        home: The local home, to which the results are fetched.
        say: Shows a line to the user.
        data: A path on the cluster's shared disk, instead of data.root.
        head_home: The home on the head.
        restart: Members to train afresh.
    """

    cluster: Cluster
    home: Home
    say: Callable[[str], None]
    data: str | None = None
    head_home: str = HOME
    restart: tuple[str, ...] = ()


def sweep_on_cluster(team_file: Path, remote: RemoteSweep, ended: Callable[[], None] = lambda: None) -> int:
    """Sweep on a cluster. Ctrl-C stops the sweep there, so that it can be resumed, and is raised again.

    Args:
        team_file: The team file.
        remote: The options of the command.
        ended: Called at the end, also after an error, if machines may be running.

    Returns:
        The exit code of the sweep.

    Raises:
        UserInputError: On invalid input, before any machine starts.
    """
    team = config.load_team(team_file)
    team.check_names("--restart", remote.restart)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        bundle_team(team, team_file, folder / TEAM_FOLDER)
        try:
            remote.cluster.up()
            code = _run(team_file, folder, remote)
            if code in FETCHED:
                _fetch(team, remote)
        finally:
            ended()
    return code


def _run(team_file: Path, folder: Path, remote: RemoteSweep) -> int:
    with remote.cluster.tunnel() as address:
        env = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
        if remote.cluster.brings_gpus:
            env[EXPECTS_GPUS] = "1"
        job = _Job.submit(address, remote_command(f"{TEAM_FOLDER}/{team_file.name}", remote), folder, env)
        remote.say(f"submitted as {job.name}; `conclave attach {remote.cluster.path}` opens a shell there")
        try:
            asyncio.run(job.follow(remote.say))
        except KeyboardInterrupt:
            remote.say("stopping the sweep on the cluster; the same command resumes it")
            job.stop()
            raise
        return job.exit_code()


def _fetch(team: Team, remote: RemoteSweep) -> None:
    remote.cluster.fetch(f"{remote.head_home}/sweeps/{team.name}", remote.home.sweep(team.name).path)
    remote.say(f"fetched to {remote.home.sweep(team.name).path}")
    remote.say(f"MLflow UI: {remote.cluster.ui_command(remote.head_home)}, then http://127.0.0.1:5000")


def remote_command(team_file: str, remote: RemoteSweep) -> str:
    """Return the command line of the sweep on the head."""
    words = ["conclave", "sweep", team_file, "--home", remote.head_home]
    words += ["--data", remote.data] if remote.data else []
    words += [word for name in remote.restart for word in ("--restart", name)]
    return shlex.join(words)


def bundle_team(team: Team, team_file: Path, target: Path) -> None:
    """Copy the team file to `target`, with the custom modules and the files that it names, which must lie in its folder."""
    folder = team_file.resolve().parent
    target.mkdir()
    shutil.copyfile(team_file, target / team_file.name)
    for path in folder.glob("*.py"):
        shutil.copyfile(path, target / path.name)
    references = {*team.train.references, *(name for recipe in team.recipes for name in (recipe.arch, *recipe.references))}
    for package in {name.partition(":")[0].partition(".")[0] for name in references if is_reference(name)}:
        if (folder / package).is_dir():
            shutil.copytree(folder / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
    for key, file in _files_of(team):
        if not file.is_relative_to(folder):
            raise UserInputError(f"{key}: {file} lies outside {folder}; on a cluster it must be in the team file's folder.")
        if not file.is_file():
            raise UserInputError(f"{key}: {file} is not there.")
        copied = target / file.relative_to(folder)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copied)


def _files_of(team: Team) -> set[tuple[str, Path]]:
    """Return the files that a team file names, with their keys: weights, and the tables beside the data."""
    files = {("weights", recipe.weights) for recipe in team.recipes if recipe.weights and recipe.weights.is_absolute()}
    tables = {"data.split": team.data.split, "data.classes": team.data.classes}
    return files | {(key, path) for key, path in tables.items() if path}


@dataclass(frozen=True)
class _Job:
    """A job on the head's job server."""

    client: Any
    name: str

    @classmethod
    def submit(cls, address: str, entrypoint: str, folder: Path, env: dict[str, str]) -> _Job:
        from ray.job_submission import JobSubmissionClient

        client, runtime_env = JobSubmissionClient(address), {"working_dir": str(folder), "env_vars": env}
        until = time.monotonic() + READY_SECONDS
        while True:
            try:
                return cls(client, client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env))
            except RuntimeError as error:  # Ray's client raises it for every failed request
                hint = AGENT_PORT if NOT_READY in str(error) else ""
                if not hint or time.monotonic() >= until:
                    raise ConclaveError(f"the head took no job: {str(error).splitlines()[0]}{hint}") from None
            time.sleep(1.0)

    async def follow(self, say: Callable[[str], None]) -> None:
        """Show what the job prints, line by line, until it ends."""
        rest = ""
        async for text in self.client.tail_job_logs(self.name):
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                say(line)
        if rest:
            say(rest)

    def stop(self) -> None:
        """Stop the job, and wait until it has written its checkpoints: the machines may be terminated next."""
        self.client.stop_job(self.name)
        wait_until(lambda: self.client.get_job_status(self.name).is_terminal(), STOP_SECONDS)

    def exit_code(self) -> int:
        details = self.client.get_job_info(self.name)
        if details.driver_exit_code is not None:
            return int(details.driver_exit_code)
        raise ConclaveError(f"the job {self.name} ended as {details.status}: {details.message}")
