"""The runs of members in the tracking store: one for each member, and fold trainings nested under their member."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from orchestrator.execution.job_outcomes import Outcome
from orchestrator.planning.plan import Plan, PlannedMember, flatten
from workers.config.job import Job
from workers.errors import StoreUnavailableError
from workers.tracking.delivery import download_training
from workers.tracking.entries import StatusEntry, TagsEntry, now_ms
from workers.tracking.outbox import Outbox

if TYPE_CHECKING:
    from workers.tracking.client import TrackingClient

AWAY_SECONDS = 30.0  # before a store that did not answer is tried again
RESTARTED = {"state": "restarted"}  # a run with this tag never counts as a finished training
FIRST_RUNS = 100  # members whose runs are created before any training starts
UNFINISHED = ("RUNNING", "SCHEDULED")
NEVER_ARRIVED = "it was trained on a machine with another disk, and its files never reached the tracking store"


def later_than(since: int) -> int:
    """Return the time in milliseconds since 1970, but at least `since` + 1: clocks differ, and are set back."""
    return max(now_ms(), since + 1)


@dataclass(kw_only=True)
class MemberRuns:
    """The runs of the members of one sweep.

    Attributes:
        tracking: The tracking store.
        outbox: The sweep's outbox.
        plan: The plan.
        experiment: Id of the experiment.
        parent: Id of the sweep's run.
        ids: Run ids by signature.
        away_until: Time until which a store that did not answer is not tried again, by time.monotonic().
    """

    tracking: TrackingClient
    outbox: Outbox
    plan: Plan
    experiment: str
    parent: str
    ids: dict[str, str] = field(default_factory=dict)
    away_until: float = 0.0

    def run_id(self, planned: PlannedMember) -> str:
        """Return a member's run id, creating the run if needed; the run of a full training before those of its folds."""
        if planned.signature not in self.ids:
            self.ids[planned.signature] = self._create(planned)
            if planned.artifact.done:
                self._publish(planned, self.ids[planned.signature])
        return self.ids[planned.signature]

    def run_id_or_none(self, planned: PlannedMember) -> str | None:
        """Return a member's run id, or None if the store is away.

        The training then runs untracked. Its run is created and filled at the end, or by the next sweep.
        """
        if planned.signature not in self.ids and time.monotonic() < self.away_until:
            return None
        try:
            return self.run_id(planned)
        except Exception:  # any error of the network or the server
            self.away_until = time.monotonic() + AWAY_SECONDS
            return None

    def of_job(self, job: Job) -> tuple[str, ...]:
        """Return the run ids of a job's members, in their order; empty if the store is away."""
        runs = [self.run_id_or_none(PlannedMember(job, member)) for member in job.members]
        return tuple(run for run in runs if run) if all(runs) else ()

    def create_first(self) -> None:
        """Create runs of finished and of the first pending trainings. Other runs are created when their jobs start."""
        done = [planned for planned in self.plan.members if planned.artifact.done]
        for planned in (*done, *self.plan.members[:FIRST_RUNS]):
            self.run_id(planned)

    def adopt(self, ids: Mapping[str, str]) -> None:
        """Put runs under the sweep's run, in the place of one that was deleted. `ids` are run ids by signature."""
        for planned in self.plan.members:
            if run := ids.get(planned.signature):
                above = {"mlflow.parentRunId": self.parent} if planned.job.fold is None else {}
                self.tracking.send([TagsEntry(run=run, tags={"sweep": self.parent, **above})])

    def restart(self, planned: PlannedMember) -> None:
        """Discard a training, so that it starts afresh: delete its files, and tag its runs as restarted."""
        from workers.storage.training_folder import TrainingFolder

        while run := self.tracking.find_training(self.experiment, planned.signature):
            self.tracking.send([TagsEntry(run=run, tags=RESTARTED)])
        if run := self.ids.pop(planned.signature, None):
            self.tracking.send([TagsEntry(run=run, tags=RESTARTED)])
            if self.tracking.status(run) in UNFINISHED:  # left by a killed driver
                self.tracking.send([StatusEntry(run=run, status="KILLED", time=now_ms(), tags=RESTARTED)])
        planned.artifact.delete()
        TrainingFolder.of(planned.job).remove_checkpoints()

    def import_remote(self) -> None:
        """Download the trainings that only the tracking store has.

        Raises:
            StoreUnavailableError: If the store goes away meanwhile. Its trainings must not be repeated for that.
        """
        missing = [planned for planned in self.plan.members if not planned.artifact.done]
        runs = self.tracking.runs_with_tag(self.experiment, "state", "done") if missing else {}
        for planned in missing:
            run = runs.get(planned.signature)
            if run and not download_training(planned.artifact, self.tracking, run):
                self.tracking.has_run(run)  # raises if the store is away, not if the run's files are gone

    def collect(self, outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
        """Download the trainings of machines with another disk, and create the runs that are still missing.

        Args:
            outcomes: Outcomes of the jobs, by job key.

        Returns:
            The outcomes, corrected for trainings that never arrived.
        """
        corrected = dict(outcomes)
        for planned in self.plan.members:
            outcome = outcomes.get(planned.job.key)
            if outcome is None or outcome.kind != "done":
                continue
            run = self.run_id_or_none(planned)
            if not planned.artifact.done and not self._arrived(planned, run):
                corrected[planned.job.key] = replace(outcome, kind="failed", reason=NEVER_ARRIVED)
        return corrected

    def _arrived(self, planned: PlannedMember, run: str | None) -> bool:
        """Return whether a training could be downloaded from its run."""
        try:
            return download_training(planned.artifact, self.tracking, run)
        except StoreUnavailableError:
            return False

    def _create(self, planned: PlannedMember) -> str:
        job, member, recipe = planned.job, planned.member, planned.job.recipe
        seed = job.seed_of(member.seed)
        parent = self.parent if job.fold is None else self.run_id(self.plan.of_member(member.name)[0])
        tags = {
            "team": self.plan.team.name,
            "member": member.name,
            "role": "student" if job.teachers else "member" if job.fold is None else "fold",
            "signature": planned.signature,
            "sweep": self.parent,
            "state": "pending",
            "mlflow.note.content": f"**{planned.label}**: {recipe.arch}, {recipe.optimizer.kind}, seed {seed}",
        }
        run = self.tracking.create_run(self.experiment, planned.label, tags, parent)
        self.tracking.log_params(run, _settings(planned), is_new=True)
        return run

    def log_settings(self, signatures: Collection[str]) -> None:
        """Log the settings of trainings that have runs. Parameters that a run already has are kept."""
        for planned in self.plan.members:
            if planned.signature in signatures:
                self.tracking.log_params(self.ids[planned.signature], _settings(planned))

    def reconcile_members(self) -> None:
        """Correct the status of every run of this sweep in the store, so that it matches the run's training.

        Raises:
            Exception: Any error of the store while it is away. The next sweep reconciles then.
        """
        by_run = {self.ids[planned.signature]: planned for planned in self.plan.members if planned.signature in self.ids}
        for child in self.tracking.children(self.experiment, self.parent):
            planned = by_run.get(child.run)
            if planned and planned.artifact.done and child.status != "FINISHED":
                self._publish(planned, child.run, child.since)
            elif planned and child.status in UNFINISHED:
                self.outbox.status(child.run, "KILLED", later_than(child.since), {"state": "not done"})
            elif not planned and child.run not in self.ids.values() and child.status in UNFINISHED:
                if child.is_empty and child.signature in self.ids:  # created twice, because an answer was lost
                    self.tracking.delete_run(child.run)
                else:
                    self.outbox.status(child.run, "KILLED", later_than(child.since), {"state": "left out"})

    def _publish(self, planned: PlannedMember, run: str, since: int = 0) -> None:
        """Fill the run of a training that this home has finished before. `since` is when its status was last set."""
        record = planned.artifact.manifest()
        for epoch, metrics in enumerate(record.history):
            values = {k: v for k, v in metrics.items() if k != "time"}
            self.outbox.metrics(run, values, epoch + 1, int(metrics["time"]))
        self.outbox.artifact(run, planned.artifact.folder, "fit")
        self.outbox.tags(run, {"source": "this home", "weights_sha256": record.weights_sha256})
        self.outbox.metrics(run, {"train_seconds": record.train_seconds}, 0, record.finished_ms)
        self.outbox.status(run, "FINISHED", later_than(since), {"state": "done"})


def _settings(planned: PlannedMember) -> dict[str, object]:
    """Return the parameters of a member's run."""
    job, member = planned.job, planned.member
    settings = {"fold": job.fold, "fit_seed": job.seed_of(member.seed), **job.recipe.record(member).model_dump(mode="json")}
    return flatten({**settings, "train": job.train.model_dump(mode="json")})
