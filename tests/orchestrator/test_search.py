"""Recipes that are to be found: what counts as the same search, what is kept of it, and what a trial may see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator import config, pipeline, search, teamfile
from orchestrator.home import Home
from orchestrator.pools import inline_pool
from orchestrator.search import Search
from orchestrator.team import Team
from tests.conftest import TEAM, snapshot
from tests.orchestrator.test_plan import FakeStore
from workers import data, trial
from workers.errors import ConclaveError, Rejected
from workers.recipe import AdamW, Sgd
from workers.splits import split
from workers.trainer import FitData
from workers.watcher import Watcher

SEARCH = "search: {trials: 3, keep: 2, lr: [0.01, 0.3], optimizer: [sgd, adamw], augment: {rotate: [1, 30]}}"
TEXT = "name: t\nmembers:\n  - {name: a}\n  - {name: b, seed: 5, optimizer: {kind: sgd, momentum: 0.8}, %s}\n"
CHOICES = (
    {"lr": 0.2, "optimizer": "sgd", "augment.rotate": 3.0},
    {"lr": 0.02, "optimizer": "adamw", "augment.rotate": 7.5},
    {"lr": 0.1, "optimizer": "sgd", "augment.rotate": 20.0},
)
ENDS = ([0.9, 0.5], [0.7, 0.3], [0.1])  # losses by epoch: the last was stopped early, and its loss says nothing


def team(text: str = TEXT % SEARCH) -> Team:
    return config.resolve(teamfile.parse(text, Path("/somewhere/team.yaml")))


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
    store = FakeStore(tmp_path / "store")
    found = search.resolved(team(), store, tmp_path, (), lambda one: (ran.append(one.label), tried(one))[0])
    assert ran == ["b"]
    first, second = found.team.members[1:]
    assert (first.name, first.seed, first.search, first.optimizer) == ("b-1", 5, None, AdamW(lr=0.02))
    assert (second.name, second.seed, second.optimizer) == ("b-2", 6, Sgd(lr=0.2, momentum=0.8)), "it keeps the rest of its kind"
    assert [(a.name, a.strength) for a in first.augment] == [("flip", 0.5), ("crop", 0.125), ("rotate", 7.5)]
    assert found.seconds == {"b-1": 25.0, "b-2": 25.0}, "fifty seconds of five epochs, shared"
    recipe = "{name: x, seed: 5, optimizer: {kind: adamw, lr: 0.02}, augment: [flip, crop, {rotate: 7.5}]}"
    written_by_hand = team(f"name: t\nmembers: [{recipe}]\n").members[0]
    assert first.science() == written_by_hand.science(), "it is a recipe like any other from then on"
    again = search.resolved(team(), store, tmp_path, (), lambda one: pytest.fail("done already"))
    assert again.team == found.team


def test_what_is_another_search_and_what_is_not(tmp_path: Path) -> None:
    store = FakeStore(tmp_path / "store")

    def signature(text: str) -> str:
        return next(iter(search.searches(team(text), store, tmp_path)))

    same = signature(TEXT % SEARCH)
    assert signature((TEXT % SEARCH).replace("keep: 2", "keep: 1")) == same
    assert signature((TEXT % SEARCH).replace("seed: 5", "seed: 7")) == same
    assert signature((TEXT % SEARCH).replace("0.3]", "0.4]")) != same
    assert signature((TEXT % SEARCH).replace("momentum: 0.8", "momentum: 0.9")) != same
    assert signature((TEXT % SEARCH) + "train: {epochs: 7}\n") != same


def test_what_failed_is_tried_again_where_too_little_is_left_and_else_is_not(tmp_path: Path) -> None:
    store = FakeStore(tmp_path / "store")

    def failing(states: list[str]) -> Search:
        one = next(iter(search.searches(team(), store, tmp_path).values()))
        tried(one)
        for known, state in zip(one.trials.values(), states, strict=True):
            known.state = state
        one.save()
        return next(iter(search.searches(team(), store, tmp_path).values()))

    assert failing(["done", "done", "failed"]).left == 0
    again = failing(["failed", "done", "failed"])
    assert (again.left, [one.state for one in again.trials.values()]) == (2, ["done"])


def test_two_sweeps_do_not_search_the_same_at_once(tmp_path: Path) -> None:
    store = FakeStore(tmp_path / "store")
    one, other = (next(iter(search.searches(team(), store, tmp_path).values())) for _ in range(2))
    with one.held():
        with pytest.raises(ConclaveError, match="another sweep is at it"):
            search.resolved(team(), store, tmp_path, (), tried)
        tried(one)
    with other.held():
        assert other.left == 0, "what the first found is found"


def test_too_few_trials_are_told(tmp_path: Path) -> None:
    one = next(iter(search.searches(team(), FakeStore(tmp_path / "store"), tmp_path).values()))
    one.trials[one.add(dict(CHOICES[0]))].state = "failed"
    with pytest.raises(ConclaveError, match="search of b: 0 of 1 trials came to an end without an error, and 2 are to be kept"):
        one.best()
    assert one.left == 2


def test_a_trial_sees_neither_fuse_nor_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = team("name: t\ndata: {dataset: digits}\nmembers: [{name: b, search: {trials: 2, lr: [0.01, 0.3]}}]\n")
    store = data.pack(made.data, tmp_path)
    parts = split(store, made.data, made.seed)
    seen: list[FitData] = []
    monkeypatch.setattr(trial, "fit", lambda make, rows, *rest: seen.append(rows))
    one = next(iter(search.searches(made, store, tmp_path).values()))
    trial.run(one.job({"lr": 0.1}), Watcher())
    assert seen[0].watch is None
    assert seen[0].stop is not None
    assert sorted([*seen[0].fit.tolist(), *seen[0].stop.tolist()]) == sorted(parts.fit.tolist())
    assert abs(len(seen[0].stop) / len(parts.fit) - 0.1) < 0.01
    assert not np.isin(seen[0].stop, parts.fuse).any()


def test_a_trial_tells_its_score_each_epoch_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    made = team("name: t\ntrain: {epochs: 2}\ndefaults: {width: 4}\nmembers: [{name: b, search: {trials: 2, lr: [0.01, 0.3]}}]\n")
    one = next(iter(search.searches(made, data.pack(made.data, tmp_path), tmp_path).values()))

    class Scores(Watcher):
        def __init__(self) -> None:
            self.losses, self.history = list[float](), list[dict[str, float]]()

        def resumed(self, history: list[dict[str, float]]) -> None:
            self.history = list(history)

        def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
            self.losses.append(metrics[trial.LOSS])

    first, second = Scores(), Scores()
    trial.run(one.job({"lr": 0.1}), first)
    trial.run(one.job({"lr": 0.1}), second)
    assert (len(first.losses), second.losses) == (2, [])
    assert [e[trial.LOSS] for e in second.history] == first.losses
    assert not any(key.startswith("fuse") for key in second.history[0])


def test_without_ray_a_search_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text(TEAM.replace("{name: a}", "{name: a, search: {trials: 2, lr: [0.01, 0.3]}}"))
    before = snapshot(tmp_path)
    with pytest.raises(Rejected, match=r"member a: search runs its trials on Ray\. Leave --inline out"):
        pipeline.sweep(tmp_path / "team.yaml", pipeline.Options(Home(tmp_path / "home"), inline_pool))
    assert snapshot(tmp_path) == before
