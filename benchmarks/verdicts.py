"""Whether the recommendation can be trusted: synthetic teams whose truth is known, judged by what the recommendation cost them.

Each draw makes a team of one of four kinds: members that err independently, copies of one member, one strong member among weak
ones, and specialists for different classes. Its fusions are fitted and one candidate is chosen on *fuse* alone; what each
candidate is truly worth is measured on 40,000 other rows. Five rules choose: the one that Conclave has, the one that it had
before (the cheapest that is not significantly worse than the best), the best score, the vote, and the best single member.

    python -m benchmarks.verdicts            # 200 draws at 36, 100, 200, 1,000 and 5,000 fuse rows; results/verdicts.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from benchmarks.machine import write_result
from fusion.metrics.calibration import nll
from fusion.metrics.paired import Sample, compare_losses
from fusion.predictions import Floats, FusionInputs, Labels, Predictions, TeamPredictions
from fusion.selection.fitting import FittedFusion, fit_all
from fusion.selection.networks import CandidateNetworks, Effort
from fusion.selection.recommendation import TOLERANCES, best_single, cheapest_first, pareto_front, recommend

SIZES = (36, 100, 200, 1000, 5000)
CLASSES, TRUTH, OUT_OF_FOLD, FOLDS = 5, 40_000, 3000, 3
FUSIONS = ("vote", "weighted", "cascade", "stack")
KINDS = ("independent", "copies", "one strong", "specialists")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--draws", type=int, default=200)
    options = parser.parse_args()
    table: dict[str, dict[str, dict[str, float]]] = {}
    with ProcessPoolExecutor() as pool:
        for size in SIZES:
            draws = list(pool.map(one_draw, [size] * options.draws, range(options.draws)))
            table[str(size)] = {rule: summed_up([draw[rule] for draw in draws]) for rule in draws[0]}
            for rule, row in table[str(size)].items():
                print(f"{size:5} rows  {rule:14}" + "".join(f"  {name} {value:.4g}" for name, value in row.items()), flush=True)
    write_result("verdicts", " ".join(["python -m benchmarks.verdicts", *sys.argv[1:]]), {"draws": options.draws, "rules": table})
    print(json.dumps(table, indent=1))


def summed_up(draws: list[dict[str, float]]) -> dict[str, float]:
    """The means over draws, and the 95th percentile of the regret."""
    row = {name: float(np.mean([draw[name] for draw in draws])) for name in draws[0]}
    return {**row, "regret, 95th percentile": float(np.percentile([draw["regret in nats"] for draw in draws], 95))}


def one_draw(rows: int, seed: int) -> dict[str, dict[str, float]]:
    """What each rule chose in one team, and what that is truly worth."""
    draw = np.random.default_rng([seed, rows])
    team = synthetic(KINDS[seed % len(KINDS)], rows, draw)
    fitted = fit_all(team, FUSIONS)
    costs = candidate_efforts(team, fitted)
    truth = {name: nll(fusion.predict_proba(team.test), team.test.labels) for name, fusion in fitted.items()}
    chosen, choice = recommend(team, fitted, costs)
    rules = {
        "this one": chosen,
        "not significantly worse": not_significantly_worse(team, fitted, costs),
        "best score": choice.best_score,
        "always vote": "vote",
        "best single": best_single(team, fitted),
    }
    return {rule: judged(name, choice.best_score, truth, costs) for rule, name in rules.items()}


def judged(name: str, best_score: str, truth: Mapping[str, float], costs: Mapping[str, Effort]) -> dict[str, float]:
    """What choosing a candidate cost a team."""
    return {
        "worse than the best score by more than the tolerance": float(truth[name] - truth[best_score] > TOLERANCES["nll"]),
        "regret in nats": truth[name] - min(truth.values()),
        "inference": costs[name].inference,
        "training": costs[name].training,
    }


def not_significantly_worse(team: TeamPredictions, fitted: Mapping[str, FittedFusion], costs: Mapping[str, Effort]) -> str:
    """The rule that Conclave had: the cheapest undominated candidate that is not significantly worse than the best."""
    sample = Sample.of(team.inputs.fuse)
    losses = {name: sample.loss(fusion.nested, "nll") for name, fusion in fitted.items()}
    by_cost = cheapest_first(team.names, costs)
    best = min(by_cost, key=losses.__getitem__)
    compared = compare_losses({name: fitted[name].nested for name in by_cost}, best, sample)
    front = pareto_front(by_cost, costs, losses)
    return next(name for name in front if name == best or compared[name].interval[0] <= 0)


def candidate_efforts(team: TeamPredictions, fitted: Mapping[str, FittedFusion]) -> dict[str, Effort]:
    """Members of equal cost; a stack has fold trainings to pay for."""
    networks, members = CandidateNetworks([1] * len(team.names)), len(team.names)
    found = {}
    for name, fusion in fitted.items():
        trainings = 1 if name in team.names else members * (1 + FOLDS if "folds" in fusion.method.pays_for else 1)
        found[name] = Effort(float(len(networks.used(fusion))), float(trainings))
    return found


def synthetic(kind: str, rows: int, draw: np.random.Generator) -> TeamPredictions:
    """A team of a kind: its predictions on *fuse*, out of fold, and, as *test*, on the rows that tell the truth."""
    members = int(draw.integers(3, 6))
    answers = ANSWERS[kind](members, draw)
    fuse, test = (predictions(answers, n, draw) for n in (rows, TRUTH))
    inputs = FusionInputs(
        fuse, predictions(answers, OUT_OF_FOLD, draw), np.arange(OUT_OF_FOLD) % FOLDS, (), tuple(range(members))
    )
    every = np.arange(rows)
    return TeamPredictions(tuple(f"m{i}" for i in range(members)), tuple("abcde"), inputs, test, every, every, every)


def predictions(answers: Callable[[Labels], Floats], rows: int, draw: np.random.Generator) -> Predictions:
    """What members say of rows of their own labels."""
    labels = draw.integers(0, CLASSES, rows)
    return Predictions(answers(labels), (), labels)


def independent(members: int, draw: np.random.Generator) -> Callable[[Labels], Floats]:
    skill, common = draw.uniform(1.0, 2.5), draw.uniform(0.3, 1.0)
    return lambda labels: (
        skill * np.eye(CLASSES)[labels]
        + common * draw.normal(size=(len(labels), CLASSES))
        + draw.normal(size=(members, len(labels), CLASSES))
    )


def copies(members: int, draw: np.random.Generator) -> Callable[[Labels], Floats]:
    skill = draw.uniform(1.0, 2.5)

    def answers(labels: Labels) -> Floats:
        one = skill * np.eye(CLASSES)[labels] + draw.normal(size=(len(labels), CLASSES))
        return np.repeat(one[None], members, axis=0)

    return answers


def one_strong(members: int, draw: np.random.Generator) -> Callable[[Labels], Floats]:
    skills = np.array([draw.uniform(3.0, 4.0), *draw.uniform(0.2, 0.8, members - 1)])
    return lambda labels: skills[:, None, None] * np.eye(CLASSES)[labels] + draw.normal(size=(members, len(labels), CLASSES))


def specialists(members: int, draw: np.random.Generator) -> Callable[[Labels], Floats]:
    skills = draw.uniform(0.3, 3.0, (members, CLASSES))
    return lambda labels: skills[:, labels, None] * np.eye(CLASSES)[labels] + draw.normal(size=(members, len(labels), CLASSES))


ANSWERS = {"independent": independent, "copies": copies, "one strong": one_strong, "specialists": specialists}


if __name__ == "__main__":
    main()
