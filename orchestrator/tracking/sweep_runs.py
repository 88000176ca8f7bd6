"""The runs of a sweep in the tracking store: a parent, a child for each member, and fold trainings nested under their member."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from orchestrator.config.team import Team
from orchestrator.execution.executor import Outcome
from orchestrator.home import Home, SweepFolder
from orchestrator.planning.plan import Plan, Planner, flatten
from orchestrator.planning.search import Search, describe_choice
from workers.config.job import Job
from workers.storage.artifacts import MemberArtifact
from workers.storage.files import write_json
from workers.tracking.client import TrackingClient
from workers.tracking.delivery import download_training, flush_outbox
from workers.tracking.outbox import Outbox

AWAY_SECONDS = 30.0  # for which a store that did not answer is asked nothing more
FIRST_RUNS = 100  # jobs whose runs are created before any starts
NOTE_CHARACTERS = 8000
REASON_CHARACTERS = 500


@dataclass(frozen=True)
class SweepPlace:
    """Where a sweep comes from, and where it goes.

    Attributes:
        team_file: The team file.
        home: The home.
        folder: The sweep's folder.
        uri: The tracking store.
    """

    team_file: Path
    home: Home
    folder: SweepFolder
    uri: str


@dataclass
class SweepRuns:
    """The runs of one sweep. Their ids are kept in sweep.json, so that a rerun continues them.

    Attributes:
        tracking: The tracking store.
        place: Where the sweep comes from and goes.
        plan: The plan.
        experiment: Id of the experiment.
        parent: Id of the parent run.
        outbox: The sweep's own outbox.
        ids: Run ids by the signature of the job.
        away_until: A time.monotonic() until which a store that did not answer is asked nothing more.
        is_new: Whether the store had no run of this sweep.
    """

    tracking: TrackingClient
    place: SweepPlace
    plan: Plan
    experiment: str
    parent: str
    outbox: Outbox
    ids: dict[str, str] = field(default_factory=dict)
    away_until: float = 0.0
    is_new: bool = False

    @classmethod
    def open(cls, place: SweepPlace, plan: Plan, restart: Sequence[str] = ()) -> SweepRuns:
        """Continue the sweep's runs, or create the experiment and the runs. Only the driver creates the database.

        Args:
            place: Where the sweep comes from and goes.
            plan: The plan.
            restart: Members to train afresh.

        Raises:
            ConclaveError: If the store is away, or its experiment was deleted.
        """
        team, tracking, state = plan.team, TrackingClient(place.uri), place.folder.state()
        is_known = state.get("tracking_uri") == place.uri and tracking.has_run(state.get("parent_run_id"))
        known = state if is_known else {}
        name = team.tracking.experiment or team.name
        experiment = str(known.get("experiment_id") or tracking.experiment(name, _artifacts_beside(place.uri)))
        tags = {"team": team.name, "role": "sweep", "state": "running"}
        parent = str(known.get("parent_run_id") or tracking.create_run(experiment, team.name, tags))
        outbox_name = f"sweep-{team.name}-{hashlib.sha256(place.uri.encode()).hexdigest()[:8]}"
        outbox = Outbox.open(place.home.path, outbox_name, place.uri)
        ids = {**known["runs"], **tracking.runs_with_tag(experiment, "sweep", parent)} if known else {}
        runs = cls(tracking, place, plan, experiment, parent, outbox, ids, is_new=not known)
        if not known:
            settings = {"data": team.data.model_dump(mode="json"), "train": team.train.model_dump(mode="json")}
            tracking.log_params(parent, flatten(settings))
        Outbox.remove_leftovers(place.home.path, runs.ids.values())
        outbox.artifact(parent, place.folder.team)
        for job in [job for member in restart for job in plan.jobs_of(member)]:
            runs._restart(job)
        runs._create_first_runs()
        runs._save(state.get("fingerprint"))
        return runs

    @property
    def team(self) -> Team:
        """The team."""
        return self.plan.team

    def _restart(self, job: Job) -> None:
        """Delete a training that is to be trained afresh: its files, and every run that could be taken for it."""
        while run := self.tracking.find_training(self.experiment, job.signature):
            self.tracking.send([{"run": run, "tags": {"state": "restarted"}}])
        if run := self.ids.pop(job.signature, None):
            self.tracking.send([{"run": run, "tags": {"state": "restarted"}}])
        MemberArtifact.in_home(job.home, job.signature).delete()

    def run_id(self, job: Job) -> str:
        """Return the job's run, created where there is none. A member's run comes before those of its fold trainings."""
        if job.signature not in self.ids:
            self.ids[job.signature] = self._create_run(job)
            if MemberArtifact.in_home(job.home, job.signature).done:
                self._publish(job, self.ids[job.signature], "this home")
        return self.ids[job.signature]

    def run_id_or_none(self, job: Job) -> str | None:
        """Return the job's run while jobs run, or None where the store is away.

        The training goes on untracked then. Its run is created and filled at the end, or by the next sweep.
        """
        if job.signature not in self.ids and time.monotonic() < self.away_until:
            return None
        try:
            return self.run_id(job)
        except Exception:  # whatever a network and a server can do
            self.away_until = time.monotonic() + AWAY_SECONDS
            return None

    def _create_first_runs(self) -> None:
        """Create runs, so that people see what waits. In a plan of thousands the others are created as their jobs start."""
        done = [job for job in self.plan.jobs if job.signature in self.plan.done]
        for job in (*done, *self.plan.jobs[:FIRST_RUNS]):
            self.run_id(job)

    def _create_run(self, job: Job) -> str:
        parent = self.parent if job.fold is None else self.run_id(self.plan.jobs_of(job.member.name)[0])
        tags = {
            "team": self.team.name,
            "member": job.member.name,
            "role": "student" if job.teachers else "member" if job.fold is None else "fold",
            "signature": job.signature,
            "sweep": self.parent,
            "state": "pending",
            "mlflow.note.content": f"**{job.label}**: {job.member.arch}, {job.member.optimizer.kind}, seed {job.seed}",
        }
        run = self.tracking.create_run(self.experiment, job.label, tags, parent)
        recipe = {"fold": job.fold, "fit_seed": job.seed, **job.member.model_dump(mode="json")}
        self.tracking.log_params(run, flatten({**recipe, "train": job.train.model_dump(mode="json")}), is_new=True)
        return run

    def _publish(self, job: Job, run: str, source: str) -> None:
        """Fill the run of a training that was finished elsewhere."""
        artifact = MemberArtifact.in_home(job.home, job.signature)
        manifest = artifact.manifest()
        for epoch, metrics in enumerate(manifest["history"]):
            values = {k: v for k, v in metrics.items() if k != "time"}
            self.outbox.metrics(run, values, epoch + 1, int(metrics["time"]))
        self.outbox.artifact(run, artifact.folder, "fit")
        self.outbox.tags(run, {"state": "done", "source": source, "weights_sha256": manifest["weights_sha256"]})
        last_ms = int(manifest["history"][-1]["time"])
        self.outbox.metrics(run, {"train_seconds": manifest["train_seconds"]}, 0, last_ms)
        self.outbox.status(run, "FINISHED", last_ms)

    def import_remote_trainings(self, planner: Planner, plan: Plan) -> Plan:
        """Download finished trainings that only the tracking store has; return the plan with them done."""
        runs = self.tracking.runs_with_tag(self.experiment, "state", "done") if plan.todo else {}
        for job in plan.todo:
            artifact = MemberArtifact.in_home(job.home, job.signature)
            download_training(artifact, self.tracking, runs.get(job.signature))
        return replace(planner.plan(), searched=plan.searched)

    def log_search(self, search: Search) -> None:
        """Create a run for a search, and a run nested under it for each of its trials. Those that are there stay as they are."""
        if search.signature not in self.ids:
            self.ids[search.signature] = self._create_search_run(search.signature, f"{search.label} search", self.parent)
        for name, trial in search.trials.items():
            if name in self.ids or not trial.epochs:
                continue
            run = self.ids[name] = self._create_search_run(name, describe_choice(trial.choice), self.ids[search.signature])
            self.tracking.log_params(run, trial.choice, is_new=True)
            for epoch, point in enumerate(trial.epochs):
                self.outbox.metrics(run, {f"stop/{key}": value for key, value in point.items()}, epoch + 1, _now_ms())
            self.outbox.tags(run, {"state": trial.state})
            self.outbox.status(run, "FAILED" if trial.state == "failed" else "FINISHED", _now_ms())
        self.outbox.status(self.ids[search.signature], "FINISHED", _now_ms())

    def _create_search_run(self, signature: str, name: str, parent: str) -> str:
        tags = {"team": self.team.name, "role": "search", "signature": signature, "sweep": self.parent}
        return self.tracking.create_run(self.experiment, name, tags, parent)

    def collect_trainings(self, outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
        """Download the trainings of machines with another disk, and create runs that could not be created before.

        Args:
            outcomes: What became of the jobs, by signature.

        Returns:
            The outcomes, corrected for trainings that never arrived.
        """
        corrected = dict(outcomes)
        for signature, outcome in outcomes.items():
            if outcome.kind != "done":
                continue
            run, artifact = self.run_id_or_none(outcome.job), MemberArtifact.in_home(outcome.job.home, signature)
            if not artifact.done and not download_training(artifact, self.tracking, run):
                why = "it was trained on a machine with another disk, and never came to the tracking store"
                corrected[signature] = Outcome(outcome.job, None, "failed", why)
        return corrected

    def start(self) -> None:
        """Mark the sweep as running."""
        self._save()
        self.outbox.status(self.parent, "RUNNING", _now_ms())
        self.outbox.tags(self.parent, {"state": "running"})

    def mark_failed_members(self, members: dict[str, dict[str, Any]]) -> None:
        """Mark the runs of members that are not done. `members` holds their states, from `member_states`."""
        for name, member in members.items():
            if member["state"] != "done" and (run := self.run_id_or_none(self.plan.jobs_of(name)[0])):
                self.outbox.tags(run, {"state": member["state"], "reason": str(member["reason"])[:REASON_CHARACTERS]})
                self.outbox.status(run, "FAILED", _now_ms())

    def finish(self, summary: dict[str, Any], note: str, details: dict[str, Any] | None = None) -> None:
        """Put headline metrics, the report and the model on the parent run, and the model into the registry.

        Args:
            summary: The sweep's summary.
            note: Markdown for the run's page.
            details: What the fusion step returned; None where nothing was fused.
        """
        folder = self.place.folder
        self._log_headlines(summary)
        if details:
            for path in [*sorted(folder.path.glob("*.png")), folder.report, folder.model]:
                self.outbox.artifact(self.parent, path)
            self._log_per_class(details)
            self.outbox.model(self.parent, self.team.name, folder.model)
        tags = {"state": summary["state"], "recommended": str(summary["recommended"])}
        self.outbox.tags(self.parent, {**tags, "mlflow.note.content": note[:NOTE_CHARACTERS]})
        self.outbox.status(self.parent, "FAILED" if summary["state"] == "failed" else "FINISHED", _now_ms())
        self._save(self.plan.fingerprint() if summary["state"] == "done" else None)

    def flush(self, seconds: float) -> int:
        """Send this sweep's entries for about `seconds`; return how many stay for `conclave sync`."""
        until = time.monotonic() + seconds
        outboxes = [self.outbox, *(Outbox.in_home(self.place.home.path, run) for run in self.ids.values())]
        with contextlib.suppress(Exception):  # away: they stay in the outbox
            for outbox in outboxes:
                flush_outbox(outbox, self.tracking, until)
        return sum(len(outbox.unsent()) for outbox in outboxes)

    def _log_headlines(self, summary: dict[str, Any]) -> None:
        values: dict[str, float] = {}
        for kind in ("members", "fusions"):
            for name, row in summary[kind].items():
                if row["test"]:
                    values |= {f"{kind}/{name}/{score}": row["test"][score] for score in ("accuracy", "nll")}
        for name, member in {**summary["members"], "student": summary["student"]}.items():
            if member and member["test"]:
                job = self.plan.jobs_of(name)[0]
                last_epoch = MemberArtifact.in_home(job.home, job.signature).manifest()["history"][-1]
                if run := self.run_id_or_none(job):
                    scores = {f"test/{key}": value for key, value in member["test"].items()}
                    self.outbox.metrics(run, scores, 0, int(last_epoch["time"]))  # the same point in every sweep
        recommended = {**summary["members"], **summary["fusions"]}.get(summary["recommended"], {}).get("test")
        values |= {f"test/{key}": value for key, value in (recommended or {}).items()}
        self.outbox.metrics(self.parent, values, 0, _now_ms())

    def _log_per_class(self, details: dict[str, Any]) -> None:
        for name, row in details["candidates"].items():
            jobs = self.plan.jobs_of(name)
            if jobs and "per_class" in row and (run := self.run_id_or_none(jobs[0])):
                path = self.place.folder.per_class(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, dict(zip(details["classes"], row["per_class"], strict=True)))
                self.outbox.artifact(run, path)

    def mark_interrupted(self) -> None:
        """Mark the sweep and its unfinished jobs as interrupted."""
        self._stop("KILLED", "interrupted")

    def mark_failed(self) -> None:
        """Mark the sweep and its unfinished jobs as failed."""
        self._stop("FAILED", "failed")

    def _stop(self, status: str, state: str) -> None:
        """End runs that would otherwise stay RUNNING for ever in the UI."""
        for job in self.plan.todo:
            if job.signature in self.ids and not MemberArtifact.in_home(job.home, job.signature).done:
                self.outbox.status(self.ids[job.signature], status, _now_ms())
        self.outbox.tags(self.parent, {"state": state})
        self.outbox.status(self.parent, status, _now_ms())

    def _save(self, fingerprint: dict[str, Any] | None = None) -> None:
        self.place.folder.write(
            "sweep.json",
            {
                "team": self.team.name,
                "team_file": str(self.place.team_file.resolve()),
                "data": str(self.team.data.root) if self.team.data.root else None,
                "store": self.plan.store.folder.name,
                "tracking_uri": self.tracking.uri,
                "experiment_id": self.experiment,
                "parent_run_id": self.parent,
                "runs": self.ids,
                "members": {m.name: [j.signature for j in self.plan.jobs_of(m.name)] for m in self.team.recipes},
                "fingerprint": fingerprint,
                "settings": self.plan.settings(),
            },
        )


def _artifacts_beside(uri: str) -> Path | None:
    """Return where artifacts go: beside a database that is a file, as in a home; a server decides for itself."""
    place = urlparse(uri)
    return Path(place.path[1:]).absolute().parent / "artifacts" if place.scheme == "sqlite" else None


def _now_ms() -> int:
    return round(time.time() * 1000)
