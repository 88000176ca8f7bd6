"""Say what to do next for a better vote, in words."""

from __future__ import annotations

from fusion.results import FusionDetails, Metric, NextStep
from orchestrator.reporting.verdict import difference_text, money_text


def next_steps_text(details: FusionDetails) -> str | None:
    """Return the step to take next, with its forecast and its costs. None where nothing is known of any, or nothing was learned.

    Args:
        details: What the fusion step returned.
    """
    metric: Metric = details.choice.metric if details.choice else "nll"
    is_at_chance = details.choice is not None and details.choice.is_at_chance
    first = details.next_steps[0] if details.next_steps and not is_at_chance else None
    expected = first.forecast(metric) if first else None
    if first is None or expected is None:
        return None
    if expected.mean <= 0:
        return "Next: nothing whose gain this sweep can tell would make the vote better."
    sure = "Next best step" if expected.interval[0] > 0 else "Next: no step is sure to help. The most promising one"
    better = difference_text(metric, expected.mean, expected.interval)
    text = f"{sure}: {step_text(first)} would make the vote better by {better}. It takes {cost_text(first)}."
    if expected.error is not None:
        off = f"{expected.error:.4f} nats" if metric == "nll" else f"{expected.error * 100:.2f} points"
        text += f" Such a forecast, made for each member that is there, is {off} off on average."
    return text


def step_text(step: NextStep) -> str:
    """Name a step as the subject of a sentence."""
    texts = {
        "recipe": "another member with a recipe of its own",
        "seed": f"another seed of {step.member}" if step.member else "another seed",
        "epochs": "half as many epochs again for all members",
        "flips": "looking at each image and its mirror image",
        "student": "a student of the members",
    }
    return texts[step.kind]


def cost_text(step: NextStep) -> str:
    """Return what a step costs: training, money, and the computing for an image beside the vote's now."""
    training = "no training"
    if step.train_seconds:
        prices = "".join(f" or {money_text(amount)} {kind}" for kind, amount in step.money.items())
        minutes = step.train_seconds / 60
        time = f"{minutes:.1f} minutes" if minutes >= 1 else "less than a minute"
        training = f"{time} of training{prices}"
    return f"{training}, and {step.compute_cost:.2f}x the vote's computing for an image"


def next_step_rows(details: FusionDetails) -> list[dict[str, str]]:
    """Return the rows of the report's table of next steps, as text.

    Args:
        details: What the fusion step returned.
    """
    rows = []
    for step in details.next_steps:
        row = {"name": step_text(step), "cost": cost_text(step), "basis": step.basis}
        for key, expected, unit, form in (("points", step.accuracy, 100, "+.2f"), ("nats", step.nll, 1, "+.4f")):
            row[key], row[f"{key}_off"] = "not forecast", ""
            if expected:
                low, high = expected.interval
                row[key] = f"{unit * expected.mean:{form}} ({unit * low:{form}} to {unit * high:{form}})"
                row[f"{key}_off"] = "" if expected.error is None else f"{unit * expected.error:{form[1:]}}"
        rows.append(row)
    return rows
