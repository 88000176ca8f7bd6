"""Run a search's trials with Ray Tune: Optuna's TPE samples the settings, ASHA stops bad trials early.

Tune only schedules. Trials and their results are written to the search's own record, from which a later run resumes.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.connection import Connection
from orchestrator.cluster.machines import Machines
from orchestrator.planning.search import DIVERGED, Search, describe_choice
from workers.config.job import derive_seed
from workers.config.search_space import Choice
from workers.diagnostics.callback import Epoch, TrainingCallback
from workers.diagnostics.logs import DRIVER
from workers.errors import ConclaveError, DivergedError
from workers.runtime.search_trial import ACCURACY, LOSS, run_trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from workers.runtime.actor import JobLocalizer

DIGITS = 4  # significant digits of sampled settings, for readable recipes
Result = Mapping[str, float]  # metrics of a trial after an epoch


def run_trials(search: Search, connection: Connection, localizer: JobLocalizer, say: Callable[[str], None]) -> None:
    """Run trials until all have ended. After a KeyboardInterrupt, the search can be resumed.

    Args:
        search: The search.
        connection: The connection to Ray.
        localizer: Prepares trials for their machines.
        say: Shows a line to the user.

    Raises:
        ConclaveError: If trials did not finish.
        RayLostError: If Ray is gone.
    """
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    os.environ |= {"TUNE_DISABLE_SIGINT_HANDLER": "1", "RAY_AIR_NEW_OUTPUT": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").parent = DRIVER  # it logs the traceback of each trial whose process died
    logging.getLogger("optuna").setLevel(logging.ERROR)
    size = Machines(connection).size_for(search.recipe.resources)
    private = connection.folder  # removed even if this process is killed
    say(f"{search.label}: searching, {search.left} of {search.space.trials} trials left")
    with tempfile.TemporaryDirectory(dir=private.path if private else None) as folder:  # for Tune's own records
        connection.watch(
            lambda: tune.run(
                tune.with_parameters(_train, search=search, localizer=localizer),
                resources_per_trial={"cpu": size.cpus, "gpu": size.gpus},
                num_samples=search.left,
                storage_path=folder,
                search_alg=searcher(search, say, connection.check),
                scheduler=ASHAScheduler(
                    "epoch", "loss", "min", max_t=search.epochs, grace_period=min(search.space.grace, search.epochs)
                ),
                verbose=0,
                max_failures=3,
                raise_on_failed_trial=False,
            )
        )
    if search.left:
        raise ConclaveError(f"search of {search.label}: {search.left} trials did not finish. Run again.")


def _distributions(search: Search) -> dict[str, BaseDistribution]:
    """Return the search space as Optuna distributions."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    spec = search.space
    space: dict[str, BaseDistribution] = {}
    for key, bounds in (("lr", spec.lr), ("weight_decay", spec.weight_decay)):
        if bounds:
            space[key] = FloatDistribution(*bounds, log=True)
    if spec.optimizer:
        space["optimizer"] = CategoricalDistribution(list(spec.optimizer))
    return {**space, **{f"augment.{name}": FloatDistribution(*bounds) for name, bounds in spec.augment.items()}}


class _Reports(TrainingCallback):
    """Reports each epoch to Tune, including epochs before an interruption."""

    def on_resume(self, history: Sequence[Epoch]) -> None:
        """Report the epochs of a checkpoint."""
        for epoch, metrics in enumerate(history):
            self.on_epoch_end(epoch, metrics)

    def on_epoch_end(self, epoch: int, metrics: Epoch) -> None:
        """Report an epoch."""
        from ray import tune

        point = {"loss": metrics[LOSS], "accuracy": metrics[ACCURACY], "seconds": metrics["seconds"]}
        tune.report({"epoch": epoch + 1, **point})


def _train(config: Choice, search: Search, localizer: JobLocalizer) -> None:
    """Run a trial, in its own process."""
    from ray import tune

    job, _, _ = localizer(search.job(config))
    try:
        run_trial(job, _Reports())
    except DivergedError:
        tune.report({"epoch": search.epochs, "loss": DIVERGED, "accuracy": 0.0, "seconds": 0.0})


def suggest(search: Search) -> Choice:
    """Choose the settings of the next trial, by Optuna's TPE, rounded to DIGITS significant digits within their ranges.

    The choice depends only on the record and the trial's number in it, so a killed search resumes as if uninterrupted.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    number, distributions = len(search.trials), _distributions(search)
    sampler = optuna.samplers.TPESampler(seed=derive_seed(search.signature, "choice", number) % 2**32)
    study = optuna.create_study(sampler=sampler)
    for trial in search.trials.values():
        if trial.has_ended and trial.epochs:
            loss = trial.epochs[-1]["loss"]
            study.add_trial(optuna.trial.create_trial(params=trial.choice, distributions=distributions, value=loss))
    choice: Choice = study.ask(distributions).params
    for key, space in distributions.items():
        if isinstance(space, optuna.distributions.FloatDistribution):
            choice[key] = min(max(float(f"{choice[key]:.{DIGITS}g}"), space.low), space.high)
    return choice


def searcher(search: Search, say: Callable[[str], None], check: Callable[[], None]) -> Any:
    """Return a Tune searcher that repeats interrupted trials first, then suggests new choices, and records all trials.

    Args:
        search: The search, whose record is written after each epoch and before the end of a trial is shown.
        say: Shows a line to the user.
        check: Raises RayLostError if Ray is gone: then its answers about trials are wrong, and are not recorded.
    """
    from ray.tune.search import Searcher

    cut_off = [trial.choice for trial in search.trials.values() if not trial.has_ended]

    class Recorder(Searcher):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__("loss", "min")
            self.names: dict[str, str] = {}

        def suggest(self, trial_id: str) -> Choice:
            choice = cut_off.pop(0) if cut_off else suggest(search)
            self.names[trial_id] = search.add(choice)  # so that the next trial gets a new number
            return choice

        def on_trial_result(self, trial_id: str, result: Result) -> None:
            """Record an epoch. A trial whose process died repeats its epochs."""
            at = int(result["epoch"]) - 1
            point = {key: float(result[key]) for key in ("loss", "accuracy", "seconds")}
            search.trials[self.names[trial_id]].epochs[at : at + 1] = [point]
            search.save()

        def on_trial_complete(self, trial_id: str, result: Result | None = None, error: bool = False) -> None:
            if error:
                check()
            if result and "loss" in result:  # Tune reports a last epoch only here
                self.on_trial_result(trial_id, result)
            trial = search.trials[self.names[trial_id]]
            trial.state = "failed" if error else "done" if len(trial.epochs) >= search.epochs else "stopped"
            search.save()  # before the result is shown
            if not error:
                loss = f"loss {trial.epochs[-1]['loss']:.4f}" if trial.epochs else "no epoch"
                text = "diverged" if trial.has_diverged else f"{trial.state} after {len(trial.epochs)} epochs, {loss}"
                say(f"{search.label}: trial {describe_choice(trial.choice)}: {text}")

        def save(self, checkpoint_path: str) -> None:
            """Do nothing: the record holds all state."""

    return Recorder()
