"""Recipes that are to be found: what counts as the same search, what is kept of it, and what a trial may see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from orchestrator import sweep as pipeline
from orchestrator.config import loader as config
from orchestrator.config import yaml_document as teamfile
from orchestrator.config.team import Team
from orchestrator.execution.ray_backend import inline_executor
from orchestrator.execution.tuning import searcher, suggest
from orchestrator.home import Home
from orchestrator.planning import search
from orchestrator.planning.plan import Planner
from orchestrator.planning.search import Search
from tests.factories import TEAM, FakeStore, snapshot
from workers.config.search_space import Choice
from workers.data import packing as data
from workers.data.splits import keep_split
from workers.diagnostics.callback import TrainingCallback
from workers.errors import ConclaveError, RayLostError, UserInputError
from workers.runtime import search_trial as trial
from workers.training.optimizers.adamw import AdamW
from workers.training.optimizers.sgd import Sgd
from workers.training.task import TrainingData

SEARCH = "search: {trials: 3, keep: 2, lr: [0.01, 0.3], optimizer: [sgd, adamw], augment: {rotate: [1, 30]}}"
TEXT = "name: t\nmembers:\n  - {name: a}\n  - {name: b, seed: 5, optimizer: {kind: sgd, momentum: 0.8}, %s}\n"
CHOICES: tuple[Choice, ...] = (
    {"lr": 0.2, "optimizer": "sgd", "augment.rotate": 3.0},
    {"lr": 0.02, "optimizer": "adamw", "augment.rotate": 7.5},
    {"lr": 0.1, "optimizer": "sgd", "augment.rotate": 20.0},
)
ENDS = ([0.9, 0.5], [0.7, 0.3], [0.1])  # losses by epoch: the last was stopped early, and its loss says nothing


def team(text: str = TEXT % SEARCH) -> Team:
    return config.resolve_team(teamfile.parse_document(text, Path("/somewhere/team.yaml")))


def tried(one: Search) -> None:
    for choice, losses in zip(CHOICES, ENDS, strict=True):
        point = {"accuracy": 0.5, "seconds": 10.0}
        found = one.trials[one.add(dict(choice))]
        found.state, found.epochs = ("done" if len(losses) == 2 else "stopped"), [{"loss": loss, **point} for loss in losses]
    one.save()


def test_a_search_stands_for_the_members_that_it_will_find() -> None:
    made = team()
    assert [m.name for m in made.members] == ["a", "b-1", "b-2"]
    assert [(m.pick, m.seed) for m in made.members[1:]] == [(1, 5), (2, 6)]


def test_the_best_of_the_longest_trials_become_members(tmp_path: Path) -> None:
    ran: list[str] = []

    def run_search(one: Search) -> None:
        ran.append(one.label)
        tried(one)

    store = FakeStore(tmp_path / "store")
    found = search.resolve_recipes(Planner(team(), store, tmp_path), run_search)
    assert ran == ["b"]
    first, second = found.planner.team.members[1:]
    assert (first.name, first.seed, first.search, first.optimizer) == ("b-1", 5, None, AdamW(lr=0.02))
    assert (second.name, second.seed, second.optimizer) == ("b-2", 6, Sgd(lr=0.2, momentum=0.8)), "it keeps the rest of its kind"
    assert [(a.name, a.strength) for a in first.augment] == [("flip", 0.5), ("crop", 0.125), ("rotate", 7.5)]
    assert found.seconds == {"b-1": 25.0, "b-2": 25.0}, "fifty seconds of five epochs, shared"
    recipe = "{name: x, seed: 5, optimizer: {kind: adamw, lr: 0.02}, augment: [flip, crop, {rotate: 7.5}]}"
    written_by_hand = team(f"name: t\nmembers: [{recipe}]\n").members[0]
    assert first.fingerprint_fields() == written_by_hand.fingerprint_fields(), "it is a recipe like any other from then on"
    again = search.resolve_recipes(Planner(team(), store, tmp_path), lambda one: pytest.fail("done already"))
    assert again.planner.team == found.planner.team


def test_what_is_another_search_and_what_is_not(tmp_path: Path) -> None:
    store = FakeStore(tmp_path / "store")

    def signature(text: str) -> str:
        return next(iter(search.find_searches(Planner(team(text), store, tmp_path))))

    same = signature(TEXT % SEARCH)
    assert signature((TEXT % SEARCH).replace("keep: 2", "keep: 1")) == same
    assert signature((TEXT % SEARCH).replace("seed: 5", "seed: 7")) == same
    assert signature((TEXT % SEARCH).replace("0.3]", "0.4]")) != same
    assert signature((TEXT % SEARCH).replace("momentum: 0.8", "momentum: 0.9")) != same
    assert signature((TEXT % SEARCH) + "train: {epochs: 7}\n") != same


def test_what_failed_is_tried_again_where_too_little_is_left_and_else_is_not(tmp_path: Path) -> None:
    store = FakeStore(tmp_path / "store")

    def failing(states: list[str]) -> Search:
        one = next(iter(search.find_searches(Planner(team(), store, tmp_path)).values()))
        tried(one)
        for known, state in zip(one.trials.values(), states, strict=True):
            known.state = state
        one.save()
        return next(iter(search.find_searches(Planner(team(), store, tmp_path)).values()))

    assert failing(["done", "done", "failed"]).left == 0
    again = failing(["failed", "done", "failed"])
    assert (again.left, [one.state for one in again.trials.values()]) == (2, ["done"])


def test_two_sweeps_do_not_search_the_same_at_once(tmp_path: Path) -> None:
    store = FakeStore(tmp_path / "store")
    one, other = (next(iter(search.find_searches(Planner(team(), store, tmp_path)).values())) for _ in range(2))
    with one.locked():
        with pytest.raises(ConclaveError, match="another sweep is running this search"):
            search.resolve_recipes(Planner(team(), store, tmp_path), tried)
        tried(one)
    with other.locked():
        assert other.left == 0, "what the first found is found"


def test_too_few_trials_are_told(tmp_path: Path) -> None:
    one = next(iter(search.find_searches(Planner(team(), FakeStore(tmp_path / "store"), tmp_path)).values()))
    one.trials[one.add(dict(CHOICES[0]))].state = "failed"
    with pytest.raises(ConclaveError, match="search of b: 0 of 1 trials came to an end without an error, and 2 are to be kept"):
        one.best()
    assert one.left == 2


def test_where_all_trials_diverged_nothing_is_trained_with_the_best_of_them(tmp_path: Path) -> None:
    one = next(iter(search.find_searches(Planner(team(), FakeStore(tmp_path / "store"), tmp_path)).values()))
    for choice in CHOICES:
        trial = one.trials[one.add(dict(choice))]
        trial.state, trial.epochs = "done", [{"loss": search.DIVERGED, "accuracy": 0.0, "seconds": 0.0}]
    with pytest.raises(ConclaveError, match=rf"search of b: all {len(CHOICES)} trials diverged.*Give it a"):
        one.best()
    trial.epochs = [{"loss": 1.0, "accuracy": 0.5, "seconds": 0.0}]
    with pytest.raises(ConclaveError, match=rf"1 of {len(CHOICES)} trials came to an end without an error, and 2 are to be kept"):
        one.best()


def test_a_trial_sees_neither_fuse_nor_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = team("name: t\ndata: {dataset: digits}\nmembers: [{name: b, search: {trials: 2, lr: [0.01, 0.3]}}]\n")
    store = data.pack_data(made.data, tmp_path)
    parts = keep_split(store, made.data, made.seed, tmp_path)
    seen: list[TrainingData] = []
    monkeypatch.setattr(trial, "train", lambda make, task: seen.append(task.data))
    one = next(iter(search.find_searches(Planner(made, store, tmp_path)).values()))
    trial.run_trial(one.job({"lr": 0.1}), TrainingCallback())
    assert seen[0].watch is None
    assert seen[0].stop is not None
    assert sorted([*seen[0].fit.tolist(), *seen[0].stop.tolist()]) == sorted(parts.fit.tolist())
    assert abs(len(seen[0].stop) / len(parts.fit) - 0.1) < 0.01
    assert not np.isin(seen[0].stop, parts.fuse).any()


def test_a_trial_tells_its_score_each_epoch_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    made = team("name: t\ntrain: {epochs: 2}\ndefaults: {width: 4}\nmembers: [{name: b, search: {trials: 2, lr: [0.01, 0.3]}}]\n")
    store = data.pack_data(made.data, tmp_path)
    keep_split(store, made.data, made.seed, tmp_path)
    one = next(iter(search.find_searches(Planner(made, store, tmp_path)).values()))

    class Scores(TrainingCallback):
        def __init__(self) -> None:
            self.losses, self.history = list[float](), list[dict[str, float]]()

        def on_resume(self, history: Sequence[dict[str, float]]) -> None:
            self.history = list(history)

        def on_epoch_end(self, epoch: int, metrics: dict[str, float]) -> None:
            self.losses.append(metrics[trial.LOSS])

    first, second = Scores(), Scores()
    trial.run_trial(one.job({"lr": 0.1}), first)
    trial.run_trial(one.job({"lr": 0.1}), second)
    assert (len(first.losses), second.losses) == (2, [])
    assert [e[trial.LOSS] for e in second.history] == first.losses
    assert not any(key.startswith("fuse") for key in second.history[0])


def test_without_ray_a_search_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text(TEAM.replace("{name: a}", "{name: a, search: {trials: 2, lr: [0.01, 0.3]}}"))
    before = snapshot(tmp_path)
    with pytest.raises(UserInputError, match=r"member a: search runs its trials on Ray\. Leave --inline out"):
        pipeline.run_sweep(tmp_path / "team.yaml", pipeline.SweepOptions(Home(tmp_path / "home"), inline_executor))
    assert snapshot(tmp_path) == before


def test_each_choice_follows_from_the_record_alone(tmp_path: Path) -> None:
    """A search that is killed after any trial, or in the middle of one, goes on as if it had not been."""

    def choices(home: str, is_killed: bool) -> list[Choice]:
        planner = Planner(team(), FakeStore(tmp_path / "store"), tmp_path / home)
        recipe = planner.team.trainings[1]
        one, chosen = Search(planner, recipe), list[Choice]()
        for number in range(14):
            chosen.append(suggest(one))
            name = one.add(chosen[-1])
            if is_killed:
                one = Search(planner, recipe)
                assert [trial.choice for trial in one.trials.values() if not trial.has_ended] == chosen[-1:]
            loss = abs(float(chosen[-1]["lr"]) - 0.1) + number / 1000
            one.trials[name].state = "done"
            one.trials[name].epochs = [{"loss": loss, "accuracy": 0.5, "seconds": 1.0}]
            one.save()
            one = Search(planner, recipe) if is_killed else one
        return chosen

    undisturbed = choices("a", is_killed=False)
    assert undisturbed == choices("b", is_killed=True)
    assert len({str(choice) for choice in undisturbed}) == 14


def test_a_trial_is_recorded_before_anybody_hears_of_its_end(tmp_path: Path) -> None:
    planner = Planner(team(), FakeStore(tmp_path / "store"), tmp_path)
    one = Search(planner, planner.team.trainings[1])
    recorded: list[str] = []

    def say(line: str) -> None:
        recorded.append(next(iter(Search(planner, one.recipe).trials.values())).state)

    recorder = searcher(one, say, lambda: None)
    recorder.suggest("0")
    recorder.on_trial_complete("0", {"epoch": 1.0, "loss": 0.5, "accuracy": 0.5, "seconds": 1.0})
    assert recorded == ["stopped"]


def test_an_epoch_that_is_reported_again_is_recorded_once(tmp_path: Path) -> None:
    """A trial whose process died goes on from its checkpoint, and reports what it did before."""
    planner = Planner(team(), FakeStore(tmp_path / "store"), tmp_path)
    one = Search(planner, planner.team.trainings[1])
    recorder = searcher(one, lambda line: None, lambda: None)
    recorder.suggest("0")
    for epoch in (1, 2, 1, 2, 3):
        recorder.on_trial_result("0", {"epoch": epoch, "loss": epoch / 10, "accuracy": 0.5, "seconds": 1.0})
    [trial] = Search(planner, one.recipe).trials.values()
    assert [point["loss"] for point in trial.epochs] == [0.1, 0.2, 0.3]


def test_a_trial_that_fails_because_ray_is_gone_is_not_recorded_as_failed(tmp_path: Path) -> None:
    planner = Planner(team(), FakeStore(tmp_path / "store"), tmp_path)
    one = Search(planner, planner.team.trainings[1])

    def check() -> None:
        raise RayLostError("gone")

    recorder = searcher(one, lambda line: None, check)
    recorder.suggest("0")
    with pytest.raises(RayLostError):
        recorder.on_trial_complete("0", error=True)
    assert [trial.state for trial in Search(planner, one.recipe).trials.values()] == ["running"]
