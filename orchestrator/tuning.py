"""Trials by Ray Tune: Optuna says what to try (TPE), ASHA ends early what does worse than others at the same epoch.

Tune schedules; what was tried and how it went is written to the search's own record, from which another run goes on.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.connection import Connection
from orchestrator.machines import GPUS_COME
from orchestrator.search import Search, described
from workers import trial
from workers.elsewhere import Disk
from workers.environment import environment
from workers.errors import ConclaveError, Diverged
from workers.space import Choice
from workers.watcher import Epoch, Watcher

if TYPE_CHECKING:
    from workers.actor import Start

DIGITS = 4  # of what is chosen: a recipe that people can read
DIVERGED = 1e9  # the loss of a trial that came to none


@dataclass(frozen=True)
class Tuner:
    """Runs searches on a Ray."""

    connection: Connection
    say: Callable[[str], None]
    strict: bool = False
    disk: Disk | None = None

    def _start(self) -> Start:
        from workers.actor import Start

        return Start(environment(), self.strict, self.disk)

    def __call__(self, search: Search) -> None:
        """Try until all trials came to an end. Raises KeyboardInterrupt where somebody wants it to stop; it can go on."""
        os.environ |= {"TUNE_DISABLE_SIGINT_HANDLER": "1", "RAY_AIR_NEW_OUTPUT": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
        with tempfile.TemporaryDirectory() as folder:  # for Tune's own records
            self._run(search, folder)

    def _run(self, search: Search, folder: str) -> None:
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.optuna import OptunaSearch

        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        logging.getLogger("optuna").setLevel(logging.ERROR)
        space, known = _space(search), [t for t in search.trials.values() if t.ended]
        again = [t.choice for t in search.trials.values() if not t.ended]
        sampler = OptunaSearch(
            OptunaSearch.convert_search_space(space),
            metric="loss",
            mode="min",
            seed=search.job({}).seed % 2**31 + len(known),
            points_to_evaluate=again or None,
        )
        for one in known:
            if one.epochs:
                sampler.add_evaluated_point(one.choice, one.epochs[-1]["loss"])
        asha = ASHAScheduler("epoch", "loss", "min", max_t=search.epochs, grace_period=min(search.space.grace, search.epochs))
        asked = search.member.resources
        gpus = asked.gpus_where(GPUS_COME in os.environ or self.connection.ray.cluster_resources().get("GPU", 0) >= 1)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_train, search=search, start=self._start()), {"cpu": asked.cpus, "gpu": gpus}
            ),
            tune_config=tune.TuneConfig(search_alg=sampler, scheduler=asha, num_samples=search.left),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=3),
                callbacks=[_keeper(search, self.say)],
            ),
        )
        self.say(f"{search.label}: searching, {search.left} of {search.space.trials} trials left")
        tuner.fit()
        if search.left:
            raise ConclaveError(f"search of {search.label}: {search.left} trials did not come to an end. Run again.")


def rounded(search: Search, config: dict[str, Any]) -> Choice:
    """What Tune chose, in digits that people can read, within the ranges."""
    found: Choice = {}
    for key, value in config.items():
        if isinstance(value, str):
            found[key] = value
            continue
        low, high = search.space.augment[key.removeprefix("augment.")] if "." in key else getattr(search.space, key)
        found[key] = min(max(float(f"{value:.{DIGITS}g}"), low), high)
    return found


def _space(search: Search) -> dict[str, Any]:
    """In Tune's terms."""
    from ray import tune

    asked, space = search.space, {}
    for key in ("lr", "weight_decay"):
        if bounds := getattr(asked, key):
            space[key] = tune.loguniform(*bounds)
    if asked.optimizer:
        space["optimizer"] = tune.choice(list(asked.optimizer))
    return {**space, **{f"augment.{name}": tune.uniform(*bounds) for name, bounds in asked.augment.items()}}


class _Reports(Watcher):
    """Each epoch to Tune, those before an interruption too."""

    def resumed(self, history: list[Epoch]) -> None:
        for epoch, metrics in enumerate(history):
            self.epoch(epoch, metrics)

    def epoch(self, epoch: int, metrics: Epoch) -> None:
        from ray import tune

        told = {"loss": metrics[trial.LOSS], "accuracy": metrics[trial.ACCURACY], "seconds": metrics["seconds"]}
        tune.report({"epoch": epoch + 1, **told})


def _train(config: dict[str, Any], search: Search, start: Start) -> None:
    """In a trial's process."""
    from ray import tune

    job, _, _ = start(search.job(rounded(search, config)))
    try:
        trial.run(job, _Reports())
    except Diverged:
        tune.report({"epoch": search.epochs, "loss": DIVERGED, "accuracy": 0.0, "seconds": 0.0})


def _nobody() -> None:
    """What a keeper is in Tune's copy."""


def _keeper(search: Search, say: Callable[[str], None]) -> Any:
    """Tune's callback: writes down what happens to trials."""
    from ray import tune

    class Keeper(tune.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.names: dict[str, str] = {}

        def __reduce__(self) -> Any:
            return _nobody, ()  # Tune keeps a copy of itself, which nobody asks for: the search's own record is the truth

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.names[trial.trial_id] = search.add(rounded(search, trial.config))

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
            if "loss" in result:
                points = search.trials[self.names[trial.trial_id]].epochs
                points.append({key: float(result[key]) for key in ("loss", "accuracy", "seconds")})
                search.save()

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            name = self.names[trial.trial_id]
            one = search.trials[name]
            one.state = "done" if len(one.epochs) >= search.epochs else "stopped"
            told = f"loss {one.epochs[-1]['loss']:.4f}" if one.epochs else "no epoch"
            say(f"{search.label}: trial {described(one.choice)}: {one.state} after {len(one.epochs)} epochs, {told}")
            search.save()

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            search.trials[self.names[trial.trial_id]].state = "failed"
            search.save()

    return Keeper()
