"""The runs of a sweep in the tracking store: its own run, which is the parent of those of its members."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusion.results import FusionDetails
from orchestrator.execution.job_outcomes import Outcome
from orchestrator.home import Home, SweepFolder
from orchestrator.planning.plan import Plan, flatten
from orchestrator.planning.search import Search
from orchestrator.results import Fingerprint, MemberState, SweepState, SweepSummary
from orchestrator.tracking.member_runs import UNFINISHED, MemberRuns, later_than, now_ms
from orchestrator.tracking.search_runs import log_search
from workers.storage.files import write_json
from workers.tracking.database import artifacts_beside, path_of
from workers.tracking.delivery import flush_outbox
from workers.tracking.outbox import Outbox

if TYPE_CHECKING:
    from workers.tracking.client import TrackingClient

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
        place: Where the sweep comes from and goes.
        plan: The plan.
        members: The runs of the members. It knows the store, the sweep's outbox and the sweep's own run.
        is_new: Whether the store had no run of this sweep.
        ended: How the sweep's own run ended: MLflow's word for its status, and its tags; None while it runs.
    """

    place: SweepPlace
    plan: Plan
    members: MemberRuns
    is_new: bool = False
    ended: tuple[str, Mapping[str, str]] | None = None

    @classmethod
    def open(cls, place: SweepPlace, plan: Plan, restart: Sequence[str] = ()) -> SweepRuns:
        """Continue the sweep's runs, or create the experiment and the runs. Only the driver creates the database.

        Args:
            place: Where the sweep comes from and goes.
            plan: The plan.
            restart: Members to train afresh.

        Raises:
            StoreAwayError: If the store does not answer. Calling it again goes on where it ended.
            ConclaveError: If the experiment was deleted.
        """
        from workers.tracking.client import TrackingClient  # imports MLflow

        team, tracking, state = plan.team, TrackingClient(place.uri), place.folder.state()
        # A file's URI changes when its home is moved; its runs stay the same.
        is_there = state is not None and (state.tracking_uri == place.uri or path_of(place.uri) is not None)
        known = state if is_there and state and tracking.has_run(state.parent_run_id) else None
        name = team.tracking.experiment or team.name
        experiment = known.experiment_id if known else tracking.experiment(name, _artifacts_beside(place.uri))
        identifier = place.folder.identifier()
        of_killed = [] if known else tracking.sweeps_of(experiment, identifier)  # drivers
        parent = known.parent_run_id if known else of_killed[-1].run if of_killed else None
        is_old = parent is not None
        tags = {"team": team.name, "role": "sweep", "state": "running", "folder": identifier}
        parent = parent or tracking.create_run(experiment, team.name, tags)
        outbox = _outbox(place, team.name)
        kept = known.runs if known else {}
        there = tracking.runs_with_tag(experiment, "sweep", parent) if is_old else {}
        members = MemberRuns(tracking, outbox, plan, experiment, parent, {**kept, **there})
        members.log_settings(there.keys() - kept.keys())  # whoever made them may have come no further
        runs = cls(place, plan, members, is_new=not known)
        if not known:
            settings = {"data": team.data.described(), "train": team.train.model_dump(mode="json")}
            tracking.log_params(parent, flatten(settings))
        Outbox.remove_leftovers(place.home.path, members.ids.values())
        outbox.artifact(parent, place.folder.team)
        for planned in [planned for member in restart for planned in plan.of_member(member)]:
            members.restart(planned)
        members.create_first()
        runs._save(*((state.fingerprint, state.results) if state else ()))
        return runs

    @property
    def tracking(self) -> TrackingClient:
        """The tracking store."""
        return self.members.tracking

    @property
    def parent(self) -> str:
        """The id of the sweep's own run."""
        return self.members.parent

    @property
    def outbox(self) -> Outbox:
        """The sweep's outbox."""
        return self.members.outbox

    @property
    def ids(self) -> dict[str, str]:
        """The ids of all runs but the sweep's own, by signature."""
        return self.members.ids

    def log_search(self, search: Search) -> None:
        """Create the runs of a search and of its trials."""
        log_search(self.members, search)

    def import_remote_trainings(self) -> Plan:
        """Download finished trainings that only the tracking store has; return the plan with them done."""
        self.members.import_remote()
        self.plan = self.members.plan = self.plan.refreshed()
        return self.plan

    def collect_trainings(self, outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
        """Download the trainings of machines with another disk; return the outcomes, corrected for those that never arrived."""
        return self.members.collect(outcomes)

    def start(self) -> None:
        """Mark the sweep as running."""
        self._save()
        self.outbox.status(self.parent, "RUNNING", now_ms(), {"state": "running"})

    def mark_failed_members(self, members: Mapping[str, MemberState]) -> None:
        """Mark the runs of members that are not done. `members` holds their states, from `member_states`."""
        for name, member in members.items():
            if not member.is_done and (run := self.members.run_id_or_none(self.plan.of_member(name)[0])):
                tags = {"state": member.state, "reason": str(member.reason)[:REASON_CHARACTERS]}
                self.outbox.status(run, "FAILED", now_ms(), tags)

    def finish(self, summary: SweepSummary, note: str, details: FusionDetails | None = None) -> None:
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
            self.outbox.model(self.parent, self.plan.team.name, folder.model)
        tags = {"recommended": str(summary.recommended), "mlflow.note.content": note[:NOTE_CHARACTERS]}
        self._end("FAILED" if summary.state == "failed" else "FINISHED", {**tags, "state": summary.state})
        if summary.state == "done":
            self._save(self.plan.fingerprint(), folder.result_digests())
        else:
            self._save()

    def flush(self, seconds: float) -> int:
        """Send this sweep's entries for about `seconds`; return how many stay for `conclave sync`."""
        until = time.monotonic() + seconds
        outboxes = [self.outbox, *(Outbox.in_home(self.place.home.path, run) for run in self.ids.values())]
        with contextlib.suppress(Exception):  # away: they stay in the outbox
            for outbox in outboxes:
                flush_outbox(outbox, self.tracking, until)
            if not any(outbox.unsent() for outbox in outboxes):
                self.members.reconcile()
                self._reconcile()
                flush_outbox(self.outbox, self.tracking, until)
        return sum(len(outbox.unsent()) for outbox in outboxes)

    def _log_headlines(self, summary: SweepSummary) -> None:
        values: dict[str, float] = {}
        for name, test in summary.tested.items():
            kind = "members" if name in summary.members else "fusions"
            values |= {f"{kind}/{name}/{key}": value for key, value in test.model_dump().items()}
        for name, member in {**summary.members, "student": summary.student}.items():
            if member and member.test:
                planned = self.plan.of_member(name)[0]
                if run := self.members.run_id_or_none(planned):
                    scores = {f"test/{key}": value for key, value in member.test.model_dump().items()}
                    self.outbox.metrics(run, scores, 0, planned.artifact.manifest().finished_ms)  # the same point in every sweep
        if recommended := summary.tested.get(summary.recommended or ""):
            values |= {f"test/{key}": value for key, value in recommended.model_dump().items()}
        self.outbox.metrics(self.parent, values, 0, now_ms())

    def _log_per_class(self, details: FusionDetails) -> None:
        for name, row in details.candidates.items():
            planned = self.plan.of_member(name)
            if planned and row.per_class is not None and (run := self.members.run_id_or_none(planned[0])):
                path = self.place.folder.per_class(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, dict(zip(details.classes, row.per_class, strict=True)))
                self.outbox.artifact(run, path)

    def mark_interrupted(self) -> None:
        """Mark the sweep and its unfinished jobs as interrupted."""
        self._stop("KILLED", "interrupted")

    def mark_failed(self) -> None:
        """Mark the sweep and its unfinished jobs as failed."""
        self._stop("FAILED", "failed")

    def _stop(self, status: str, state: str) -> None:
        """End runs that would otherwise stay RUNNING for ever in the UI."""
        for planned in self.plan.members:
            if planned.signature in self.ids and not planned.artifact.done:
                self.outbox.status(self.ids[planned.signature], status, now_ms(), {"state": state})
        self._end(status, {"state": state})

    def _end(self, status: str, tags: Mapping[str, str]) -> None:
        """End the sweep's own run."""
        self.ended = status, tags
        self.outbox.status(self.parent, status, now_ms(), tags)

    def _reconcile(self) -> None:
        """Make the store say how the sweep itself ended, whatever it was told before, and once."""
        for run in self.tracking.sweeps_of(self.members.experiment, self.place.folder.identifier()):
            if run.run == self.parent:
                if self.ended and run.status != self.ended[0]:  # a clock was set back
                    self.outbox.status(self.parent, self.ended[0], later_than(run.since), self.ended[1])
            elif run.status in UNFINISHED and run.is_empty and not self._has_children(run.run):
                self.tracking.delete_run(run.run)  # made twice, because an answer got lost

    def _has_children(self, run: str) -> bool:
        """Return whether a sweep's run has others below it: it is of another sweep then, as of a copied home."""
        return bool(self.tracking.children(self.members.experiment, run))

    def _save(self, fingerprint: Fingerprint | None = None, results: Mapping[str, str] | None = None) -> None:
        root = self.plan.team.data.root
        state = SweepState(
            team=self.plan.team.name,
            team_file=str(self.place.team_file.resolve()),
            data=str(root) if root else None,
            store=self.plan.store.folder.name,
            tracking_uri=self.tracking.uri,
            experiment_id=self.members.experiment,
            parent_run_id=self.parent,
            runs=self.ids,
            members={n: [p.signature for p in self.plan.of_member(n)] for n in self.plan.team.names},
            fingerprint=fingerprint,
            settings=self.plan.settings(),
            results=dict(results or {}),
        )
        self.place.folder.keep_state(state)


def _outbox(place: SweepPlace, name: str) -> Outbox:
    """Return the sweep's outbox for its store: the one that is there, whatever the store's URI was when it was made."""
    pattern = re.compile(rf"sweep-{re.escape(name)}-[0-9a-f]{{8}}")  # a sweep's name may begin with another one's
    there = [outbox for outbox in Outbox.all_in_home(place.home.path) if pattern.fullmatch(outbox.path.stem)]
    of_store = next((outbox.path.stem for outbox in there if outbox.uri == place.uri), None)
    digest = hashlib.sha256(place.uri.encode()).hexdigest()[:8]
    return Outbox.open(place.home.path, of_store or f"sweep-{name}-{digest}", place.uri)


def _artifacts_beside(uri: str) -> Path | None:
    """Return where artifacts go: beside a database that is a file, as in a home; a server decides for itself."""
    database = path_of(uri)
    return artifacts_beside(database) if database else None
