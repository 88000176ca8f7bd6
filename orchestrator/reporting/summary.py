"""Summarize the trainings of a plan: the state of each member, and the summary of the sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusion.results import Candidate, FusionDetails, Scores
from orchestrator.execution.job_outcomes import Outcome
from orchestrator.home import SweepFolder
from orchestrator.planning.plan import Plan, PlannedMember
from orchestrator.results import FusionSummary, Headline, MemberState, SweepSummary
from orchestrator.tracking.sweep_runs import SweepRuns
from workers.data.summary import DataSummary
from workers.diagnostics.logs import log_name


def member_states(plan: Plan, outcomes: Mapping[str, Outcome]) -> dict[str, MemberState]:
    """Return each member's state, which is that of its full training.

    A member that lacks fold trainings is done, and its reason says why stacks go without it.

    Args:
        plan: The plan.
        outcomes: Outcomes of the jobs that were run, by job key.
    """
    return {member.name: _state(plan.of_member(member.name), outcomes) for member in plan.team.members}


def student_state(plan: Plan, outcomes: Mapping[str, Outcome]) -> MemberState | None:
    """Return the student's state, or None if the team has no student."""
    return _state([plan.student], outcomes) if plan.student else None


def _state(planned: Sequence[PlannedMember], outcomes: Mapping[str, Outcome]) -> MemberState:
    """Return the state of a full training and of the fold trainings that belong to it."""
    full, *folds = planned
    outcome = _outcome_of(full, outcomes)
    seed, log = full.member.seed, log_name(full.job.label)
    if not full.artifact.done:
        state = outcome.kind if outcome and outcome.kind != "done" else "pending"
        return MemberState(seed=seed, log=log, state=state, reason=outcome.reason if outcome else None)
    record, reason = full.artifact.manifest(), None
    missing = [fold for fold in folds if not fold.artifact.done]
    if missing:
        outcome = _outcome_of(missing[0], outcomes)
        why = outcome.reason if outcome else "it was not run"
        count = "1 fold training is" if len(missing) == 1 else f"{len(missing)} fold trainings are"
        reason = f"left out of stacks: {count} missing ({missing[0].label}: {why})"
    return MemberState(
        seed=seed,
        log=log,
        state="done",
        reason=reason,
        train_seconds=record.train_seconds,
        weights_sha256=record.weights_sha256,
    )


def _outcome_of(planned: PlannedMember, outcomes: Mapping[str, Outcome]) -> Outcome | None:
    """Return the outcome of a member's job, or of a job with an equal recipe that ran instead."""
    in_its_place = (outcome for outcome in outcomes.values() if planned.signature in outcome.job.signatures)
    return outcomes.get(planned.job.key) or next(in_its_place, None)


def histories(plan: Plan) -> dict[str, list[dict[str, float]]]:
    """Return the history of each finished full training, by member."""
    by_member = {}
    for planned in plan.members:
        if planned.job.fold is None and planned.artifact.done:
            by_member[planned.member.name] = planned.artifact.manifest().history
    return by_member


@dataclass(frozen=True)
class SweepReport:
    """Builds the summary of one sweep, summary.json.

    Attributes:
        plan: The plan.
        folder: The sweep's folder.
        runs: The sweep's runs.
        data: The summary of the data set.
    """

    plan: Plan
    folder: SweepFolder
    runs: SweepRuns
    data: DataSummary | None = None

    def summarize(
        self, members: Mapping[str, MemberState], outcomes: Mapping[str, Outcome], details: FusionDetails | None = None
    ) -> SweepSummary:
        """Return the summary.

        Args:
            members: State of each member, from `member_states`.
            outcomes: Outcomes of the jobs that were run, by job key.
            details: What the fusion step returned; None if nothing was fused.
        """
        plan, rows = self.plan, details.candidates if details else {}
        student = student_state(plan, outcomes)
        everybody = [*members.values(), *([student] if student else [])]
        is_whole = all(member.is_done and member.reason is None for member in everybody)
        return SweepSummary(
            sweep=plan.team.name,
            state="failed" if details is None else "done" if is_whole else "partial",
            trained=len({p.signature for p in plan.members if p.signature not in plan.done and p.artifact.done}),
            reused=len(plan.done),
            members={name: _with_scores(member, rows.get(name)) for name, member in members.items()},
            student=_with_scores(student, rows.get("student")) if student else None,
            fusions={name: _fusion_summary(row) for name, row in rows.items() if name not in members},
            recommended=details.recommended if details else None,
            model=str(self.folder.model.absolute()) if details else None,
            classes=plan.store.classes,
            tracking_uri=self.runs.tracking.uri,
            parent_run_id=self.runs.parent,
            data=self.data,
        )


def _with_scores(member: MemberState, row: Candidate | None) -> MemberState:
    return member.model_copy(update={"test": _headline(row.test if row else None)})


def _fusion_summary(row: Candidate) -> FusionSummary:
    return FusionSummary(
        test=_headline(row.test),
        train_cost=row.train_cost,
        inference_cost=row.inference_cost,
        inference_ms_all_cores=row.inference_ms_all_cores,
        compute_cost=row.compute_cost,
    )


def _headline(test: Scores | None) -> Headline | None:
    return Headline(accuracy=test.accuracy, nll=test.nll) if test else None
