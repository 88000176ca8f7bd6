"""Diversity and significance: each formula against an independent oracle or a hand-made case."""

import numpy as np
import pytest
from scipy.stats import pearsonr

from fusion.metrics.diversity import confusion, diversity, pair
from fusion.metrics.scores import detectable, holm
from fusion.predictions import Predictions, softmax
from tests.factories import CLASSES, table


def rights(text: str) -> np.ndarray:
    """ "11 10" -> two members by rows."""
    return np.array([[c == "1" for c in row] for row in text.split()])


def test_a_pair_by_hand() -> None:
    """Rows: 3 both right, 2 the first alone, 1 the second alone, 2 nobody."""
    found = pair("a", "b", rights("11111000 11100100"))
    assert found.disagreement == pytest.approx(3 / 8)
    assert found.double_fault == pytest.approx(2 / 8)
    assert found.q == pytest.approx((3 * 2 - 2 * 1) / (3 * 2 + 2 * 1))


def test_error_correlation_is_pearsons() -> None:
    right = np.random.default_rng(0).random((2, 500)) < np.array([[0.7], [0.8]])
    right[1, :200] = right[0, :200]
    assert pair("a", "b", right).error_correlation == pytest.approx(pearsonr(*right.astype(float)).statistic)


@pytest.mark.parametrize("text", ["1111 1111", "0000 0000", "1111 0000"])
def test_nothing_divided_by_nothing_is_nothing(text: str) -> None:
    found = pair("a", "b", rights(text))
    assert (found.q, found.error_correlation) == (0.0, 0.0)


def test_confusion_is_sklearns() -> None:
    from sklearn.metrics import confusion_matrix

    generator = np.random.default_rng(0)
    labels, guesses = generator.integers(0, 4, 300), generator.integers(0, 3, 300)
    assert confusion(guesses, labels, 4) == confusion_matrix(labels, guesses, labels=range(4)).tolist()


def test_identical_members_gain_nothing_and_the_verdict_says_so() -> None:
    one = table(2000)
    found = diversity(["a", "b"], Predictions(np.stack([one.logits[0]] * 2), (), one.labels))
    assert found.pairs[0].disagreement == 0
    assert found.oracle == pytest.approx(float((one.logits[0].argmax(1) == one.labels).mean()))
    assert found.verdict.startswith(
        f"At least one member is right on {found.oracle:.1%} of the fuse images, and the best member on"
    )
    assert f"best member on {found.oracle:.1%}. Nearly" in found.verdict
    assert "Nearly the same: a and b" in found.verdict


def test_a_bad_third_member_makes_nobody_the_same() -> None:
    """Two members that err independently, and one that hardly knows anything: its errors say nothing of the pair."""
    one = table(4000, skill=(1.2, 1.2, 0.0))
    assert "Nearly the same" not in diversity(["a", "b", "c"], one).verdict


def test_independent_members_differ_and_more_of_them_vote_better() -> None:
    one = table(4000, skill=(0.7, 0.7, 0.7))
    found = diversity(["a", "b", "c"], one)
    right = one.logits.argmax(2) == one.labels
    assert found.disagreement_over_error > 0.5
    assert "Nearly the same" not in found.verdict
    assert (
        f"right on {right.any(0).mean():.1%} of the fuse images, and the best member on {right.mean(1).max():.1%}"
        in found.verdict
    )
    alone, two, all_three = found.vote_accuracy
    assert alone == pytest.approx(right.mean())
    assert alone < two < all_three == pytest.approx((softmax(one.logits).mean(0).argmax(1) == one.labels).mean())


def test_one_member_has_nothing_to_fuse() -> None:
    one = table(100, members=1, skill=(1.0,))
    assert diversity(["a"], one).verdict.startswith("One member alone")


def test_holm_by_hand() -> None:
    """Holm 1979's steps: 0.01 x 3, 0.02 x 2, then never smaller than the one before."""
    assert holm({"a": 0.02, "b": 0.01, "c": 0.03}) == pytest.approx({"b": 0.03, "a": 0.04, "c": 0.04})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


def test_the_detectable_difference_is_seen_in_four_of_five_tests() -> None:
    """Two classifiers that differ by just that much: McNemar's test finds it about 80 % of the time."""
    from scipy.stats import binomtest

    generator = np.random.default_rng(0)
    n, differing = 4000, 0.1
    labels = np.zeros(n, dtype=int)
    right = np.tile([1.0, 0.0], (n, 1))
    other = right.copy()
    other[: int(n * differing)] = [0.0, 1.0]
    gain = detectable(right, other, labels)
    assert gain == pytest.approx(2.8016 * np.sqrt(differing / n), rel=1e-4)
    found = 0
    for _ in range(400):
        won, lost, _ = generator.multinomial(n, [(differing + gain) / 2, (differing - gain) / 2, 1 - differing])
        found += binomtest(int(won), int(won + lost)).pvalue < 0.05
    assert 0.72 < found / 400 < 0.88


def test_confusions_count_every_row() -> None:
    found = diversity(["a", "b", "c"], table(400))
    assert all(np.sum(matrix) == 400 and len(matrix) == CLASSES for matrix in found.confusion.values())
