"""What a plan's fits came to: each member's state, the request to the fusion step, the summary of a sweep."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.home import SweepFolder
from orchestrator.launch import Outcome
from orchestrator.plan import Plan
from orchestrator.request import Place, Request
from orchestrator.runs import Runs
from workers.artifact import MemberArtifact
from workers.job import Job


def judge(todo: Plan, outcomes: dict[str, Outcome]) -> dict[str, dict[str, Any]]:
    """Each member's state, by its full fit; a member that lacks fold fits is done, and says why stack goes without."""
    return {member.name: _state(todo.of(member.name), outcomes) for member in todo.team.members}


def judge_student(todo: Plan, outcomes: dict[str, Outcome]) -> dict[str, Any] | None:
    """The student's state; None where the team asks for none."""
    return _state([todo.student], outcomes) if todo.student else None


def _state(jobs: Sequence[Job], outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Of a full fit and the fold fits that belong to it."""
    full = outcomes.get(jobs[0].signature)
    artifact = MemberArtifact.of(jobs[0].home, jobs[0].signature)
    entry: dict[str, Any] = {"seed": jobs[0].member.seed, "test": None}
    if not artifact.done:
        state = full.kind if full and full.kind != "done" else "pending"
        return {**entry, "state": state, "reason": full and full.reason, "train_seconds": None, "weights_sha256": None}
    manifest, reason = artifact.manifest(), None
    missing = [j for j in jobs[1:] if not MemberArtifact.of(j.home, j.signature).done]
    if missing:
        first = outcomes.get(missing[0].signature)
        why = first.reason if first else "it was not run"
        reason = f"left out of stack: {len(missing)} fold fits are missing ({missing[0].label}: {why})"
    measured = {"train_seconds": manifest["train_seconds"], "weights_sha256": manifest["weights_sha256"]}
    return {**entry, "state": "done", "reason": reason, **measured}


def make_request(
    todo: Plan, members: dict[str, dict[str, Any]], folder: SweepFolder, uri: str | None, runs: Runs | None
) -> Request:
    specs = {m.name: m for m in todo.team.members if members[m.name]["state"] == "done"}
    ids = runs.by_signature() if runs else {}

    def place(job: Job) -> Place:
        return Place(ids.get(job.signature), MemberArtifact.of(job.home, job.signature).root)

    jobs, student = {name: todo.of(name) for name in specs}, todo.student
    taught = student and len(specs) == len(members) and MemberArtifact.of(student.home, student.signature).done
    return Request(
        sweep=folder.path.absolute(),
        name=todo.team.name,
        members=specs,
        full={name: place(of[0]) for name, of in jobs.items()},
        folds={n: [place(j) for j in of[1:]] for n, of in jobs.items() if of[1:] and members[n]["reason"] is None},
        fusions=todo.team.fusion,
        data=todo.team.data,
        team_seed=todo.team.seed,
        store=todo.store.folder.absolute(),
        uri=uri,
        import_paths=todo.jobs[0].import_paths,
        provenance={
            "sweep": todo.team.name,
            "data_digest": todo.store.digest,
            "member_weights": {n: members[n]["weights_sha256"] for n in specs},
            "commit": _commit(),
        },
        student=(student.member, place(student)) if student and taught else None,
        prices=todo.team.hourly,
        searched=todo.searched,
    )


def histories(todo: Plan) -> dict[str, list[dict[str, float]]]:
    """The full fits' histories, by member."""
    found = {}
    for job in todo.jobs:
        artifact = MemberArtifact.of(job.home, job.signature)
        if job.fold is None and artifact.done:
            found[job.member.name] = artifact.manifest()["history"]
    return found


def summarize(
    todo: Plan,
    members: dict[str, dict[str, Any]],
    details: dict[str, Any] | None,
    outcomes: dict[str, Outcome],
    folder: SweepFolder,
    uri: str,
    runs: Runs,
) -> dict[str, Any]:
    table = details["candidates"] if details else {}
    student = judge_student(todo, outcomes)
    every = {**members, **({"student": student} if student else {})}
    for name, member in every.items():
        member["test"] = brief(table.get(name, {}).get("test"))
    whole = all(m["state"] == "done" and m["reason"] is None for m in every.values())
    return {
        "sweep": todo.team.name,
        "state": "failed" if details is None else "done" if whole else "partial",
        "trained": sum(outcome.manifest is not None for outcome in outcomes.values()),
        "reused": sum(job.signature in todo.done for job in todo.jobs),
        "members": members,
        "student": student,
        "fusions": {
            name: {"test": brief(row["test"]), "train_cost": row["train_cost"], "inference_cost": row["inference_cost"]}
            for name, row in table.items()
            if name not in members
        },
        "recommended": details and details["recommended"],
        "model": str(folder.model.absolute()) if details else None,
        "classes": todo.store.classes,
        "tracking_uri": uri,
        "parent_run_id": runs.parent,
    }


def brief(test: dict[str, float] | None) -> dict[str, float] | None:
    return test and {"accuracy": test["accuracy"], "nll": test["nll"]}


def _commit() -> str:
    """Of our own code, where it lies in a repository and git is there."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # an image has no git
        return "unknown"
    return found.stdout.strip() or "unknown"
