"""The runs of searches in the tracking store: one for each search, and one nested under it for each of its trials."""

from __future__ import annotations

from orchestrator.planning.search import Search, describe_choice
from orchestrator.tracking.member_runs import MemberRuns
from workers.tracking.entries import now_ms


def log_search(runs: MemberRuns, search: Search) -> None:
    """Create the runs of a search and of its trials. Existing runs stay as they are."""
    if search.signature not in runs.ids:
        runs.ids[search.signature] = _create(runs, search.signature, f"{search.label} search", runs.parent)
    for name, trial in search.trials.items():
        if name in runs.ids or not trial.epochs:
            continue
        run = runs.ids[name] = _create(runs, name, describe_choice(trial.choice), runs.ids[search.signature])
        runs.tracking.log_params(run, trial.choice, is_new=True)
        for epoch, point in enumerate(trial.epochs):
            runs.outbox.metrics(run, {f"stop/{key}": value for key, value in point.items()}, epoch + 1, now_ms())
        status = "FAILED" if trial.state == "failed" else "FINISHED"
        runs.outbox.status(run, status, now_ms(), {"state": trial.state})
    runs.outbox.status(runs.ids[search.signature], "FINISHED", now_ms())


def _create(runs: MemberRuns, signature: str, name: str, parent: str) -> str:
    tags = {"team": runs.plan.team.name, "role": "search", "signature": signature, "sweep": runs.parent}
    return runs.tracking.create_run(runs.experiment, name, tags, parent)
