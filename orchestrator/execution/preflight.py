"""Check before a sweep that every member's network can be built, so that nothing is written for a team that cannot train."""

from __future__ import annotations

from collections.abc import Sequence

from fusion.interface import FUSIONS
from orchestrator.config.team import Team
from workers.config.specs import MemberSpec
from workers.errors import UserInputError


def check_networks(team: Team, import_paths: Sequence[str]) -> None:
    """Build every network of the team once.

    Args:
        team: The team.
        import_paths: Folders from which the users' own modules are imported.

    Raises:
        UserInputError: With one line for each network that cannot be built or used.
    """
    from workers.models.build import import_from

    import_from(import_paths)
    if problems := [problem for member in team.recipes if (problem := _problem_of(member, team))]:
        raise UserInputError("\n".join(problems))


def _problem_of(member: MemberSpec, team: Team) -> str | None:
    from workers.models.build import build
    from workers.models.network import has_linear_head

    try:
        network = build(member, 2 if member.weights is None else 10, team.data.size)
    except UserInputError as error:
        return str(error)
    except Exception as error:  # whatever a network of the user's own can raise
        return f"member {member.name}: {member.arch} can't be built ({error})."
    starting = [name for name in team.fusion if FUSIONS[name].needs_linear_heads]
    if starting and member in team.trainings and not has_linear_head(network):
        return (
            f"member {member.name}: {member.arch} doesn't end in a Linear head, which {starting[0]} starts from. "
            f"Take {starting[0]} out of `fusion:`, or give another network."
        )
    return None
