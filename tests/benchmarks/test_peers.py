"""Members' kept outputs as scikit-learn's estimators: what its fusions are given is what ours are given."""

import numpy as np
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from benchmarks.peers import Kept
from fusion.predictions import softmax

FIT, FUSE, TEST, CLASSES = 60, 30, 20, 3


def test_a_member_is_its_full_fit_or_a_folds_by_the_rows_that_it_is_fitted_on() -> None:
    draw = np.random.default_rng(0)
    logits, oof = (draw.normal(size=(FIT + FUSE + TEST, CLASSES)) for _ in range(2))
    folds = np.concatenate([np.arange(FIT) % 2, np.full(FUSE + TEST, -1)])
    labels = draw.integers(0, CLASSES, FIT + FUSE + TEST)
    fit, fuse, test = (np.arange(*ends)[:, None] for ends in ((0, FIT), (FIT, FIT + FUSE), (FIT + FUSE, FIT + FUSE + TEST)))
    member = Kept(logits, oof, folds)
    for rows in (fit, fuse):
        found = member.fit(rows, labels[rows[:, 0]]).predict_proba(test)
        assert np.array_equal(found, softmax(logits[test[:, 0]])), "all rows, or none of a fold: the full fit"
    split = PredefinedSplit(folds[:FIT])
    out_of_fold = cross_val_predict(member, fit, labels[:FIT], cv=split, method="predict_proba")
    assert np.array_equal(out_of_fold, softmax(oof[:FIT]))
    vote = VotingClassifier([("m", member)], voting="soft").fit(fuse, labels[fuse[:, 0]])
    assert np.allclose(vote.predict_proba(test), softmax(logits[test[:, 0]]))
    stack = StackingClassifier([("m", member)], LogisticRegression(), cv=split).fit(fit, labels[:FIT])
    by_hand = LogisticRegression().fit(softmax(oof[:FIT]), labels[:FIT])
    assert np.allclose(stack.predict_proba(test), by_hand.predict_proba(softmax(logits[test[:, 0]])))
