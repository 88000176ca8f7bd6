"""The sweep's runs in the tracking store: a parent, a child a member, its fold fits nested under it."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from orchestrator import plan
from orchestrator.home import Home, SweepFolder
from orchestrator.launch import Outcome
from orchestrator.plan import Plan, flatten
from orchestrator.search import Search, described
from orchestrator.team import Team
from workers.artifact import MemberArtifact
from workers.delivery import deliver, take
from workers.job import Job
from workers.spool import Spool
from workers.tracking import Tracking

AWAY_SECONDS = 30.0
SHOWN = 100  # jobs whose runs are made before any starts


@dataclass
class Runs:
    """Run ids are kept in sweep.json, so that a rerun continues them."""

    tracking: Tracking
    folder: SweepFolder
    team: Team
    todo: Plan
    experiment: str
    parent: str
    team_file: Path
    home: Home
    spool: Spool
    jobs: dict[str, str] = field(default_factory=dict)  # signature -> run id
    away_until: float = 0.0
    new: bool = False  # whether the store had none of this sweep

    @classmethod
    def open(cls, team_file: Path, todo: Plan, folder: SweepFolder, uri: str, home: Home, restart: Sequence[str] = ()) -> Runs:
        """Continue the sweep's runs, or create experiment and runs. The database is made here, by the driver alone."""
        team, tracking, state = todo.team, Tracking(uri), folder.state()
        known = state if state.get("tracking_uri") == uri and tracking.alive(state.get("parent_run_id")) else {}
        experiment = known.get("experiment_id") or tracking.experiment(team.tracking.experiment or team.name, _beside(uri))
        parent = known.get("parent_run_id") or tracking.start(
            experiment, team.name, {"team": team.name, "role": "sweep", "state": "running"}
        )
        name = f"sweep-{team.name}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"
        spool = Spool.of(home.path, name, uri)
        jobs = {**known["runs"], **tracking.tagged(str(experiment), "sweep", str(parent))} if known else {}
        runs = cls(tracking, folder, team, todo, str(experiment), str(parent), team_file, home, spool, jobs, new=not known)
        if not known:
            tracking.params(
                parent,
                flatten({"data": team.data.model_dump(mode="json"), "train": team.train.model_dump(mode="json")}),
            )
        Spool.tidy(home.path, runs.jobs.values())
        spool.artifact(parent, folder.team)
        for job in [job for name in restart for job in todo.of(name)]:
            runs._forget(job)
        runs._create_first()
        runs._save(state.get("fingerprint"))
        return runs

    def _forget(self, job: Job) -> None:
        """Of a fit that is to be trained afresh: its files, and every run that could be taken for it."""
        while run := self.tracking.finished_fit(self.experiment, job.signature):
            self.tracking.send([{"run": run, "tags": {"state": "restarted"}}])
        if run := self.jobs.pop(job.signature, None):
            self.tracking.send([{"run": run, "tags": {"state": "restarted"}}])
        MemberArtifact.of(job.home, job.signature).forget()

    def run(self, job: Job) -> str:
        """The job's run, made where there is none; members' before those of their fold fits, which are nested under them."""
        if job.signature not in self.jobs:
            self.jobs[job.signature] = self._create(job)
            if MemberArtifact.of(job.home, job.signature).done:
                self._publish(job, self.jobs[job.signature], "this home")
        return self.jobs[job.signature]

    def run_now(self, job: Job) -> str | None:
        """The same while jobs run. None where the store is away: the fit goes on untracked, and its run is made and filled at
        the end, or by the next sweep. Who was not answered asks nothing more for a while."""
        if job.signature not in self.jobs and time.monotonic() < self.away_until:
            return None
        try:
            return self.run(job)
        except Exception:  # whatever a network and a server can do
            self.away_until = time.monotonic() + AWAY_SECONDS
            return None

    def _create_first(self) -> None:
        """So that people see what waits; of a plan of thousands the other runs are made as their jobs start."""
        done = [job for job in self.todo.jobs if job.signature in self.todo.done]
        for job in (*done, *self.todo.jobs[:SHOWN]):
            self.run(job)

    def _create(self, job: Job) -> str:
        parent = self.parent if job.fold is None else self.run(self.todo.of(job.member.name)[0])
        tags = {
            "team": self.team.name,
            "member": job.member.name,
            "role": "student" if job.teachers else "member" if job.fold is None else "fold",
            "signature": job.signature,
            "sweep": self.parent,
            "state": "pending",
            "mlflow.note.content": f"**{job.label}**: {job.member.arch}, {job.member.optimizer.kind}, seed {job.seed}",
        }
        run = self.tracking.start(self.experiment, job.label, tags, parent)
        recipe = {"fold": job.fold, "fit_seed": job.seed, **job.member.model_dump(mode="json")}
        self.tracking.params(run, flatten({**recipe, "train": job.train.model_dump(mode="json")}), new=True)
        return run

    def _publish(self, job: Job, run: str, source: str) -> None:
        """Fill the run of a fit that was finished elsewhere."""
        artifact = MemberArtifact.of(job.home, job.signature)
        manifest = artifact.manifest()
        for epoch, metrics in enumerate(manifest["history"]):
            values = {k: v for k, v in metrics.items() if k != "time"}
            self.spool.metrics(run, values, epoch + 1, int(metrics["time"]))
        self.spool.artifact(run, artifact.folder, "fit")
        self.spool.tags(run, {"state": "done", "source": source, "weights_sha256": manifest["weights_sha256"]})
        last = int(manifest["history"][-1]["time"])
        self.spool.metrics(run, {"train_seconds": manifest["train_seconds"]}, 0, last)
        self.spool.status(run, "FINISHED", last)

    def adopt_elsewhere(self, todo: Plan) -> Plan:
        """Take finished fits that only the tracking store has; gives the plan with them done."""
        made = self.tracking.tagged(self.experiment, "state", "done") if todo.todo else {}
        for job in todo.todo:
            take(MemberArtifact.of(job.home, job.signature), self.tracking, made.get(job.signature))
        return replace(plan.make(todo.team, todo.store, todo.jobs[0].home, todo.jobs[0].import_paths), searched=todo.searched)

    def tell(self, search: Search) -> None:
        """A run for a search, and one nested under it for each of its trials; those that there are stay as they are."""
        if search.signature not in self.jobs:
            self.jobs[search.signature] = self._searched(search.signature, f"{search.label} search", self.parent)
        for name, trial in search.trials.items():
            if name in self.jobs or not trial.epochs:
                continue
            run = self.jobs[name] = self._searched(name, described(trial.choice), self.jobs[search.signature])
            self.tracking.params(run, trial.choice, new=True)
            for epoch, point in enumerate(trial.epochs):
                self.spool.metrics(run, {f"stop/{key}": value for key, value in point.items()}, epoch + 1, _now())
            self.spool.tags(run, {"state": trial.state})
            self.spool.status(run, "FAILED" if trial.state == "failed" else "FINISHED", _now())
        self.spool.status(self.jobs[search.signature], "FINISHED", _now())

    def _searched(self, signature: str, name: str, parent: str) -> str:
        tags = {"team": self.team.name, "role": "search", "signature": signature, "sweep": self.parent}
        return self.tracking.start(self.experiment, name, tags, parent)

    def gather(self, outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
        """Take the fits that machines with another disk made: their runs have them. Gives the outcomes, corrected. Runs that
        could not be made when their jobs started are."""
        corrected = dict(outcomes)
        for signature, one in outcomes.items():
            if one.kind != "done":
                continue
            run, artifact = self.run_now(one.job), MemberArtifact.of(one.job.home, signature)
            if not artifact.done and not take(artifact, self.tracking, run):
                why = "it was trained on a machine with another disk, and never came to the tracking store"
                corrected[signature] = Outcome(one.job, None, "failed", why)
        return corrected

    def by_signature(self) -> dict[str, str]:
        return self.jobs

    def begin(self) -> None:
        self._save()
        self.spool.status(self.parent, "RUNNING", _now())
        self.spool.tags(self.parent, {"state": "running"})

    def finish_members(self, todo: Plan, members: dict[str, dict[str, Any]]) -> None:
        for name, member in members.items():
            if member["state"] != "done" and (run := self.run_now(todo.of(name)[0])):
                self.spool.tags(run, {"state": member["state"], "reason": str(member["reason"])[:500]})
                self.spool.status(run, "FAILED", _now())

    def end(
        self,
        summary: dict[str, Any],
        folder: SweepFolder,
        details: dict[str, Any] | None = None,
    ) -> None:
        """Headline metrics, the report and the model on the parent run; the model in the registry."""
        from orchestrator.report import note

        self._headlines(summary)
        if details:
            for path in [*sorted(folder.path.glob("*.png")), folder.report, folder.model]:
                self.spool.artifact(self.parent, path)
            self._per_class(details)
            self.spool.model(self.parent, self.team.name, folder.model)
        tags = {"state": summary["state"], "recommended": str(summary["recommended"])}
        self.spool.tags(self.parent, {**tags, "mlflow.note.content": note(summary)[:8000]})
        self.spool.status(self.parent, "FAILED" if summary["state"] == "failed" else "FINISHED", _now())
        self._save(self.todo.fingerprint() if summary["state"] == "done" else None)

    def flush(self, seconds: float) -> int:
        """Send what this sweep has spooled, for about that long; gives how many entries stay for `conclave sync`."""
        until = time.monotonic() + seconds
        spools = [self.spool, *(Spool.at(self.home.path, run) for run in self.jobs.values())]
        with contextlib.suppress(Exception):  # away: it stays in the spool
            for spool in spools:
                deliver(spool, self.tracking, until)
        return sum(len(spool.unsent()) for spool in spools)

    def _headlines(self, summary: dict[str, Any]) -> None:
        values: dict[str, float] = {}
        for kind in ("members", "fusions"):
            for name, row in summary[kind].items():
                if row["test"]:
                    values |= {
                        f"{kind}/{name}/accuracy": row["test"]["accuracy"],
                        f"{kind}/{name}/nll": row["test"]["nll"],
                    }
        for name, member in {**summary["members"], "student": summary["student"]}.items():
            if member and member["test"]:
                scores = {f"test/{key}": value for key, value in member["test"].items()}
                job = self.todo.of(name)[0]
                fitted = MemberArtifact.of(job.home, job.signature).manifest()["history"][-1]["time"]
                if run := self.run_now(job):
                    self.spool.metrics(run, scores, 0, int(fitted))  # the same point in every sweep
        chosen = {**summary["members"], **summary["fusions"]}.get(summary["recommended"], {}).get("test")
        values |= {f"test/{key}": value for key, value in (chosen or {}).items()}
        self.spool.metrics(self.parent, values, 0, _now())

    def _per_class(self, details: dict[str, Any]) -> None:
        from workers.files import write_json

        for name, row in details["candidates"].items():
            jobs = self.todo.of(name)
            if jobs and "per_class" in row and (run := self.run_now(jobs[0])):
                path = self.folder.path / "per_class" / name / "per_class.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, dict(zip(details["classes"], row["per_class"], strict=True)))
                self.spool.artifact(run, path)

    def interrupted(self) -> None:
        self._stop("KILLED", "interrupted")

    def failed(self) -> None:
        self._stop("FAILED", "failed")

    def _stop(self, status: str, state: str) -> None:
        """End what would otherwise stay RUNNING for ever in the UI."""
        for job in self.todo.todo:
            if job.signature in self.jobs and not MemberArtifact.of(job.home, job.signature).done:
                self.spool.status(self.jobs[job.signature], status, _now())
        self.spool.tags(self.parent, {"state": state})
        self.spool.status(self.parent, status, _now())

    def _save(self, fingerprint: dict[str, Any] | None = None) -> None:
        self.folder.write(
            "sweep.json",
            {
                "team": self.team.name,
                "team_file": str(self.team_file.resolve()),
                "data": str(self.team.data.root) if self.team.data.root else None,
                "store": self.todo.store.folder.name,
                "tracking_uri": self.tracking.uri,
                "experiment_id": self.experiment,
                "parent_run_id": self.parent,
                "runs": self.jobs,
                "members": {m.name: [j.signature for j in self.todo.of(m.name)] for m in self.team.recipes},
                "fingerprint": fingerprint,
                "settings": self.todo.settings(),
            },
        )


def _beside(uri: str) -> Path | None:
    """Where artifacts go: beside a database that is a file, as in a home; a server says itself."""
    place = urlparse(uri)
    return Path(place.path[1:]).absolute().parent / "artifacts" if place.scheme == "sqlite" else None


def _now() -> int:
    return round(time.time() * 1000)
