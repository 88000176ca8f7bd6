"""Explain the recommendation: its reason, gain, costs and evidence, one sentence per line."""

from __future__ import annotations

from fusion.results import FEWEST_ROWS, Candidate, Choice, FusionDetails, Gain, LossDifference, Metric

STRONG, FAIR = 0.005, 0.02  # largest detectable difference in accuracy for each grade
FEWEST_DIFFERING = 6  # discordant rows, all in favour of one candidate, that bring McNemar's p below 5 %


def verdict(details: FusionDetails) -> list[str]:
    """Return the verdict, one sentence per line.

    Args:
        details: What the fusion step returned.
    """
    chosen, choice = details.recommended, details.choice
    lines = [f"Use {chosen}: {details.why}."]
    if choice.is_at_chance:
        lines = [_at_chance(details, choice), *lines]
    if choice.best_score != chosen:
        lines.append(_best_score(details, choice))
    if choice.next_cheaper and choice.worth and choice.next_cheaper != choice.best_score:
        lines.append(_next_cheaper(details, choice, choice.next_cheaper, choice.worth))
    return [*lines, *_on_test(details), _costs(chosen, details.candidates[chosen]), _evidence(choice)]


def contributions_text(details: FusionDetails) -> str | None:
    """Return each member's contribution to the vote in points, with its price; None if not computed."""
    if not details.contributions:
        return None
    texts = []
    for name, one in sorted(details.contributions.items(), key=lambda pair: -pair[1].accuracy):
        half = (one.accuracy_interval[1] - one.accuracy_interval[0]) / 2
        price = "".join(f", for {money_text(amount)} {kind}" for kind, amount in one.money.items())
        texts.append(f"{name} {one.accuracy * 100:+.1f} ± {half * 100:.1f} points{price}")
    return f"What each member brings to the vote, beside the mean member alone: {'; '.join(texts)}."


def diversity_text(details: FusionDetails) -> list[str]:
    """Return a sentence on the diversity of the members; empty if no candidate beats chance."""
    return [] if details.choice.is_at_chance else [details.diversity.verdict]


def doubts_text(details: FusionDetails) -> list[str]:
    """Return a sentence on labels that are probably wrong, if there are any."""
    if not details.suspected:
        return []
    which = "label is" if details.suspected == 1 else "labels are"
    return [f"{details.suspected:,} {which} probably wrong: `conclave labels SWEEP` lists them."]


def abstention_text(details: FusionDetails) -> str:
    """Describe the recommended candidate's prediction sets: coverage and size."""
    found = details.abstention
    where = "" if found.on_test is None else f" On the test rows, {found.on_test:.1%} of the sets hold the right class."
    sets = f"Prediction sets that hold the right class of {found.coverage:.0%} of new images have"
    return f"{sets} {found.mean_size:.2f} classes on average, and {found.certain:.0%} of them have just one.{where}"


def money_text(amount: float) -> str:
    """Format an amount of money with two decimals, or with one significant digit if below 0.01."""
    return f"{amount:,.2f}" if amount >= 0.01 or not amount else f"{amount:.1g}"


def difference_text(metric: Metric, value: float, interval: tuple[float, float]) -> str:
    """Format a difference with its interval, in nats or in points of accuracy."""
    low, high = interval
    if metric == "nll":
        return f"{value:.4f} nats ({low:.4f} to {high:.4f})"
    return f"{value * 100:.2f} points ({low * 100:.2f} to {high * 100:.2f})"


def _best_score(details: FusionDetails, choice: Choice) -> str:
    """Compare the best-scoring candidate with the recommended one."""
    best, chosen = (details.candidates[name] for name in (choice.best_score, details.recommended))
    if not choice.lost.difference:
        return f"Best score: {choice.best_score} is as good. {_price(best, chosen)}"
    lost = difference_text(choice.metric, choice.lost.difference, choice.lost.interval)
    doubt = "" if choice.is_decided else ", as far as so few rows tell"
    if choice.lost.interval[0] <= 0:
        doubt = ", which may be chance"
    return f"Best score: {choice.best_score} is better by {lost}{doubt}. {_price(best, chosen)}"


def _next_cheaper(details: FusionDetails, choice: Choice, name: str, worth: LossDifference) -> str:
    """Compare the next cheaper candidate with the recommended one."""
    cheaper, chosen = details.candidates[name], details.candidates[details.recommended]
    (low, high), word = worth.interval, "worse"
    value = worth.difference
    if value < 0:  # if the rows are too few to choose by
        value, low, high, word = -value, -high, -low, "better"
    difference = difference_text(choice.metric, value, (low, high))
    doubt = ", which may be chance" if low <= 0 <= high else ""
    return f"Next cheaper: {name} is {word} by {difference}{doubt}. {_price(cheaper, chosen)}"


def _price(other: Candidate, chosen: Candidate) -> str:
    """Compare a candidate's costs with those of the recommended one."""
    inference = other.multiply_adds / (chosen.multiply_adds or 1)  # a network may have no multiply-adds
    training = other.train_seconds / (chosen.train_seconds or 1)
    if f"{inference:.2f}" == "1.00" and f"{training:.2f}" == "1.00":
        return "It costs almost the same."
    return f"It takes {inference:.2f}x the computing for an image, and {training:.2f}x the training."


def _on_test(details: FusionDetails) -> list[str]:
    """Compare the recommended candidate with the best single member on *test*."""
    chosen, single = details.recommended, details.best_single
    candidate = details.candidates[chosen]
    gain, p = candidate.against_single, candidate.holm_p
    if gain is None or chosen == single:
        return []
    p = gain.p if p is None else p
    low, high = (100 * bound for bound in gain.interval)
    where = f"On the {details.rows['test']:,} test rows, {chosen}"
    if not gain.difference:
        return [f"{where} is right as often as {single} ({low:+.2f} to {high:+.2f} points)."]
    word = "more" if gain.difference > 0 else "less"
    text = f"{where} is {abs(gain.difference) * 100:.2f} points {word} accurate than {single}"
    return [f"{text} ({low:+.2f} to {high:+.2f}; McNemar's p = {p:.2g}){_doubt(gain, p)}."]


def _doubt(gain: Gain, p: float) -> str:
    is_sure = p < 0.05 and not gain.interval[0] <= 0 <= gain.interval[1]
    return "" if is_sure else ": so few rows can't tell that from chance"


def _costs(name: str, row: Candidate) -> str:
    inference = row.compute_cost or row.inference_cost
    training = f"{row.train_cost:.2f}x the training"
    return f"Beside the mean member, {name} takes {inference:.2f}x the computing for an image, and {training}."


def _at_chance(details: FusionDetails, choice: Choice) -> str:
    """Warn that no candidate beats chance."""
    accuracy = details.candidates[choice.best_score].fuse.accuracy
    return (
        f"Nothing here is surely better than guessing: {choice.best_score}, the best, is right on {accuracy:.0%} of the "
        f"{choice.rows:,} fuse rows. Look at the images, their labels and the learning rate before you use any of it."
    )


def _evidence(choice: Choice) -> str:
    """Grade the evidence: the smallest difference that the *fuse* rows can show."""
    if choice.detectable == 0 and choice.detectable_accuracy == 0:  # with one member, every fusion equals that member
        return "Evidence: there is nothing to compare. All candidates answer the fuse rows alike."
    smallest = choice.detectable_accuracy if choice.metric == "nll" else choice.detectable
    smallest = min(1.0, max(smallest, FEWEST_DIFFERING / choice.rows))
    if not choice.is_decided:
        advice = "Bring more images, or set more of them apart as fuse rows."
        return f"Evidence: none. So few rows can't show differences below {smallest * 100:.0f} points. {advice}"
    grade = "strong" if smallest <= STRONG else "fair" if smallest <= FAIR else "weak"
    if choice.rows < FEWEST_ROWS:
        grade = "weak"
    nats = f"{choice.detectable:.4f} nats, or " if choice.metric == "nll" else ""
    return f"Evidence: {grade}. {choice.rows:,} fuse rows can show differences of at least {nats}{smallest * 100:.1f} points."
