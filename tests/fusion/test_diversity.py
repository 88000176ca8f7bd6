"""Diversity and significance: each formula against an independent oracle or a hand-made case."""

import numpy as np
import pytest
from scipy.stats import pearsonr

from fusion.metrics.diversity import confusion, diversity, forecast, limit_of, mean_hits, pair
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
    assert "next to nothing" in found.verdict
    assert "Nearly the same: a and b" in found.verdict


def test_a_bad_third_member_makes_nobody_the_same() -> None:
    """Two members that err independently, and one that hardly knows anything: its errors say nothing of the pair."""
    one = table(4000, skill=(1.2, 1.2, 0.0))
    assert "Nearly the same" not in diversity(["a", "b", "c"], one).verdict


def test_a_vote_that_gains_nothing_is_not_all_fusing() -> None:
    """Two good members among three useless ones: weights would gain what a vote does not."""
    one = table(4000, members=5, skill=(1.0, 1.0, 0.0, 0.0, 0.0))
    loud = Predictions(one.logits * np.array([1, 1, 4, 4, 4])[:, None, None], (), one.labels)
    said = diversity(list("abcde"), loud).verdict
    assert said.startswith("A vote gains next to nothing in accuracy here")
    assert "Nearly the same" not in said, "not even those that guess: they guess differently"


def test_independent_members_differ_and_more_would_gain() -> None:
    one = table(4000, skill=(0.7, 0.7, 0.7))
    found = diversity(["a", "b", "c"], one)
    assert found.disagreement_over_error > 0.5
    assert "Nearly the same" not in found.verdict
    accuracies = [row.accuracy for row in found.forecast]
    assert [row.members for row in found.forecast] == [1, 2, 3, 4, 5, 6]
    assert [row.measured for row in found.forecast] == [True] * 3 + [False] * 3
    assert accuracies == sorted(accuracies)


def test_the_forecast_is_near_what_more_members_give() -> None:
    """Five members are measured; the forecast from the first three is within two points."""
    five = table(6000, members=5, skill=(0.7,) * 5)
    ahead = forecast(mean_hits(softmax(five.logits[:3]), five.labels), 5)
    vote = float((softmax(five.logits).mean(0).argmax(1) == five.labels).mean())
    assert ahead[-1].accuracy == pytest.approx(vote, abs=0.02)


def test_the_limit_of_a_known_curve() -> None:
    assert limit_of([0.9 - 0.2 / k for k in range(1, 6)]) == pytest.approx((0.9, 0.2))
    assert limit_of([0.8, 0.7])[1] == 0, "a vote that gets worse is not forecast to get better"


def test_a_forecast_has_an_interval_and_is_left_out_where_the_rows_cannot_tell() -> None:
    """Members that are right on 14 to 27 % of few rows promise nothing."""
    five = table(6000, members=5, skill=(0.7,) * 5)
    ahead = forecast(mean_hits(softmax(five.logits[:3]), five.labels), 5)
    assert len(ahead) == 5
    for point in ahead[3:]:
        assert point.interval is not None
        assert point.interval[0] <= point.accuracy <= point.interval[1]
    few = table(40, members=4, skill=(0.1, 0.0, 0.05, 0.1))
    found = diversity(list("abcd"), few)
    assert [point.members for point in found.forecast] == [1, 2, 3, 4]
    assert found.verdict.startswith("These rows are too few to tell what a vote of more members would gain")


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
