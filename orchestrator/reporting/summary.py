"""Summarize the trainings of a plan: the state of each member, and the summary of the sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusion.results import Candidate, FusionDetails, Scores
from orchestrator.execution.job_outcomes import Outcome
from orchestrator.planning.plan import Plan, PlannedMember
from orchestrator.results import FusionSummary, Headline, MemberState, SweepSummary
from orchestrator.tracking.sweep_runs import SweepRuns
from workers.data.summary import DataSummary
from workers.diagnostics.logs import log_name


def member_states(plan: Plan, outcomes: Mapping[str, Outcome]) -> dict[str, MemberState]:
    """Return each member's state, which is that of its full training.

    A member that lacks fold trainings is done, and its reason says why stacks go without it; without a *fuse* part, on which it
    could be judged, it is not done.

    Args:
        plan: The plan.
        outcomes: Outcomes of the jobs that were run, by job key.
    """
    is_judged_by_folds = plan.team.data.is_out_of_fold
    return {member.name: _state(plan.of_member(member.name), outcomes, is_judged_by_folds) for member in plan.team.members}


def student_state(plan: Plan, outcomes: Mapping[str, Outcome]) -> MemberState | None:
    """Return the student's state, or None if the team has no student."""
    return _state([plan.student], outcomes) if plan.student else None


def _state(planned: Sequence[PlannedMember], outcomes: Mapping[str, Outcome], is_judged_by_folds: bool = False) -> MemberState:
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
        what = "can't be judged" if is_judged_by_folds else "left out of stacks"
        reason = f"{what}: {count} missing ({missing[0].label}: {why})"
        if is_judged_by_folds:
            state = outcome.kind if outcome and outcome.kind != "done" else "pending"
            return MemberState(seed=seed, log=log, state=state, reason=reason)
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
    """Return the history of each finished full training, by member; without a *fuse* part, that of its first fold training."""
    fold = 0 if plan.team.data.is_out_of_fold else None
    shown = (planned for planned in plan.members if planned.job.fold == fold and planned.artifact.done)
    return {planned.member.name: planned.artifact.manifest().history for planned in shown}


def summarize(
    plan: Plan, runs: SweepRuns, outcomes: Mapping[str, Outcome], data: DataSummary, details: FusionDetails | None = None
) -> SweepSummary:
    """Return the summary of a sweep.

    Args:
        plan: The plan.
        runs: The sweep's runs.
        outcomes: Outcomes of the jobs that were run, by job key.
        data: The summary of the data set.
        details: What the fusion step returned; None if nothing was fused.
    """
    members, student = member_states(plan, outcomes), student_state(plan, outcomes)
    rows = details.candidates if details else {}
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
        model=str(runs.location.folder.model.absolute()) if details else None,
        classes=plan.store.classes,
        tracking_uri=runs.tracking.uri,
        parent_run_id=runs.parent,
        data=data,
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
