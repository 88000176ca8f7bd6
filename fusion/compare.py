"""Every candidate side by side: scores with intervals, gains with tests, training costs, and the vote that they paid for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion.calibration import apply_temperature, calibrated_losses, fit_temperature, logs
from fusion.cascade import Cascade
from fusion.fit import Fitted, best_single
from fusion.names import STACKS
from fusion.outputs import Floats, Gathered, Labels, softmax
from fusion.score import accuracy_gain, bootstrap, detectable, holm, per_class, reliability, scores

Row = dict[str, Any]


@dataclass(frozen=True)
class Seconds:
    """Measured training seconds of one member: its full fit, and each of its fold fits.

    A snapshot's are those of its own cycle; `before` and `folds_before` are those of the cycles that it went on from, in the same
    `chain`.
    """

    full: float
    folds: tuple[float, ...] = ()
    before: float = 0.0
    chain: str = ""
    search: float = 0.0  # this member's share of what finding its recipe took
    folds_before: tuple[float, ...] = ()


def compare(gathered: Gathered, fitted: Mapping[str, Fitted], seconds: Mapping[str, Seconds]) -> dict[str, Row]:
    """One row for each single member and each fusion. Scores on *fuse* are nested; those on *test* are null without one."""
    single = best_single(gathered, fitted)
    mean = float(np.mean(list(_chains(gathered.names, seconds).values())))
    rows = {}
    for name, fusion in fitted.items():
        paid = spent(name, fusion, gathered, seconds)
        rows[name] = {
            "fuse": scores(fusion.nested, gathered.evidence.fuse.labels),
            "temperature": fusion.temperature,
            "train_seconds": paid,
            "train_cost": paid / mean,
            "test": None,
            **({} if name in gathered.names else _chosen(fusion, gathered)),
            **_on_test(fusion, fitted, single, gathered),
        }
        if name not in gathered.names:
            rows[name]["matched"] = matched(fusion, paid, gathered, seconds)
    _adjust(rows, gathered)
    for name, row in rows.items():
        row["cost_per_point"] = _cost_per_point(row, rows[single]) if name != single else None
    return rows


def spent(name: str, fusion: Fitted, gathered: Gathered, seconds: Mapping[str, Seconds]) -> float:
    """Training seconds that had to be paid for: a single pays for itself, a stack for its fold fits too, a bag for them alone, a
    student for its teachers too."""
    if name in gathered.names:
        return seconds[name].before + seconds[name].full + seconds[name].search
    members = gathered.names if fusion.members is None else [gathered.names[i] for i in fusion.members]
    full = 0.0 if name == "stack_bag" else sum(_chains(members, seconds).values())
    full += sum(seconds[m].search for m in members)
    if name == "student":
        return full + seconds[name].full
    folds = max(len(seconds[m].folds) for m in members) if name in STACKS else 0
    return full + sum(sum(_chains(members, seconds, fold).values()) for fold in range(folds))


def _chains(members: Sequence[str], seconds: Mapping[str, Seconds], fold: int | None = None) -> dict[str, float]:
    """Seconds of each training that led to these members, full or of a fold: snapshots of one share it."""
    paid: dict[str, float] = {}
    for name in members:
        chain = seconds[name].chain or name
        paid[chain] = max(paid.get(chain, 0.0), _until(seconds[name], fold))
    return paid


def _until(one: Seconds, fold: int | None) -> float:
    """Seconds up to the end of a fit, the cycles before its own included."""
    if fold is None:
        return one.before + one.full
    return one.folds[fold] + (one.folds_before[fold] if one.folds_before else 0.0)


def matched(fusion: Fitted, paid: float, gathered: Gathered, seconds: Mapping[str, Seconds]) -> Row | None:
    """The best vote of the team's networks that `paid` seconds trained: full fits first, then fold fits, and of these as many
    rounds as *fuse* likes best, for fold fits of few epochs may be no help.

    `networks` of those `affordable`. None where not one is, or where the fold fits' outputs are not there.
    """
    members = list(range(len(gathered.names)) if fusion.members is None else fusion.members)
    names = [gathered.names[m] for m in members]
    fuse, test = gathered.evidence.fuse, gathered.test
    costs = _one_after_another(names, seconds)
    networks = [(fuse.logits[m], test.logits[m]) for m in members]
    if paid > sum(costs) * (1 + 1e-9):
        if fuse.folds is None or test.folds is None or np.isnan(fuse.folds[members]).any():
            return None
        for fold in range(fuse.folds.shape[1]):
            costs += _one_after_another(names, seconds, fold)
            networks += [(fuse.folds[m, fold], test.folds[m, fold]) for m in members]
    affordable = int((np.cumsum(costs) <= paid * (1 + 1e-9)).sum())
    if not affordable:
        return None
    votes = {n: _vote([one for one, _ in networks[:n]]) for n in (*range(len(members), affordable, len(members)), affordable)}
    count = min(votes, key=lambda n: float(calibrated_losses(logs(votes[n]), fuse.labels).sum()))
    on_fuse, on_test = votes[count], _vote([one for _, one in networks[:count]])
    temperature = fit_temperature(logs(on_fuse), fuse.labels)
    row: Row = {"networks": count, "affordable": affordable, "test": None}
    row["fuse"] = scores(apply_temperature(on_fuse, temperature), fuse.labels)
    if len(test.labels):
        ours, vote = fusion.predict_proba(test), apply_temperature(on_test, temperature)
        row |= {"test": scores(vote, test.labels), "gain_over_it": accuracy_gain(ours, vote, test.labels)}
    return row


def _one_after_another(names: Sequence[str], seconds: Mapping[str, Seconds], fold: int | None = None) -> list[float]:
    """What each fit costs beside those before it in the list: of snapshots, the cycles that none of these ran."""
    paid: dict[str, float] = {}
    costs = []
    for name in names:
        chain, until = seconds[name].chain or name, _until(seconds[name], fold)
        costs.append(max(0.0, until - paid.get(chain, 0.0)))
        paid[chain] = max(paid.get(chain, 0.0), until)
    return costs


def hardest(gathered: Gathered, fitted: Mapping[str, Fitted], chosen: str, count: int = 12) -> list[Row]:
    """The rows that the chosen candidate finds hardest, and what each member said. On *test*, or *fuse* without one."""
    tested = len(gathered.test.labels) > 0
    table, rows = (gathered.test, gathered.test_rows) if tested else (gathered.evidence.fuse, gathered.fuse_rows)
    probabilities = fitted[chosen].predict_proba(table) if tested else fitted[chosen].nested
    right = probabilities[np.arange(len(table.labels)), table.labels]
    singles = {name: fitted[name].predict_proba(table) if tested else fitted[name].nested for name in gathered.names}

    def said(p: Floats) -> dict[str, Any]:
        return {"class": gathered.classes[int(p.argmax())], "probability": float(p.max())}

    return [
        {
            "row": int(rows[i]),
            "label": gathered.classes[int(table.labels[i])],
            "fused": said(probabilities[i]),
            "members": {name: said(p[i]) for name, p in singles.items()},
        }
        for i in np.argsort(right)[:count]
    ]


def _bins(probabilities: Floats, labels: Labels) -> list[dict[str, float]]:
    """The reliability diagram's points, empty bins left out."""
    return [
        {"confidence": float(c / n), "accuracy": float(h / n), "rows": int(n)}
        for c, h, n in zip(*reliability(probabilities, labels), strict=True)
        if n
    ]


def _vote(logits: list[Floats]) -> Floats:
    return np.asarray(softmax(np.stack(logits)).mean(0))


def _chosen(fusion: Fitted, gathered: Gathered) -> Row:
    """What a fusion chose: the members' weights, and in words how it was fitted."""
    method, said = fusion.method, []
    row: Row = {}
    if hasattr(method, "weights_"):
        row["weights"] = dict(zip(gathered.names, map(float, method.weights_), strict=True))
        said.append(", ".join(f"{name} {weight:.2f}" for name, weight in row["weights"].items()))
    if hasattr(method, "chosen_"):
        said.append(f"{method.chosen_} weights")
    if hasattr(method, "form_"):
        said.append("a full matrix" if method.form_ == "matrix" else "one weight a member")
    if hasattr(method, "penalty_"):
        free = np.isfinite(method.penalty_)
        said.append(f"penalty {method.penalty_:g}" if free else "stays at uniform averaging: nothing else is better")
    if isinstance(method, Cascade):
        table = gathered.test if len(gathered.test.labels) else gathered.evidence.fuse
        row["asked"] = float(method.asked(table).mean())
        confident = f"until {method.threshold_:.1%} sure" if method.threshold_ <= 1 else "all of them"
        said.append(f"asks {', '.join(gathered.names[i] for i in method.order_)} {confident}: {row['asked']:.2f} on average")
    return {**row, "chosen": "; ".join(said)}


def _on_test(fusion: Fitted, fitted: Mapping[str, Fitted], single: str, gathered: Gathered) -> Row:
    test = gathered.test
    if not len(test.labels):
        return {}
    ours, base = fusion.predict_proba(test), fitted[single].predict_proba(test)
    vote = fitted["vote"].predict_proba(test) if "vote" in fitted else None
    return {
        "test": scores(ours, test.labels),
        "interval": bootstrap((ours.argmax(1) == test.labels).astype(np.float64)),
        "per_class": per_class(ours, test.labels),
        "reliability": _bins(ours, test.labels),
        "against_single": accuracy_gain(ours, base, test.labels),
        "against_vote": None if vote is None else accuracy_gain(ours, vote, test.labels),
        "detectable": detectable(ours, base, test.labels),
    }


def _adjust(rows: dict[str, Row], gathered: Gathered) -> None:
    """McNemar's p-values of the fusions, Holm-adjusted: so many comparisons were made."""
    tested = {name: row["against_single"][2] for name, row in rows.items() if name not in gathered.names and row["test"]}
    for name, p in holm(tested).items():
        rows[name]["holm_p"] = p


def _cost_per_point(row: Row, single: Row) -> float | None:
    """Trainings of one member more than the single's, a point of test accuracy gained; None where nothing is gained."""
    if not row["test"] or row["test"]["accuracy"] <= single["test"]["accuracy"]:
        return None
    points = (row["test"]["accuracy"] - single["test"]["accuracy"]) * 100
    return float((row["train_cost"] - single["train_cost"]) / points)
