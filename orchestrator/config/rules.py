"""Find problems that span several keys of a team. Each function yields a sentence for each problem."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fusion.interface import FUSIONS, asks_for_student
from orchestrator.config.team import Team
from workers.config.extensions import AUGMENTATIONS, LAYOUTS, Augmentation, is_reference
from workers.config.specs import PUBLISHED, MemberSpec, StudentSpec


def find_data_problems(team: Team) -> Iterator[str]:
    """Check `data:`."""
    data = team.data
    if data.folds == 1:
        yield "data.folds is 0 (no fold trainings) or at least 2"
    if data.is_out_of_fold and not data.folds:
        yield "data.folds is needed with `fuse: out_of_fold`, whose predictions are those of fold trainings: set it to 5 or 10"
    if LAYOUTS[data.dataset].needs_root and data.root is None:
        yield f"data.root is needed with `dataset: {data.dataset}`: the folder or archive of images"
    if data.dataset == "manifest" and data.manifest is None:
        yield "data.manifest is needed with `dataset: manifest`: a CSV or Parquet file with the columns path and label"
    for key in ("manifest", "columns"):
        if data.dataset != "manifest" and getattr(data, key):
            yield f"data.{key} is only for `dataset: manifest`"
    for key, path in (("root", data.root), ("manifest", data.manifest), ("classes", data.classes), ("split", data.split)):
        if path is not None and (unset := re.search(r"\$\{?\w+\}?", str(path))) and not path.exists():
            yield f"data.{key}: the environment variable {unset[0].strip('${}')} is not set"


def find_fusion_problems(team: Team) -> Iterator[str]:
    """Check `fusion:`."""
    for name in team.fusion:
        if FUSIONS[name].asks == "fold trainings" and not team.data.folds:
            yield f"fusion: {name} is made of fold trainings: set data.folds to 2 or more"
        if team.data.is_out_of_fold and FUSIONS[name].asks == "student":
            yield f"fusion: {name} learns from the rows that `fuse: out_of_fold` judges on: leave it out"
        if team.data.is_out_of_fold and FUSIONS[name].uses_features and not all(recipe.freeze for recipe in team.trainings):
            yield f"fusion: {name} with `fuse: out_of_fold` needs `freeze: backbone` for every member: else features differ"
    if len(set(team.fusion)) < len(team.fusion):
        yield "fusion: names a method twice"


def find_price_problems(team: Team) -> Iterator[str]:
    """Check `budget:` and `prices:`."""
    price = team.budget.price
    if team.budget.max_cost and not team.prices:
        yield "budget.max_cost needs `prices:`, the price of a trainer per hour, like {spot: 0.16}"
    if team.budget.max_cost and price is None and len(team.prices) > 1:
        yield f"budget.price: say which price counts: {', '.join(team.prices)}"
    if price is not None and price not in team.prices:
        yield f"budget.price: {price} is none of `prices`: {', '.join(team.prices) or 'there are none'}"


def find_training_problems(team: Team, recipe: MemberSpec) -> Iterator[str]:
    """Check one of a team's trainings."""
    fewest = min(team.train.of_fold(fold).epochs for fold in (None, 0))
    processes = recipe.resources.processes
    if any(member.name in FUSIONS for member in recipe.members):
        yield "that is a fusion's name; give the member another one"
    if recipe.snapshots > fewest:
        yield f"{recipe.snapshots} snapshots need as many epochs; a training has {fewest}"
    if recipe.cycles and recipe.snapshots == 1:
        yield "cycles need snapshots: set snapshots to 2 or more"
    if 1 < recipe.snapshots <= fewest and 0 in (lengths := recipe.cycle_lengths(fewest)):
        yield f"cycles of {lengths} epochs: none may be empty; change cycles.first"
    if recipe.snapshots > 1 and team.train.stop:
        yield "snapshots and train.stop don't go together: a cycle runs to its end"
    if recipe.average and (recipe.snapshots > 1 or team.train.stop or team.train.ema):
        yield "average doesn't go together with snapshots, train.stop or train.ema"
    if (batch_size := team.train.batch_size) < 2 * processes:
        yield f"{processes} processes train together, and train.batch_size {batch_size} gives each less than two images"
    if recipe.search and (recipe.snapshots > 1 or recipe.average or processes > 1):
        yield "search doesn't go together with snapshots, average or several processes"
    if recipe.class_weights and recipe.sampler:
        yield "class_weights and sampler both balance the classes: choose one of them"
    yield from _find_freeze_problems(recipe)


def _find_freeze_problems(recipe: MemberSpec) -> Iterator[str]:
    if recipe.views > 1 and not recipe.freeze:
        yield "views are of a frozen backbone: set `freeze: backbone`, or leave them out"
    if recipe.freeze and recipe.weights is None and not is_reference(recipe.arch):
        yield "freeze: backbone needs weights that have learned something: name their file as `weights`"
    if recipe.weights in PUBLISHED and is_reference(recipe.arch):
        yield f"weights: {recipe.weights} are a library's; a network of your own loads its weights itself, or from a file"
    if recipe.freeze and (recipe.resources.processes > 1 or isinstance(recipe, StudentSpec)):
        yield "freeze: backbone is for members that one process trains: a head takes seconds"
    if recipe.freeze and (mixing := [one.name for one in recipe.augment if _mixes(one.name)]):
        yield f"augment: {mixing[0]} mixes images, which a frozen backbone sees one by one. Leave it out of this member's list"


def _mixes(augmentation: str) -> bool:
    return not is_reference(augmentation) and AUGMENTATIONS[augmentation].mix is not Augmentation.mix


def find_student_problems(team: Team, student: StudentSpec) -> Iterator[str]:
    """Check a team's student."""
    if not asks_for_student(team.fusion):
        yield "student: is set, but `fusion:` doesn't use it: add student there"
    members = {member.name: member for member in team.members}
    start = members.get(student.start) if student.start else None
    if student.start and start is None:
        yield f"student.start: {student.start} is no member; there are {', '.join(members)}"
    if start and (start.arch, start.width, start.stem) != (student.arch, student.width, student.stem):
        yield f"student.start: {student.start} is a different network (arch, width and stem must match the student's)"
