"""Sum up what a plan's trainings came to: the state of each member, and the summary of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.execution.executor import Outcome
from orchestrator.home import SweepFolder
from orchestrator.planning.plan import Plan
from orchestrator.tracking.sweep_runs import SweepRuns
from workers.config.job import Job
from workers.storage.artifacts import MemberArtifact


def member_states(plan: Plan, outcomes: Mapping[str, Outcome]) -> dict[str, dict[str, Any]]:
    """Return each member's state, by its full training.

    A member that lacks fold trainings is done, and its reason says why stacks go without it.

    Args:
        plan: The plan.
        outcomes: What became of the jobs that were run, by signature.
    """
    return {member.name: _state(plan.jobs_of(member.name), outcomes) for member in plan.team.members}


def student_state(plan: Plan, outcomes: Mapping[str, Outcome]) -> dict[str, Any] | None:
    """Return the student's state, or None where the team asks for none."""
    return _state([plan.student], outcomes) if plan.student else None


def _state(jobs: Sequence[Job], outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Return the state of a full training and of the fold trainings that belong to it."""
    full = outcomes.get(jobs[0].signature)
    artifact = MemberArtifact.in_home(jobs[0].home, jobs[0].signature)
    entry: dict[str, Any] = {"seed": jobs[0].member.seed, "test": None}
    if not artifact.done:
        state = full.kind if full and full.kind != "done" else "pending"
        return {**entry, "state": state, "reason": full and full.reason, "train_seconds": None, "weights_sha256": None}
    manifest, reason = artifact.manifest(), None
    missing = [j for j in jobs[1:] if not MemberArtifact.in_home(j.home, j.signature).done]
    if missing:
        outcome = outcomes.get(missing[0].signature)
        why = outcome.reason if outcome else "it was not run"
        reason = f"left out of stack: {len(missing)} fold trainings are missing ({missing[0].label}: {why})"
    measured = {"train_seconds": manifest["train_seconds"], "weights_sha256": manifest["weights_sha256"]}
    return {**entry, "state": "done", "reason": reason, **measured}


def histories(plan: Plan) -> dict[str, list[dict[str, float]]]:
    """Return the history of each finished full training, by member."""
    by_member = {}
    for job in plan.jobs:
        artifact = MemberArtifact.in_home(job.home, job.signature)
        if job.fold is None and artifact.done:
            by_member[job.member.name] = artifact.manifest()["history"]
    return by_member


@dataclass(frozen=True)
class SweepReport:
    """Makes the summary of one sweep, summary.json.

    Attributes:
        plan: The plan.
        folder: The sweep's folder.
        runs: The sweep's runs.
    """

    plan: Plan
    folder: SweepFolder
    runs: SweepRuns

    def summarize(
        self, members: dict[str, dict[str, Any]], outcomes: Mapping[str, Outcome], details: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the summary.

        Args:
            members: State of each member, from `member_states`. Test scores are added.
            outcomes: What became of the jobs that were run, by signature.
            details: What the fusion step returned; None where nothing was fused.
        """
        plan = self.plan
        rows = details["candidates"] if details else {}
        student = student_state(plan, outcomes)
        everybody = {**members, **({"student": student} if student else {})}
        for name, member in everybody.items():
            member["test"] = _headline_scores(rows.get(name, {}).get("test"))
        is_whole = all(m["state"] == "done" and m["reason"] is None for m in everybody.values())
        return {
            "sweep": plan.team.name,
            "state": "failed" if details is None else "done" if is_whole else "partial",
            "trained": sum(outcome.manifest is not None for outcome in outcomes.values()),
            "reused": sum(job.signature in plan.done for job in plan.jobs),
            "members": members,
            "student": student,
            "fusions": {name: _fusion_summary(row) for name, row in rows.items() if name not in members},
            "recommended": details and details["recommended"],
            "model": str(self.folder.model.absolute()) if details else None,
            "classes": plan.store.classes,
            "tracking_uri": self.runs.tracking.uri,
            "parent_run_id": self.runs.parent,
        }


def _fusion_summary(row: dict[str, Any]) -> dict[str, Any]:
    test = _headline_scores(row["test"])
    return {"test": test, "train_cost": row["train_cost"], "inference_cost": row["inference_cost"]}


def _headline_scores(test: dict[str, float] | None) -> dict[str, float] | None:
    return test and {"accuracy": test["accuracy"], "nll": test["nll"]}
