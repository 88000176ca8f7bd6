"""Run a sweep: prepare, train, fuse, publish."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from fusion.results import FusionDetails
from orchestrator.config.loader import load_team
from orchestrator.config.smoke import smoke_team
from orchestrator.config.team import Team
from orchestrator.execution.budget import BudgetTracker
from orchestrator.execution.executor import Answer, Executor, OnEvent
from orchestrator.execution.job_logs import JobLogs
from orchestrator.execution.job_outcomes import Outcome
from orchestrator.execution.preflight import check_classes, check_recipes
from orchestrator.execution.scheduler import Scheduler
from orchestrator.fusing import MODULES, fuse
from orchestrator.fusing.progress import FILE, follow
from orchestrator.fusing.request import make_request
from orchestrator.home import Home, SweepFolder
from orchestrator.planning.plan import Plan, Planner
from orchestrator.planning.search import Search, resolve_recipes, run_no_search
from orchestrator.planning.start_weights import check_starts, fetch_weights
from orchestrator.reporting.report import run_note, write_report
from orchestrator.reporting.summary import histories, member_states, student_state, summarize
from orchestrator.results import MemberState, SweepSummary
from orchestrator.tracking.search_runs import log_search
from orchestrator.tracking.store import resolve_tracking_uri
from orchestrator.tracking.sweep_runs import SweepLocation, SweepRuns
from workers.config.resources import Resources
from workers.data.decoded_rows import OnProgress
from workers.data.inspection import check_packed, summarize_data
from workers.data.packing import pack_data
from workers.data.splits import keep_split
from workers.data.store import Store, find_store
from workers.data.summary import DataSummary
from workers.diagnostics.interrupts import uninterrupted
from workers.diagnostics.logs import DRIVER, driver_log, log_name
from workers.diagnostics.waiting import retry_while
from workers.errors import CorruptFileError, RayLostError, StoreUnavailableError, UserInputError
from workers.storage.training_folder import TrainingFolder

STOP_SECONDS = 7.0  # for a training to finish its step and write a checkpoint
FLUSH_SECONDS = 10.0
STORE_RETRY_SECONDS = 30.0  # how long an unreachable tracking store is retried
INTERRUPTED_FLUSH_SECONDS = 2.0
EXIT_DONE, EXIT_FAILED, EXIT_PARTIAL, EXIT_INTERRUPTED = 0, 1, 3, 130


@dataclass
class SweepOptions:
    """The options of `run_sweep`.

    Attributes:
        home: The home.
        make_executor: Returns the executor for a team's jobs.
        on_event: Called with every event of a job.
        say: Shows a line to the user.
        on_packing: Called with the numbers of decoded and expected rows.
        data: Folder or archive to use instead of data.root.
        restart: Members to train afresh.
        run_search: Runs the trials of a search; None if searches cannot run.
        begin_executor: Called with the resources and threads of each first training, before any check, unless the sweep is
            already finished. Raises UserInputError if the executor's machines do not answer.
        smoke_of: The home that this sweep tries things for, with a few images and two steps of each training; `home` is another
            one then. None for a sweep in earnest.
        began: The time.monotonic() at which the budget's hours start.
    """

    home: Home
    make_executor: Callable[[Team, SweepFolder], Executor]
    on_event: OnEvent = lambda event: None
    say: Callable[[str], None] = lambda text: None
    on_packing: OnProgress = lambda rows, expected: None
    data: Path | None = None
    restart: tuple[str, ...] = ()
    run_search: Callable[[Team, SweepFolder, Search], None] | None = None
    begin_executor: Callable[[Sequence[tuple[Resources, int]]], None] = lambda wanted: None
    smoke_of: Home | None = None
    began: float = field(default_factory=time.monotonic)


@dataclass
class SweepResult:
    """The summary of a sweep, and its exit code."""

    summary: SweepSummary
    exit_code: int


def run_sweep(team_file: Path, options: SweepOptions) -> SweepResult:
    """Train what isn't done, fuse, export and report.

    Args:
        team_file: The team file.
        options: The caller's options.

    Raises:
        UserInputError: On invalid input, before anything is written.
        ConclaveError: If the tracking store or the fusion step fails.
    """
    team = load_team(team_file, options.data)
    if options.smoke_of:
        team = smoke_team(team)
    team.check_names("--restart", options.restart)
    team = fetch_weights(team, options.smoke_of or options.home, options.say)
    if options.run_search is None and (searched := [r.name for r in team.trainings if r.search]):
        raise UserInputError(f"member {searched[0]}: search runs its trials on Ray. Leave --inline out.")
    uri = resolve_tracking_uri(team.tracking, team_file, options.home, options.say, team.tracking.experiment or team.name)
    location = SweepLocation(team_file, options.home, options.home.sweep(team.name), uri)
    import_paths = (str(team_file.resolve().parent),)
    plan = _plan_before_packing(team, options, import_paths)
    is_finished = plan is not None and not options.restart and not plan.todo and _is_unchanged(location.folder, plan)
    if not is_finished:
        options.begin_executor(_first_trainings(team, plan))
        check_recipes(team, import_paths)

    def check(packed: Store) -> None:
        split = check_packed(packed, team.data, team.seed, options.home.path)
        check_classes(team, packed.classes)
        if options.smoke_of is None:  # its scores mean nothing
            check_starts(team, packed, split)

    store = pack_data(team.data, options.home.path, options.on_packing, check, options.say)
    with location.folder.locked(options.say), driver_log(location.folder.logs / log_name("driver")):
        keep_split(store, team.data, team.seed, options.home.path, options.say)
        run_search = partial(options.run_search, team, location.folder) if options.run_search else run_no_search
        plan, searches = _plan_packed(Planner(team, store, options.home.path, import_paths), plan, run_search)
        return _Sweep(location, options, plan, searches).run()


def _plan_before_packing(team: Team, options: SweepOptions, import_paths: tuple[str, ...]) -> Plan | None:
    """Return the plan, or None if the data is not packed yet or a recipe needs a search."""
    store = find_store(team.data, options.home.path)
    if store is None or any(recipe.search for recipe in team.trainings):
        return None
    try:
        return Planner(team, store, options.home.path, import_paths).plan()
    except (CorruptFileError, FileNotFoundError):  # packing handles it
        return None


def _first_trainings(team: Team, plan: Plan | None) -> list[tuple[Resources, int]]:
    """Return the resources and threads of each first training; empty if search trials run before."""
    if any(recipe.search for recipe in team.trainings):
        return []
    if plan is None:
        return [(recipe.resources, team.train.threads) for recipe in team.trainings]
    return [(job.recipe.resources, job.train.threads) for job in plan.todo]


def _is_unchanged(folder: SweepFolder, plan: Plan) -> bool:
    try:
        summary, state = folder.summary(), folder.state()
    except CorruptFileError:  # it is rebuilt
        return False
    is_complete = summary is not None and summary.state == "done" and folder.model.is_file() and folder.report.is_file()
    if not is_complete or state is None or state.fingerprint != plan.fingerprint():
        return False
    return state.results == folder.result_digests()


def _plan_packed(planner: Planner, known: Plan | None, run_search: Callable[[Search], None]) -> tuple[Plan, Sequence[Search]]:
    """Return the plan and the searches behind it: the plan made before packing, unless damaged data was packed again."""
    if known and (known.store.folder, known.store.digest) == (planner.store.folder, planner.store.digest):
        return known, ()
    recipes = resolve_recipes(planner, run_search)
    return replace(recipes.planner.plan(), searched=recipes.seconds), recipes.searches


def describe_changes(before: Mapping[str, str], plan: Plan) -> list[str]:
    """Return a line for each setting that differs from `before`, the settings of the sweep's last run."""
    now = plan.settings() if before else {}
    differing = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
    return [f"changed since the last run: {k}: {before.get(k, 'unset')} -> {now.get(k, 'unset')}" for k in differing]


@dataclass
class _Sweep:
    """A sweep whose data is packed and whose folder is locked.

    Attributes:
        location: Where the sweep comes from and goes.
        options: The caller's options.
        plan: The plan. What is `done` in it was done before this sweep's first training.
        searches: The searches behind the plan.
        runs: The sweep's runs, once they are open.
        executor: Runs the jobs; None while none was needed.
        is_recovered: Whether Ray ended and was started again.
    """

    location: SweepLocation
    options: SweepOptions
    plan: Plan
    searches: Sequence[Search] = ()
    runs: SweepRuns = field(init=False)
    executor: Executor | None = None
    is_recovered: bool = False

    def run(self) -> SweepResult:
        folder, say = self.location.folder, self.options.say
        before = folder.state()
        for line in describe_changes(before.settings if before else {}, self.plan):
            say(line)
        if self.location.team_file.resolve() != folder.team.resolve():
            shutil.copyfile(self.location.team_file, folder.team)
        for job in self.plan.jobs:
            TrainingFolder.of(job).remove_leftovers()
        self._open_runs()
        counts = len(self.plan.jobs), len(self.plan.todo)
        DRIVER.info("sweep of %s: %d trainings, %d of them to do", self.location.team_file, *counts)
        return self._repeat() if not self.plan.todo and _is_unchanged(folder, self.plan) else self._run()

    def _settled(self, summary: SweepSummary, exit_code: int) -> SweepResult:
        """Send what the tracking store has not got yet, and keep the summary."""
        unsent = self.runs.flush(INTERRUPTED_FLUSH_SECONDS if exit_code == EXIT_INTERRUPTED else FLUSH_SECONDS)
        for note in self.runs.tracking.notes:
            self.options.say(note)
        summary = summary.model_copy(update={"unsent": unsent, "unsent_because": self.runs.problem})
        self.location.folder.keep(summary)
        return SweepResult(summary, exit_code)

    def _open_runs(self) -> None:
        """Open the sweep's runs and import trainings that only the store has.

        If the store does not answer, retry for half a minute. Then track in the home, unless the team requires its store.
        """
        try:
            retry_while(StoreUnavailableError, self._open_at_location, STORE_RETRY_SECONDS)
        except StoreUnavailableError:
            if self.plan.team.tracking.required or self.location.uri == self.location.home.tracking_uri:
                raise
            self.options.say(f"The tracking store doesn't answer. The sweep is tracked in {self.location.home.path} instead.")
            self.location = replace(self.location, uri=self.location.home.tracking_uri)
            self._open_at_location()

    def _open_at_location(self) -> None:
        """Open the sweep's runs in the store of `location`. Safe to repeat after a partial attempt."""
        self.runs = SweepRuns.open(self.location, self.plan, self.options.restart)
        for search in self.searches:
            log_search(self.runs, search)
        self.runs.import_remote()  # except those of restarted members
        self.plan = self.plan.refreshed()

    def _repeat(self) -> SweepResult:
        """Return the finished sweep's summary. If its runs are new in the tracking store, log the results there."""
        folder = self.location.folder
        before = folder.summary()
        assert before is not None  # the sweep is unchanged
        current = {"model": str(folder.model.absolute()), "tracking_uri": self.location.uri, "parent_run_id": self.runs.parent}
        summary = before.model_copy(update={**current, "trained": 0, "reused": len(self.plan.done)})
        if self.runs.is_new:
            details = folder.details()
            self.runs.finish(summary, run_note(summary, details), details)
        return self._settled(summary, EXIT_DONE)

    def _run(self) -> SweepResult:
        for line in self._data.lines():
            self.options.say(line)
        try:
            self.runs.start()
            summary, exit_code = self._train_and_fuse()
        except KeyboardInterrupt:
            return self._interrupt()
        except BaseException:
            self.runs.stop("FAILED", "failed")
            self.runs.flush(FLUSH_SECONDS)
            raise
        finally:
            if self.executor:
                self.executor.close()
        return self._settled(summary, exit_code)

    @cached_property
    def _data(self) -> DataSummary:
        return summarize_data(self.plan.store, self.plan.team.data, self.plan.split)

    @cached_property
    def _budget(self) -> BudgetTracker:
        folder = self.location.folder
        return BudgetTracker.from_plan(self.plan, folder, JobLogs(folder.logs, self.options.on_event), self.options.began)

    def _train_and_fuse(self) -> tuple[SweepSummary, int]:
        """Return the summary and the exit code."""
        outcomes = self.runs.collect(self._with_ray(self._train))
        members, student = member_states(self.plan, outcomes), student_state(self.plan, outcomes)
        self.runs.mark_failed_members({**members, **({"student": student} if student else {})})
        done = [name for name, member in members.items() if member.is_done]
        if len(done) < self.plan.team.quorum:
            summary = summarize(self.plan, self.runs, outcomes, self._data)
            self.runs.finish(summary, run_note(summary))
            return summary, EXIT_FAILED
        self.options.say(f"fusing {len(done)} members: {', '.join(self.plan.team.fusion)}")
        details = self._with_ray(lambda: self._fuse(members))
        summary = summarize(self.plan, self.runs, outcomes, self._data, details)
        write_report(self.location.folder, self.plan, summary, details, histories(self.plan))
        self.runs.finish(summary, run_note(summary, details), details)
        return summary, EXIT_DONE if summary.state == "done" else EXIT_PARTIAL

    def _with_ray(self, step: Callable[[], Answer]) -> Answer:
        """Run a step. If Ray ended and could be restarted, run it once more. Finished trainings are kept."""
        try:
            return step()
        except RayLostError:
            if self.is_recovered or self.executor is None or not self.executor.recover():
                raise
            self.is_recovered = True
            self._budget.end_all()
            self.options.say("Ray ended on this machine and was started again; the sweep continues from its checkpoints")
            return step()

    def _train(self) -> dict[str, Outcome]:
        """Run the unfinished jobs and return their outcomes by key."""
        todo = self.plan.refreshed().todo
        if not todo:
            return {}
        team, options = self.plan.team, self.options
        self.executor = executor = self.executor or options.make_executor(team, self.location.folder)
        scheduler = Scheduler(
            executor=executor,
            retries=team.retries,
            on_event=self._budget,
            tracking_uri=self.location.uri,
            runs_of=self.runs.of_job,
            why_closed=self._budget.why_exhausted,
            when_all_run=lambda: executor.prepare_on_head(MODULES),
        )
        return scheduler.run(todo)

    def _fuse(self, members: Mapping[str, MemberState]) -> FusionDetails:
        request = make_request(self.plan, members, self.location.folder, self.runs)
        with follow(self.location.folder.logs / FILE, self.options.say):
            return self.executor.call_on_head(fuse, request) if self.executor else fuse(request)

    def _interrupt(self) -> SweepResult:
        """Let the trainings write their checkpoints, unless interrupted again, and settle the runs."""
        with contextlib.suppress(KeyboardInterrupt):
            self.options.say("stopping: each training writes a checkpoint first. Ctrl-C again stops at once")
            if self.executor:
                self.executor.stop(STOP_SECONDS)
        with uninterrupted():
            self.runs.stop("KILLED", "interrupted")
            summary = summarize(self.plan, self.runs, {}, self._data).model_copy(update={"state": "interrupted"})
            return self._settled(summary, EXIT_INTERRUPTED)
