"""Check what no single key can tell: rules over a whole team, each a small function with a name.

A rule yields a sentence for each problem. `check_team` runs them in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from fusion.methods.names import KNOWN

if TYPE_CHECKING:
    from orchestrator.config.team import Team
    from workers.config.specs import MemberSpec

Rule = Callable[["Team"], Iterator[str]]
MemberRule = Callable[["Team", "MemberSpec"], Iterator[str]]


def problems_of(team: Team) -> Iterator[str]:
    """Yield a sentence for each problem of a team."""
    for rule in TEAM_RULES:
        yield from rule(team)
    for member in team.members:
        for member_rule in MEMBER_RULES:
            for problem in member_rule(team, member):
                yield f"member {member.name}: {problem}"


def _folds(team: Team) -> Iterator[str]:
    if team.data.folds == 1:
        yield "data.folds is 0 (no fold trainings) or at least 2"
    if "stack_bag" in team.fusion and not team.data.folds:
        yield "fusion: stack_bag is a bag of fold trainings: set data.folds to 2 or more"


def _fusions(team: Team) -> Iterator[str]:
    if len(set(team.fusion)) < len(team.fusion):
        yield "fusion names a method twice"


def _budget(team: Team) -> Iterator[str]:
    budget, prices = team.budget, ", ".join(team.prices)
    if budget.max_cost and not team.prices:
        yield "budget.max_cost needs `prices:`, what a trainer costs an hour, like {spot: 0.16}"
    elif budget.max_cost and budget.price is None and len(team.prices) > 1:
        yield f"budget.price: say which price counts: {prices}"
    if budget.price is not None and budget.price not in team.prices:
        yield f"budget.price: {budget.price} is none of `prices`: {prices or 'there are none'}"


def _student(team: Team) -> Iterator[str]:
    student = team.student
    if student is None:
        return
    if "student" not in team.fusion:
        yield "student: is described, and `fusion:` doesn't ask for it: add student there"
    if student.snapshots > 1:
        yield "student: snapshots are for members; a student is one network"
    if student.start is None:
        return
    member = next((member for member in team.members if member.name == student.start), None)
    if member is None:
        yield f"student.start: {student.start} is no member; there are {', '.join(m.name for m in team.members)}"
    elif (member.arch, member.width, member.stem) != (student.arch, student.width, student.stem):
        yield f"student.start: {student.start} is another network (arch, width and stem have to be the student's)"


def _data_root(team: Team) -> Iterator[str]:
    if team.data.dataset == "folder" and team.data.root is None:
        yield "data.root is needed with `dataset: folder`: the folder or archive of images"


def _name(team: Team, member: MemberSpec) -> Iterator[str]:
    if member.name in KNOWN:
        yield "that is a fusion's name; give the member another one"


def _snapshots(team: Team, member: MemberSpec) -> Iterator[str]:
    fewest_epochs = min(team.train.of_fold(fold).epochs for fold in (None, 0))
    if member.cycle > member.snapshots:
        yield f"cycle {member.cycle} of {member.snapshots} snapshots"
    elif member.snapshots > fewest_epochs:
        yield f"{member.snapshots} snapshots need as many epochs; a training has {fewest_epochs}"
    elif member.cycles and member.snapshots == 1:
        yield "cycles are those of snapshots: set snapshots to 2 or more"
    elif 0 in (lengths := member.cycle_lengths(fewest_epochs)):
        yield f"cycles of {lengths} epochs: none may be empty; change cycles.first"
    elif member.snapshots > 1 and team.train.stop:
        yield "snapshots and train.stop don't go together: a cycle runs to its end"


def _average(team: Team, member: MemberSpec) -> Iterator[str]:
    if member.average and (member.snapshots > 1 or team.train.stop or team.train.ema):
        yield "average doesn't go together with snapshots, train.stop or train.ema"
    if member.averaged and not member.average:
        yield "averaged without saying how: set average to swa or ema"


def _processes(team: Team, member: MemberSpec) -> Iterator[str]:
    processes = member.resources.processes
    if team.train.batch_size < 2 * processes:
        batch = f"train.batch_size {team.train.batch_size} gives each less than two images"
        yield f"{processes} processes train together, and {batch}"


def _search(team: Team, member: MemberSpec) -> Iterator[str]:
    if member.search and (member.snapshots > 1 or member.average or member.resources.processes > 1):
        yield "search finds recipes of one process, without snapshots and average"
    if member.pick > (member.search.keep if member.search else 1):
        yield f"pick {member.pick} of fewer that are kept"


def _pack(team: Team, member: MemberSpec) -> Iterator[str]:
    hindrances = {
        "snapshots": member.snapshots > 1,
        "average": member.average is not None,
        "search": member.search is not None,
        "several processes a member": member.resources.processes > 1,
        "train.ema": team.train.ema is not None,
        "train.stop": team.train.stop is not None,
        "train.clip": team.train.clip is not None,
        "train.compile": team.train.compile is not None,
    }
    if member.packed and any(hindrances.values()):
        yield f"packed doesn't go together with {', '.join(name for name, is_set in hindrances.items() if is_set)}"


TEAM_RULES: tuple[Rule, ...] = (_folds, _fusions, _budget, _student, _data_root)
MEMBER_RULES: tuple[MemberRule, ...] = (_name, _snapshots, _average, _processes, _search, _pack)
