"""Run a search's trials with Ray Tune: Optuna's TPE samples the settings, ASHA stops bad trials early.

Tune only schedules. Trials and their results are written to the search's own record, from which a later run resumes.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.connection import Connection
from orchestrator.cluster.machines import EXPECTS_GPUS
from orchestrator.planning.search import Search, describe_choice
from workers.config.job import derive_seed
from workers.config.search_space import Choice
from workers.diagnostics.callback import Epoch, TrainingCallback
from workers.errors import ConclaveError, DivergedError
from workers.runtime.search_trial import ACCURACY, LOSS, run_trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from workers.runtime.actor import JobLocalizer

DIGITS = 4  # significant digits of sampled settings, for readable recipes
Result = Mapping[str, float]  # metrics of a trial after an epoch
DIVERGED = 1e9  # loss reported for a diverged trial


@dataclass(frozen=True)
class Tuner:
    """Runs searches on Ray.

    Attributes:
        connection: The connection to Ray.
        say: Shows a line to the user.
        localizer: Prepares trials for their machines.
    """

    connection: Connection
    say: Callable[[str], None]
    localizer: JobLocalizer

    def __call__(self, search: Search) -> None:
        """Run trials until all have ended. After a KeyboardInterrupt, the search can be resumed."""
        os.environ |= {"TUNE_DISABLE_SIGINT_HANDLER": "1", "RAY_AIR_NEW_OUTPUT": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
        private = self.connection.folder  # removed even if this process is killed
        with tempfile.TemporaryDirectory(dir=private.path if private else None) as folder:  # for Tune's own records
            self._run(search, folder)

    def _run(self, search: Search, folder: str) -> None:
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler

        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        logging.getLogger("optuna").setLevel(logging.ERROR)
        asha = ASHAScheduler("epoch", "loss", "min", max_t=search.epochs, grace_period=min(search.space.grace, search.epochs))
        resources = search.recipe.resources
        gpus = resources.gpus_where(EXPECTS_GPUS in os.environ or self.connection.ray.cluster_resources().get("GPU", 0) >= 1)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_train, search=search, localizer=self.localizer), {"cpu": resources.cpus, "gpu": gpus}
            ),
            tune_config=tune.TuneConfig(search_alg=_searcher(search), scheduler=asha, num_samples=search.left),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=3),
                callbacks=[keeper(search, self.say, self.connection.check)],
            ),
        )
        self.say(f"{search.label}: searching, {search.left} of {search.space.trials} trials left")
        self.connection.watch(tuner.fit)
        if search.left:
            raise ConclaveError(f"search of {search.label}: {search.left} trials did not finish. Run again.")


def rounded(search: Search, config: Choice) -> Choice:
    """Round a choice to DIGITS significant digits, within the ranges of the search space."""
    choice: Choice = {}
    for key, value in config.items():
        if isinstance(value, str):
            choice[key] = value
            continue
        low, high = search.space.augment[key.removeprefix("augment.")] if "." in key else getattr(search.space, key)
        choice[key] = min(max(float(f"{value:.{DIGITS}g}"), low), high)
    return choice


def _distributions(search: Search) -> dict[str, BaseDistribution]:
    """Return the search space as Optuna distributions."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    spec = search.space
    space: dict[str, BaseDistribution] = {}
    for key in ("lr", "weight_decay"):
        if bounds := getattr(spec, key):
            low, high = bounds
            space[key] = FloatDistribution(low, high, log=True)
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

    job, _, _ = localizer(search.job(rounded(search, config)))
    try:
        run_trial(job, _Reports())
    except DivergedError:
        tune.report({"epoch": search.epochs, "loss": DIVERGED, "accuracy": 0.0, "seconds": 0.0})


def _no_keeper() -> None:
    """Replace the searcher and the callback in Tune's pickled state, which is never read."""


def suggest(search: Search) -> Choice:
    """Choose the settings of the next trial, by Optuna's TPE.

    The choice depends only on the record and the trial's number in it, so a killed search resumes as if uninterrupted.
    """
    import optuna

    number, distributions = len(search.trials), _distributions(search)
    sampler = optuna.samplers.TPESampler(seed=derive_seed(search.signature, "choice", number) % 2**32)
    study = optuna.create_study(sampler=sampler)
    for trial in search.trials.values():
        if trial.has_ended and trial.epochs:
            loss = trial.epochs[-1]["loss"]
            study.add_trial(optuna.trial.create_trial(params=trial.choice, distributions=distributions, value=loss))
    return rounded(search, study.ask(distributions).params)


def _searcher(search: Search) -> Any:
    """Return a Tune searcher that repeats interrupted trials first, then suggests new choices."""
    from ray.tune.search import Searcher

    cut_off = [trial.choice for trial in search.trials.values() if not trial.has_ended]

    class Recorded(Searcher):  # type: ignore[misc]
        def suggest(self, trial_id: str) -> Choice:
            choice = cut_off.pop(0) if cut_off else suggest(search)
            search.add(choice)  # so that the next trial gets a new number
            return choice

        def on_trial_complete(self, trial_id: str, result: Result | None = None, error: bool = False) -> None:
            """Do nothing: the keeper writes the record."""

        def save(self, checkpoint_path: str) -> None:
            """Do nothing: the record holds all state."""

        def __reduce__(self) -> Any:
            return _no_keeper, ()

    return Recorded(metric="loss", mode="min")


def keeper(search: Search, say: Callable[[str], None], check: Callable[[], None]) -> Any:
    """Return a Tune callback that records the trials, and checks that Ray is alive."""
    from ray import tune

    class Keeper(tune.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.names: dict[str, str] = {}

        def __reduce__(self) -> Any:
            return _no_keeper, ()  # Tune's saved state is never read: the search's own record replaces it

        def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
            check()

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.names[trial.trial_id] = search.add(rounded(search, trial.config))

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Result, **info: Any) -> None:
            if "loss" in result:
                points = search.trials[self.names[trial.trial_id]].epochs
                points.append({key: float(result[key]) for key in ("loss", "accuracy", "seconds")})
                search.save()

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            name = self.names[trial.trial_id]
            record = search.trials[name]
            record.state = "done" if len(record.epochs) >= search.epochs else "stopped"
            loss = f"loss {record.epochs[-1]['loss']:.4f}" if record.epochs else "no epoch"
            text = f"{record.state} after {len(record.epochs)} epochs, {loss}"
            search.save()  # before the result is shown
            say(f"{search.label}: trial {describe_choice(record.choice)}: {text}")

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            search.trials[self.names[trial.trial_id]].state = "failed"
            search.save()

    return Keeper()
