"""What holds of every fusion, whatever the members' outputs are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.interface import FUSIONS
from fusion.methods.stack import Stack
from fusion.methods.vote import Vote
from fusion.methods.vote_logits import VoteLogits
from fusion.methods.weighted import CANDIDATES, Weighted
from fusion.predictions import FusionInputs, Predictions, TeamPredictions
from fusion.selection.fitting import fit_all
from tests.factories import CLASSES, table

LIKELIHOODS = st.integers(1, 6).flatmap(
    lambda members: st.lists(st.lists(st.floats(1e-6, 1.0), min_size=members, max_size=members), min_size=1, max_size=30).map(
        lambda rows: np.array(rows).T
    )
)


@pytest.mark.parametrize("name", CANDIDATES)
@given(likelihood=LIKELIHOODS)
def test_weights_lie_on_the_simplex(name: str, likelihood: np.ndarray) -> None:
    weights = CANDIDATES[name](likelihood)
    assert weights.shape == (len(likelihood),)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1.0)


SKILLS = st.lists(st.floats(0.0, 2.0), min_size=2, max_size=4)


def inputs(skills: list[float], seed: int) -> FusionInputs:
    members = len(skills)
    fuse, oof = (table(rows, members, tuple(skills), seed + rows) for rows in (80, 200))
    return FusionInputs(fuse, oof, np.arange(200) % 5, (), tuple(range(members)))


def reordered(predictions: Predictions, order: list[int]) -> Predictions:
    return replace(predictions, logits=predictions.logits[order])


@pytest.mark.parametrize("method", [Vote, VoteLogits, Weighted, Stack])
@settings(max_examples=15)
@given(skills=SKILLS, seed=st.integers(0, 1000), data=st.data())
def test_a_fusion_does_not_depend_on_the_order_of_the_members(
    method: type[Vote | VoteLogits | Weighted | Stack], skills: list[float], seed: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(skills))))
    first = inputs(skills, seed)
    assert first.oof is not None
    second = replace(first, fuse=reordered(first.fuse, order), oof=reordered(first.oof, order))
    test = table(50, len(skills), tuple(skills), seed + 1)
    ours = method().fit(first).predict_proba(test)
    theirs = method().fit(second).predict_proba(reordered(test, order))
    assert np.abs(ours - theirs).max() < (5e-4 if method is Stack else 1e-5)  # a head is fitted to a tolerance


@settings(max_examples=10)
@given(skills=SKILLS, seed=st.integers(0, 1000))
def test_every_fusion_gives_probabilities(skills: list[float], seed: int) -> None:
    given_inputs = inputs(skills, seed)
    rows, names = np.arange(80), tuple(f"m{i}" for i in range(len(skills)))
    team = TeamPredictions(names, tuple("wxyz"), given_inputs, given_inputs.fuse, rows, rows, rows)
    fitted = fit_all(team, [name for name in FUSIONS.own_names() if name not in ("concat", "student", "stack_bag")])
    assert set(fitted) == {*names, "vote", "vote_logits", "stack", "weighted", "cascade"}
    for name, fusion in fitted.items():
        probabilities = fusion.predict_proba(given_inputs.fuse)
        assert probabilities.shape == (80, CLASSES), name
        assert np.isfinite(probabilities).all(), name
        assert (probabilities >= 0).all(), name
        assert np.abs(probabilities.sum(1) - 1).max() < 1e-9, name
