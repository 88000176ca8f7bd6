"""Explain the recommendation: what to use and why, how sure that is, and what to use if cost matters."""

from __future__ import annotations

from fusion.results import METRIC_NAMES, Candidate, Choice, FusionDetails, Interval, Metric

MOST_NAMED = 2  # candidates named in a sentence
FRACTIONS = {1 / 2: "half", 1 / 3: "a third", 1 / 4: "a quarter", 1 / 5: "a fifth", 1 / 10: "a tenth"}


def verdict(details: FusionDetails, sweep: str) -> list[str]:
    """Return the verdict, one or two sentences per line.

    Args:
        details: What the fusion step returned.
        sweep: Name of the sweep, for commands.
    """
    lines = [_use(details), *_on_test(details), _how_sure(details), *_if_cost_matters(details, sweep), *_judged_by_folds(details)]
    return [_at_chance(details), *lines] if details.choice.is_at_chance else lines


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
    sets = f"Prediction sets that hold the right class of {100 * found.coverage:g}% of new images have"
    return f"{sets} {found.mean_size:.2f} classes on average, and {found.certain:.0%} of them have just one.{where}"


def money_text(amount: float) -> str:
    """Format an amount of money with two decimals, or with one significant digit if below 0.01."""
    return f"{amount:,.2f}" if amount >= 0.01 or not amount else f"{amount:.1g}"


def difference_text(metric: Metric, value: float, interval: Interval) -> str:
    """Format a difference with its interval, in nats or in points."""
    unit, digits, name = (1, 3, "nats") if metric == "nll" else (100, 1, "points")
    middle, low, high = (f"{round(unit * x, digits) + 0.0:.{digits}f}" for x in (value, *interval))  # + 0.0: never -0.000
    return f"{middle} {name}, {low} to {high}"


def _use(details: FusionDetails) -> str:
    """Name the recommended candidate, the reason, and the scores that it is compared by."""
    name, choice = details.recommended, details.choice
    networks = details.candidates[name].networks
    words = {choice.best_score: choice.best_score, "vote": "vote", details.best_single: "best single network"}
    rest = [f"{word} {_loss(choice, other)}" for other, word in words.items() if other != name and other in choice.losses]
    images = f"{choice.rows:,} {choice.judged_on} images" + (f" of {choice.groups:,} groups" if choice.groups is not None else "")
    scores = f"{METRIC_NAMES[choice.metric]} {_loss(choice, name)} on {images}" + (f"; {', '.join(rest)}" if rest else "")
    return f"Use {name}: {networks} network{'' if networks == 1 else 's'}, {_reason(name, choice)} ({scores})."


def _reason(name: str, choice: Choice) -> str:
    if len(choice.losses) == 1:
        return "the only candidate"
    best = f"the best of {len(choice.competing)} candidates"
    if choice.has_few_rows:
        best += f" that learn nothing from so few {choice.judged_on} images"
    if choice.best_score == name:
        return best
    return f"the cheapest shown to be at most {_amount(choice.metric, choice.tolerance)} worse than {choice.best_score}, {best}"


def _on_test(details: FusionDetails) -> list[str]:
    """Compare the recommended candidate on *test* with the best single network, and with the best on *test*."""
    name, metric, rows = details.recommended, details.choice.metric, details.candidates
    tested = {other: row for other, row in rows.items() if row.test is not None}
    if name not in tested:
        return []
    single, gain = details.best_single, rows[name].against_single
    text = f"On {details.rows['test']:,} test images it is right on {_accuracy(rows[name])}"
    if name != single and gain is not None:
        points, (low, high) = 100 * gain.difference, gain.interval
        of_single = f"{_accuracy(rows[single])} for the best single network, {single}"
        text += f" ({of_single}; {points:+.1f} points, {100 * low:+.1f} to {100 * high:+.1f})"
    best = min(tested, key=lambda other: _test_loss(tested[other], metric))
    if metric != "accuracy":
        others = [other for other in dict.fromkeys((single, best)) if other != name]
        compared = ", ".join(f"{_test_score(rows[other], metric)} for {other}" for other in others)
        text += f", with a {METRIC_NAMES[metric]} of {_test_score(rows[name], metric)}" + (f" ({compared})" if compared else "")
    most = max(tested, key=lambda other: rows[other].test.accuracy)  # type: ignore[union-attr]
    if rows[most].test.accuracy > rows[name].test.accuracy:  # type: ignore[union-attr]
        text += f". Most accurate there: {most}, {_accuracy(rows[most])}, but test images choose nothing"
    return [f"{text}."]


def _how_sure(details: FusionDetails) -> str:
    """Say which candidates are surely worse than the recommended one, and which may be better."""
    name, choice, single = details.recommended, details.choice, details.best_single
    others = sorted(choice.differences, key=lambda other: choice.differences[other].difference)
    others = [other for other in others if choice.differences[other].interval != (0.0, 0.0)]
    if not others:
        return "How sure: there is nothing to compare." if len(choice.losses) == 1 else "How sure: all candidates answer alike."
    shown = {other: _difference(choice, other) for other in others}
    better = [other for other in others if choice.differences[other].interval[1] < 0]
    worse = [other for other in others if choice.differences[other].interval[0] > 0]
    unclear = [other for other in others if other not in (*better, *worse)]
    parts = []
    if better:
        difference, (low, high), _ = choice.differences[better[0]]
        gain = difference_text(choice.metric, -difference, (-high, -low))
        is_close = better[0] in choice.competing
        why = "which is within the tolerance" if is_close else f"but {choice.rows:,} images are too few to fit it"
        parts.append(f"{better[0]} scores better ({gain}), {why}")
    if unclear:
        named = " and ".join(f"{other} ({shown[other]})" for other in unclear[:MOST_NAMED])
        more = len(unclear) - MOST_NAMED
        parts.append(f"the order of {name} and {named} is uncertain" + (f", and so is that of {more} more" if more > 0 else ""))
    if single in worse:
        parts.append(f"{name} surely beats the best single network ({shown[single]})")
    elif worse and not unclear:
        parts.append(f"every other candidate is surely worse; the closest is {worse[0]} ({shown[worse[0]]})")
    return f"How sure: {'; '.join(parts)}."


def _if_cost_matters(details: FusionDetails, sweep: str) -> list[str]:
    """Name the cheapest undominated candidate, its costs, its loss, and how many images could show that it is good enough."""
    name, choice = details.recommended, details.choice
    if not choice.cheaper:
        return []
    other = choice.cheaper[0]
    row, chosen = details.candidates[other], details.candidates[name]
    inference, training = row.multiply_adds / (chosen.multiply_adds or 1), row.train_seconds / (chosen.train_seconds or 1)
    cost = (
        f"{_fraction(inference)} of the computing for an image" if inference < 0.995 else f"{_fraction(training)} of the training"
    )
    text = f"If cost matters: {other} takes {cost}, and loses {_difference(choice, other)}"
    if needed := choice.rows_needed.get(other):
        text += f"; about {_rounded(needed):,} {choice.judged_on} images would show whether it is good enough"
    return [f"{text}. `conclave export {sweep} --method {other}`"]


def _judged_by_folds(details: FusionDetails) -> list[str]:
    """Say which trainings were compared, where there is no *fuse* part."""
    if details.choice.judged_on == "fuse":
        return []
    return [
        "The fold trainings were compared, each on the images that it left out. The file holds the trainings on all images, "
        "which are usually a little better."
    ]


def _at_chance(details: FusionDetails) -> str:
    """Warn that no candidate beats chance."""
    choice = details.choice
    accuracy = details.candidates[choice.best_score].fuse.accuracy
    return (
        f"Nothing here is surely better than guessing: {choice.best_score}, the best, is right on {accuracy:.0%} of "
        f"{choice.rows:,} {choice.judged_on} images. Check the images, their labels and the learning rate before you use "
        "any of it."
    )


def _loss(choice: Choice, name: str) -> str:
    """Format a candidate's nested score on *fuse*: an NLL in nats, or an accuracy in per cent."""
    loss = choice.losses[name]
    return f"{loss:.3f}" if choice.metric == "nll" else f"{1 - loss:.1%}"


def _difference(choice: Choice, other: str) -> str:
    """Format how much worse another candidate is than the recommended one, with its interval."""
    difference, interval, _ = choice.differences[other]
    return difference_text(choice.metric, difference, interval)


def _amount(metric: Metric, value: float) -> str:
    return f"{value:g} nats" if metric == "nll" else f"{100 * value:g} points"


def _accuracy(row: Candidate) -> str:
    assert row.test is not None
    return f"{row.test.accuracy:.1%}"


def _test_loss(row: Candidate, metric: Metric) -> float:
    assert row.test is not None
    if metric == "nll":
        return row.test.nll
    return row.loss if row.loss is not None else 1 - row.test.accuracy


def _test_score(row: Candidate, metric: Metric) -> str:
    loss = _test_loss(row, metric)
    return f"{loss:.3f}" if metric == "nll" else f"{1 - loss:.1%}"


def _fraction(share: float) -> str:
    """Format a share: a word if it is within 3 % of a simple fraction."""
    return next((word for value, word in FRACTIONS.items() if abs(share / value - 1) < 0.03), f"{share:.0%}")


def _rounded(count: int) -> int:
    """Round up to two significant digits."""
    unit: int = 10 ** max(0, len(str(count)) - 2)
    return -(-count // unit) * unit
