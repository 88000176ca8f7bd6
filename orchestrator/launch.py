"""Supervise a plan's jobs through an `Executor`: start what fits, retry what failed, report what can't be."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from orchestrator.team import Retries
from workers.spec import Job

Kind = Literal["started", "epoch", "note", "retry", "done", "failed", "diverged", "unschedulable"]
Cause = Literal["errors", "preemptions", "oom"]
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Event:
    """Something that happened to a job, for the live table and the log."""

    job: Job
    kind: Kind
    epoch: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    text: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a job ended: a manifest, or a reason. `cause` names the budget that pays for another try; None: there is none."""

    job: Job
    manifest: dict[str, Any] | None
    kind: Kind = "done"
    reason: str = ""
    cause: Cause | None = None


class Executor(Protocol):
    """Runs jobs somewhere. The only seam between supervision and Ray."""

    def impossible(self, job: Job) -> str | None:
        """Why the job can never run here, or None."""

    def room(self, job: Job) -> bool:
        """Whether the job could start now."""

    def submit(self, job: Job, uri: str | None, run: str | None) -> None: ...

    def poll(self, seconds: float) -> Iterable[Event | Outcome]:
        """What happened since the last call; waits at most about `seconds`."""

    def stop(self, seconds: float) -> None:
        """Ask every running fit to write a checkpoint and leave; wait that long for it."""

    def close(self) -> None: ...


Watch = Callable[[Event], None]


def supervise(
    jobs: Sequence[Job], executor: Executor, uri: str | None, runs: Mapping[str, str], budget: Retries, watch: Watch
) -> dict[str, Outcome]:
    """Run all jobs; one that fails for good never stops the rest. Gives the outcome of each by signature."""
    ended: dict[str, Outcome] = {}
    waiting = deque(jobs)
    running: set[str] = set()
    failures: Counter[tuple[str, Cause | None]] = Counter()
    while waiting or running:
        for last in [found for job in waiting if (found := _hopeless(job, executor, ended))]:
            waiting.remove(last.job)
            ended[last.job.signature] = last
            watch(Event(last.job, last.kind, text=last.reason))
        unfinished = {*running, *(job.signature for job in waiting)}
        for job in [job for job in waiting if unfinished.isdisjoint(job.needs) and executor.room(job)]:
            if executor.room(job):
                waiting.remove(job)
                running.add(job.signature)
                executor.submit(job, uri, runs.get(job.signature))
                watch(Event(job, "started"))
        for item in executor.poll(POLL_SECONDS) if running else ():
            if isinstance(item, Event):
                watch(item)
                continue
            running.discard(item.job.signature)
            failures[item.job.signature, item.cause] += 1
            times = failures[item.job.signature, item.cause]
            if item.cause and budget.allows(item.cause, times):
                watch(Event(item.job, "retry", text=item.reason))
                waiting.append(item.job)
            else:
                last = replace(item, reason=f"{item.reason} ({times} times)") if item.cause and times > 1 else item
                ended[item.job.signature] = last
                watch(Event(item.job, item.kind, text=last.reason))
    return ended


def _hopeless(job: Job, executor: Executor, ended: Mapping[str, Outcome]) -> Outcome | None:
    """The end of a job that can never start: no machine could hold it, or the one that it goes on from failed."""
    for before in (ended[signature] for signature in job.needs if signature in ended):
        if before.kind != "done":
            how = "from which it learns" if job.teachers else "from which it goes on"
            return Outcome(job, None, "failed", f"{before.job.label}, {how}, is {before.kind}")
    reason = executor.impossible(job)
    return Outcome(job, None, "unschedulable", reason) if reason else None


def outcome(job: Job, result: dict[str, Any]) -> Outcome:
    """From what `workers.actor.work` gave."""
    if "error" not in result:
        return Outcome(job, result)
    if result["kind"] == "Diverged":
        return Outcome(job, None, "diverged", result["error"])
    # a full device or a bad file is the same the next time; anything else may not be
    return Outcome(job, None, "failed", result["error"], "errors" if result["kind"] == "error" else None)


class InlineExecutor:
    """One job after another in this process: for tests and debuggers."""

    def __init__(self) -> None:
        self.waiting: tuple[Job, str | None, str | None] | None = None

    def impossible(self, job: Job) -> str | None:
        return None

    def room(self, job: Job) -> bool:
        return self.waiting is None

    def submit(self, job: Job, uri: str | None, run: str | None) -> None:
        self.waiting = (job, uri, run)

    def poll(self, seconds: float) -> Iterable[Event | Outcome]:
        from workers.work import Progress, work

        if self.waiting is None:
            return []
        job, uri, run = self.waiting
        self.waiting = None
        progress = Progress()
        result = work(job, uri, run, progress)
        return [Event(job, "epoch", progress.epoch_, progress.metrics), outcome(job, result)]

    def stop(self, seconds: float) -> None:
        self.waiting = None

    def close(self) -> None:
        self.waiting = None
