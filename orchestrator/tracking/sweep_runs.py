"""The runs of a sweep in the tracking store: a parent run, with the runs of its members nested below it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusion.results import FusionDetails
from orchestrator.home import Home, SweepFolder
from orchestrator.planning.plan import Plan, flatten
from orchestrator.results import Fingerprint, MemberState, SweepState, SweepSummary
from orchestrator.tracking.member_runs import UNFINISHED, MemberRuns, later_than
from workers.errors import first_line
from workers.tracking.database import artifacts_beside, path_of
from workers.tracking.delivery import flush_outbox
from workers.tracking.entries import now_ms
from workers.tracking.outbox import Outbox

if TYPE_CHECKING:
    from workers.tracking.client import TrackingClient

NOTE_CHARACTERS = 8000
REASON_CHARACTERS = 500


@dataclass(frozen=True)
class SweepLocation:
    """The files and the tracking store of a sweep.

    Attributes:
        team_file: The team file.
        home: The home.
        folder: The sweep's folder.
        uri: URI of the tracking store.
    """

    team_file: Path
    home: Home
    folder: SweepFolder
    uri: str


@dataclass(kw_only=True)
class SweepRuns(MemberRuns):
    """The parent run and the members' runs of a sweep. Their ids are in sweep.json; a rerun continues them.

    Attributes:
        location: The sweep's files and tracking store.
        is_new: Whether the store lacked a run or the model of this sweep.
        ended: MLflow status and tags of the ended parent run; None while it runs.
        problem: Why the last flush left entries; "" if it left none, or had no time for them.
    """

    location: SweepLocation
    is_new: bool = False
    ended: tuple[str, Mapping[str, str]] | None = None
    problem: str = ""

    @classmethod
    def open(cls, location: SweepLocation, plan: Plan, restart: Sequence[str] = ()) -> SweepRuns:
        """Continue the sweep's runs, or create the experiment and the runs. Only the driver creates the database.

        Args:
            location: The sweep's files and tracking store.
            plan: The plan.
            restart: Members to train afresh.

        Raises:
            StoreUnavailableError: If the store does not answer. A second call continues.
            ConclaveError: If the experiment was deleted.
        """
        from workers.tracking.client import TrackingClient  # imports MLflow

        is_own = location.uri == location.home.tracking_uri
        tracking, state = TrackingClient(location.uri, is_own), location.folder.state()
        # The URI of a file changes if its home is moved, but its runs stay.
        is_same_store = state and (state.tracking_uri == location.uri or path_of(location.uri) is not None)
        known = state if state and is_same_store and tracking.has_run(state.parent_run_id) else None
        experiment, parent = (known.experiment_id, known.parent_run_id) if known else _find_parent(tracking, location, plan)
        stored_ids = tracking.runs_with_tag(experiment, "sweep", parent)
        saved = state.runs if state and is_same_store else {}
        saved_ids = {s: run for s, run in saved.items() if s in stored_ids or tracking.has_run(run)}
        has_model = not (known and known.fingerprint) or tracking.has_model(plan.team.name, parent)
        is_whole = known and len(saved_ids) == len(known.runs) and has_model  # what a user deleted in MLflow is made again
        outbox = _outbox(location, plan.team.name)
        runs = cls(
            tracking=tracking,
            outbox=outbox,
            plan=plan,
            experiment=experiment,
            parent=parent,
            ids={**saved_ids, **stored_ids},
            location=location,
            is_new=not is_whole,
        )
        runs.log_settings(stored_ids.keys() - saved_ids.keys())  # the driver that created them may have died before logging
        if not known:
            runs.adopt(saved_ids)
            settings = {"data": plan.team.data.described(), "train": plan.team.train.model_dump(mode="json")}
            tracking.log_params(parent, flatten(settings))
        outbox.artifact(parent, location.folder.team)
        for planned in [planned for member in restart for planned in plan.of_member(member)]:
            runs.restart(planned)
        runs.create_first()
        runs._save(*((state.fingerprint, state.results) if state else ()))
        return runs

    def start(self) -> None:
        """Mark the sweep as running."""
        self._save()
        self.outbox.status(self.parent, "RUNNING", now_ms(), {"state": "running"})

    def mark_failed_members(self, members: Mapping[str, MemberState]) -> None:
        """Mark the runs of members that are not done. `members` holds their states, from `member_states`."""
        for name, member in members.items():
            if not member.is_done and (run := self.run_id_or_none(self.plan.of_member(name)[0])):
                tags = {"state": member.state, "reason": str(member.reason)[:REASON_CHARACTERS]}
                self.outbox.status(run, "FAILED", now_ms(), tags)

    def finish(self, summary: SweepSummary, note: str, details: FusionDetails | None = None) -> None:
        """Log headline metrics, the report and the model to the parent run, and register the model.

        Args:
            summary: The sweep's summary.
            note: Markdown for the run's page.
            details: Result of the fusion step; None if nothing was fused.
        """
        folder = self.location.folder
        self._log_headlines(summary)
        if details:
            for path in [*sorted(folder.path.glob("*.svg")), folder.report, folder.model]:
                self.outbox.artifact(self.parent, path)
            self.outbox.model(self.parent, self.plan.team.name, folder.model, not details.choice.is_at_chance)
        tags = {"recommended": str(summary.recommended), "mlflow.note.content": note[:NOTE_CHARACTERS]}
        self._end("FAILED" if summary.state == "failed" else "FINISHED", {**tags, "state": summary.state})
        if summary.state == "done":
            self._save(self.plan.fingerprint(), folder.result_digests())
        else:
            self._save()

    def flush(self, seconds: float) -> int:
        """Send this sweep's outbox entries for about `seconds`; return the number left for `conclave sync`."""
        until = time.monotonic() + seconds
        outboxes = [self.outbox, *(Outbox.in_home(self.location.home.path, run) for run in self.ids.values())]
        self.problem = ""
        try:
            for outbox in outboxes:
                flush_outbox(outbox, self.tracking, until)
            if not any(outbox.unsent() for outbox in outboxes):
                self.reconcile_members()
                self._reconcile()
                flush_outbox(self.outbox, self.tracking, until)
        except Exception as error:  # networks, servers and databases raise errors of any type: the entries stay in the outbox
            self.problem = first_line(error)[:200]
        return sum(len(outbox.unsent()) for outbox in outboxes)

    def _log_headlines(self, summary: SweepSummary) -> None:
        values: dict[str, float] = {}
        for name, test in summary.tested.items():
            kind = "members" if name in summary.members else "fusions"
            values |= {f"{kind}/{name}/{key}": value for key, value in test.model_dump().items()}
        for name, member in {**summary.members, "student": summary.student}.items():
            if member and member.test:
                planned = self.plan.of_member(name)[0]
                if run := self.run_id_or_none(planned):
                    scores = {f"test/{key}": value for key, value in member.test.model_dump().items()}
                    self.outbox.metrics(run, scores, 0, planned.artifact.manifest().finished_ms)  # the same point in every sweep
        if recommended := summary.tested.get(summary.recommended or ""):
            values |= {f"test/{key}": value for key, value in recommended.model_dump().items()}
        self.outbox.metrics(self.parent, values, 0, now_ms())

    def stop(self, status: str, state: str) -> None:
        """End the sweep's run and those of unfinished trainings, which would otherwise stay RUNNING for ever in the UI."""
        for planned in self.plan.members:
            if planned.signature in self.ids and not planned.artifact.done:
                self.outbox.status(self.ids[planned.signature], status, now_ms(), {"state": state})
        self._end(status, {"state": state})

    def _end(self, status: str, tags: Mapping[str, str]) -> None:
        """End the parent run."""
        self.ended = status, tags
        self.outbox.status(self.parent, status, now_ms(), tags)

    def _reconcile(self) -> None:
        """Correct the status of the parent run in the store, and delete its duplicates."""
        for run in self.tracking.sweeps_of(self.experiment, self.location.folder.identifier()):
            if run.run == self.parent:
                if self.ended and run.status != self.ended[0]:  # a clock was set back
                    self.outbox.status(self.parent, self.ended[0], later_than(run.since), self.ended[1])
            elif run.status in UNFINISHED and run.is_empty and not self.tracking.children(self.experiment, run.run):
                self.tracking.delete_run(run.run)  # created twice, because an answer was lost: another sweep's has children

    def _save(self, fingerprint: Fingerprint | None = None, results: Mapping[str, str] | None = None) -> None:
        root = self.plan.team.data.root
        state = SweepState(
            team=self.plan.team.name,
            team_file=str(self.location.team_file.resolve()),
            data=str(root) if root else None,
            store=self.plan.store.folder.name,
            tracking_uri=self.tracking.uri,
            experiment_id=self.experiment,
            parent_run_id=self.parent,
            runs=self.ids,
            members={n: [p.signature for p in self.plan.of_member(n)] for n in self.plan.team.names},
            fingerprint=fingerprint,
            settings=self.plan.settings(),
            results=dict(results or {}),
        )
        self.location.folder.keep(state)


def _find_parent(tracking: TrackingClient, location: SweepLocation, plan: Plan) -> tuple[str, str]:
    """Return the ids of the experiment and of the sweep's own run: one that a killed driver left, or a new one."""
    team, identifier = plan.team, location.folder.identifier()
    database = path_of(location.uri)
    artifacts = artifacts_beside(database) if database else None  # a server chooses its own
    experiment = tracking.experiment(team.tracking.experiment or team.name, artifacts)
    if orphaned := tracking.sweeps_of(experiment, identifier):
        return experiment, orphaned[-1].run
    tags = {"team": team.name, "role": "sweep", "state": "running", "folder": identifier}
    return experiment, tracking.create_run(experiment, team.name, tags)


def _outbox(location: SweepLocation, name: str) -> Outbox:
    """Return the sweep's outbox for its store. The home's own store has one name, so that a moved home finds its outbox."""
    store = "home" if location.uri == location.home.tracking_uri else location.uri
    digest = hashlib.sha256(store.encode()).hexdigest()[:8]
    return Outbox.open(location.home.path, f"sweep-{name}-{digest}", location.uri)
