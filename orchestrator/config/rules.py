"""Check rules that span several keys of a team. Each rule is a small function.

A rule yields a sentence for each problem. RULES check a team, TRAINING_RULES one of its trainings, and STUDENT_RULES its student.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from fusion.interface import FUSIONS, asks_for_student
from orchestrator.config.team import Team
from workers.config.extensions import LAYOUTS
from workers.config.specs import MemberSpec, StudentSpec

Rule = Callable[[Team], Iterator[str]]
TrainingRule = Callable[[Team, MemberSpec], Iterator[str]]
StudentRule = Callable[[Team, StudentSpec], Iterator[str]]


def _one_fold(team: Team) -> Iterator[str]:
    if team.data.folds == 1:
        yield "data.folds is 0 (no fold trainings) or at least 2"


def _bag_without_folds(team: Team) -> Iterator[str]:
    for name in team.fusion:
        if FUSIONS[name].asks == "fold trainings" and not team.data.folds:
            yield f"fusion: {name} is made of fold trainings: set data.folds to 2 or more"


def _fusion_twice(team: Team) -> Iterator[str]:
    if len(set(team.fusion)) < len(team.fusion):
        yield "fusion: names a method twice"


def _cost_without_price(team: Team) -> Iterator[str]:
    if team.budget.max_cost and not team.prices:
        yield "budget.max_cost needs `prices:`, the price of a trainer per hour, like {spot: 0.16}"


def _ambiguous_price(team: Team) -> Iterator[str]:
    if team.budget.max_cost and team.budget.price is None and len(team.prices) > 1:
        yield f"budget.price: say which price counts: {', '.join(team.prices)}"


def _unknown_price(team: Team) -> Iterator[str]:
    price = team.budget.price
    if price is not None and price not in team.prices:
        yield f"budget.price: {price} is none of `prices`: {', '.join(team.prices) or 'there are none'}"


def _data_root(team: Team) -> Iterator[str]:
    if LAYOUTS[team.data.dataset].needs_root and team.data.root is None:
        yield f"data.root is needed with `dataset: {team.data.dataset}`: the folder or archive of images"


def _unset_variable(team: Team) -> Iterator[str]:
    for key, path in (("root", team.data.root), ("manifest", team.data.manifest)):
        if path is not None and (unset := re.search(r"\$\{?\w+\}?", str(path))) and not path.exists():
            yield f"data.{key}: the environment variable {unset[0].strip('${}')} is not set"


def _manifest(team: Team) -> Iterator[str]:
    data = team.data
    if data.dataset == "manifest" and data.manifest is None:
        yield "data.manifest is needed with `dataset: manifest`: a CSV or Parquet file with the columns path and label"
    if data.dataset != "manifest":
        for key in ("manifest", "columns"):
            if getattr(data, key):
                yield f"data.{key} is only for `dataset: manifest`"


RULES: tuple[Rule, ...] = (
    _one_fold,
    _bag_without_folds,
    _fusion_twice,
    _cost_without_price,
    _ambiguous_price,
    _unknown_price,
    _data_root,
    _manifest,
    _unset_variable,
)


def _name_of_a_fusion(team: Team, recipe: MemberSpec) -> Iterator[str]:
    if any(member.name in FUSIONS for member in recipe.members):
        yield "that is a fusion's name; give the member another one"


def _more_snapshots_than_epochs(team: Team, recipe: MemberSpec) -> Iterator[str]:
    if recipe.snapshots > _fewest_epochs(team):
        yield f"{recipe.snapshots} snapshots need as many epochs; a training has {_fewest_epochs(team)}"


def _cycles_without_snapshots(team: Team, recipe: MemberSpec) -> Iterator[str]:
    if recipe.cycles and recipe.snapshots == 1:
        yield "cycles need snapshots: set snapshots to 2 or more"


def _empty_cycle(team: Team, recipe: MemberSpec) -> Iterator[str]:
    fewest = _fewest_epochs(team)
    if 1 < recipe.snapshots <= fewest and 0 in (lengths := recipe.cycle_lengths(fewest)):
        yield f"cycles of {lengths} epochs: none may be empty; change cycles.first"


def _snapshots_that_stop(team: Team, recipe: MemberSpec) -> Iterator[str]:
    if recipe.snapshots > 1 and team.train.stop:
        yield "snapshots and train.stop don't go together: a cycle runs to its end"


def _average_conflicts(team: Team, recipe: MemberSpec) -> Iterator[str]:
    if recipe.average and (recipe.snapshots > 1 or team.train.stop or team.train.ema):
        yield "average doesn't go together with snapshots, train.stop or train.ema"


def _batch_too_small_to_share(team: Team, recipe: MemberSpec) -> Iterator[str]:
    processes = recipe.resources.processes
    if team.train.batch_size < 2 * processes:
        batch = f"train.batch_size {team.train.batch_size} gives each less than two images"
        yield f"{processes} processes train together, and {batch}"


def _search_of_several(team: Team, recipe: MemberSpec) -> Iterator[str]:
    if recipe.search and (recipe.snapshots > 1 or recipe.average or recipe.resources.processes > 1):
        yield "search doesn't go together with snapshots, average or several processes"


def _fewest_epochs(team: Team) -> int:
    return min(team.train.of_fold(fold).epochs for fold in (None, 0))


TRAINING_RULES: tuple[TrainingRule, ...] = (
    _name_of_a_fusion,
    _more_snapshots_than_epochs,
    _cycles_without_snapshots,
    _empty_cycle,
    _snapshots_that_stop,
    _average_conflicts,
    _batch_too_small_to_share,
    _search_of_several,
)


def _unused_student(team: Team, student: StudentSpec) -> Iterator[str]:
    if not asks_for_student(team.fusion):
        yield "student: is set, but `fusion:` doesn't use it: add student there"


def _start_is_no_member(team: Team, student: StudentSpec) -> Iterator[str]:
    names = [member.name for member in team.members]
    if student.start is not None and student.start not in names:
        yield f"student.start: {student.start} is no member; there are {', '.join(names)}"


def _start_is_another_network(team: Team, student: StudentSpec) -> Iterator[str]:
    for member in team.members:
        is_same = (member.arch, member.width, member.stem) == (student.arch, student.width, student.stem)
        if member.name == student.start and not is_same:
            yield f"student.start: {student.start} is a different network (arch, width and stem must match the student's)"


STUDENT_RULES: tuple[StudentRule, ...] = (_unused_student, _start_is_no_member, _start_is_another_network)
