"""Supervise a plan's jobs through an `Executor`: start what fits, retry what failed, report what can't be."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from orchestrator.team import Retries
from workers.errors import Preempted
from workers.job import Job

Kind = Literal["started", "working", "epoch", "note", "retry", "done", "failed", "diverged", "unschedulable", "skipped"]
Cause = Literal["errors", "preemptions", "oom"]
POLL_SECONDS = 0.5
MACHINE_GONE = "its machine went away"


@dataclass(frozen=True)
class Event:
    """Something that happened to a job, for the live table and the log: `started` is submitted, maybe to a machine that has yet
    to come; `working` is on a machine."""

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
        ...

    def stop(self, seconds: float) -> None:
        """Ask every running fit to write a checkpoint and leave; wait that long for it."""

    def close(self) -> None: ...


Watch = Callable[[Event], None]


def supervise(
    jobs: Sequence[Job],
    executor: Executor,
    uri: str | None,
    run_of: Callable[[Job], str | None],
    retries: Retries,
    watch: Watch,
    closed: Callable[[], str | None] = lambda: None,
) -> dict[str, Outcome]:
    """Run all jobs; one that fails for good never stops the rest. Once `closed` gives a reason, none starts any more.

    Gives the outcome of each by signature.
    """
    ended: dict[str, Outcome] = {}
    waiting, running = Waiting(jobs), set[str]()
    failures: Counter[tuple[str, Cause | None]] = Counter()

    def end(last: Outcome) -> None:
        ended[last.job.signature] = last
        watch(Event(last.job, last.kind, text=last.reason))
        for job in waiting.release(last):
            how = "from which it learns" if job.teachers else "from which it goes on"
            end(Outcome(job, None, "failed", f"{last.job.label}, {how}, is {last.kind}"))

    while waiting or running:
        for given_up in (*waiting.skipped(closed()), *waiting.hopeless(executor)):
            end(given_up)
        for job in waiting.startable(executor):
            running.add(job.signature)
            executor.submit(job, uri, run_of(job))
            watch(Event(job, "started"))
        for item in executor.poll(POLL_SECONDS) if running else ():
            if isinstance(item, Event):
                watch(item)
                continue
            running.discard(item.job.signature)
            failures[item.job.signature, item.cause] += 1
            times = failures[item.job.signature, item.cause]
            if item.cause and retries.allows(item.cause, times):
                watch(Event(item.job, "retry", text=item.reason))
                waiting.add(item.job)
            else:
                end(replace(item, reason=f"{item.reason} ({times} times)") if item.cause and times > 1 else item)
    return ended


class Waiting:
    """Jobs that wait: the ready ones in order, by what they ask of a machine; the others for the fits that they need.

    No step looks at every job, so that a plan of thousands costs as much a job as one of ten.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        ours = {job.signature for job in jobs}  # what a job needs and is not among them is done
        self.ready: dict[Hashable, deque[Job]] = {}
        self.needs: dict[str, set[str]] = {}
        self.needed_by: dict[str, list[Job]] = {}
        for job in jobs:
            missing = ours.intersection(job.needs)
            if not missing:
                self.add(job)
                continue
            self.needs[job.signature] = missing
            for signature in missing:
                self.needed_by.setdefault(signature, []).append(job)

    def __bool__(self) -> bool:
        return bool(self.needs) or any(self.ready.values())

    def add(self, job: Job) -> None:
        self.ready.setdefault((job.member.resources, job.train.threads), deque()).append(job)

    def skipped(self, why: str | None) -> list[Outcome]:
        """Where there is a reason, all of them, which wait no more."""
        if why is None:
            return []
        jobs = {job.signature: job for queue in self.ready.values() for job in queue}
        jobs |= {job.signature: job for of in self.needed_by.values() for job in of if job.signature in self.needs}
        self.ready.clear()
        self.needs.clear()
        return [Outcome(job, None, "skipped", why) for job in jobs.values()]

    def release(self, last: Outcome) -> list[Job]:
        """A fit ended: what needed it may be ready now; gives the jobs that can never be."""
        hopeless = []
        for job in self.needed_by.pop(last.job.signature, ()):
            missing = self.needs.get(job.signature)
            if missing is None:
                continue  # given up already, for another fit that it needed
            missing.discard(last.job.signature)
            if last.kind != "done":
                del self.needs[job.signature]
                hopeless.append(job)
            elif not missing:
                del self.needs[job.signature]
                self.add(job)
        return hopeless

    def hopeless(self, executor: Executor) -> list[Outcome]:
        """Of the ready jobs that no machine can hold; those that ask for the same are told by one of them."""
        found = []
        for queue in self.ready.values():
            if queue and (reason := executor.impossible(queue[0])):
                found += [Outcome(job, None, "unschedulable", reason) for job in queue]
                queue.clear()
        return found

    def startable(self, executor: Executor) -> Iterator[Job]:
        """One after another, as long as there is room; whoever takes one starts it before asking for the next."""
        for queue in self.ready.values():
            while queue and executor.room(queue[0]):
                yield queue.popleft()


def outcome(job: Job, result: dict[str, Any]) -> Outcome:
    """From what `workers.actor.work` gave."""
    if "error" not in result:
        return Outcome(job, result)
    if result["kind"] == "Diverged":
        return Outcome(job, None, "diverged", result["error"])
    if result["kind"] == Preempted.__name__:
        return Outcome(job, None, "failed", MACHINE_GONE, "preemptions")
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
            return
        job, uri, run = self.waiting
        self.waiting = None
        progress = Progress()
        yield Event(job, "working")
        result = work(job, uri, run, progress)
        yield Event(job, "epoch", progress.epoch_, progress.metrics)
        yield outcome(job, result)

    def stop(self, seconds: float) -> None:
        self.waiting = None

    def close(self) -> None:
        self.waiting = None
