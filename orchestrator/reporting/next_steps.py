"""Describe the steps that would improve the vote."""

from __future__ import annotations

from fusion.results import FusionDetails, NextStep
from orchestrator.reporting.verdict import difference_text, money_text

NAMES = {"member": "another member", "flips": "looking at each image and its mirror image"}


def next_steps_text(details: FusionDetails) -> str | None:
    """Return the most promising step with its gain and its costs; None if no step is known to help.

    Args:
        details: What the fusion step returned.
    """
    metric = details.choice.metric
    best = max(details.next_steps, key=lambda step: step.gain(metric).interval[0], default=None)
    if best is None or details.choice.is_at_chance or best.gain(metric).mean <= 0:
        return None
    gain = best.gain(metric)
    doubt = "" if gain.interval[0] > 0 else ", which may be chance"
    better = difference_text("accuracy" if gain == best.accuracy else "nll", gain.mean, gain.interval)
    return f"Next: {NAMES[best.kind]} makes the vote better by {better}{doubt}. It takes {cost_text(best)}."


def cost_text(step: NextStep) -> str:
    """Return the costs of a step: training, money, and inference in multiples of the vote's."""
    training = "no training"
    if step.train_seconds:
        prices = "".join(f" or {money_text(amount)} {kind}" for kind, amount in step.money.items())
        minutes = step.train_seconds / 60
        training = (f"{minutes:.1f} minutes" if minutes >= 1 else "less than a minute") + f" of training{prices}"
    return f"{training}, and {step.compute_cost:.2f}x the vote's inference"


def next_step_rows(details: FusionDetails) -> list[dict[str, str]]:
    """Return the rows of the report's table of next steps, as text."""
    return [
        {
            "name": NAMES[step.kind],
            "points": _interval(step.accuracy.mean, step.accuracy.interval, 100, "+.2f"),
            "nats": _interval(step.nll.mean, step.nll.interval, 1, "+.4f"),
            "cost": cost_text(step),
            "basis": step.basis,
        }
        for step in details.next_steps
    ]


def _interval(mean: float, interval: tuple[float, float], unit: float, form: str) -> str:
    low, high = interval
    return f"{unit * mean:{form}} ({unit * low:{form}} to {unit * high:{form}})"
