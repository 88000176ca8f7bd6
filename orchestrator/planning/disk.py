"""Estimate how much disk a sweep needs: weights to download, packed images, and what its trainings leave."""

from __future__ import annotations

from orchestrator.config.team import Team
from orchestrator.planning.start_weights import published_weights
from workers.config.specs import PUBLISHED, MemberSpec
from workers.data.store import Store

BYTES_OF_RESNETS = {"resnet18": 45e6, "resnet34": 85e6}  # of width 64; they grow with its square
FULL_WIDTH = 64


def describe_disk(team: Team, store: Store | None) -> str:
    """Return a sentence on the disk that a sweep of a team needs.

    Each training leaves a whole network, so networks count once for each member and fold. Checkpoints take up to three times a
    network's size while it trains, and are not counted.

    Args:
        team: The team.
        store: The packed data, or None if they are not packed yet.
    """
    published = published_weights(team)
    sizes = {
        recipe.name: _network_bytes(recipe, {arch: file.size for arch, file in published.items()}) for recipe in team.recipes
    }
    unknown = [name for name, size in sizes.items() if not size]
    trainings = sum(sizes[recipe.name] * len(recipe.members) * (1 + team.folds) for recipe in team.trainings)
    trainings += sizes[team.student.name] if team.student else 0
    parts = [f"{_size(trainings)} for what the trainings leave"] if trainings else []
    if published:
        parts.append(f"{_size(sum(file.size for file in set(published.values())))} for published weights")
    if store is not None:
        parts.append(f"{_size(store.record.rows * store.size**2 * 3)} for the packed images")
    missing = ["the packed images"] * (store is None) + [f"the networks of {', '.join(unknown)}"] * bool(unknown)
    rest = f"{', and ' if parts else ''}what {' and '.join(missing)} take" if missing else ""
    return f"Disk: about {' and '.join(parts)}{rest}." if parts else f"Disk: {rest}."


def _network_bytes(recipe: MemberSpec, published: dict[str, int]) -> float:
    """Return the size of a network in bytes; 0 if it is not known without building it."""
    if recipe.weights in PUBLISHED:
        return float(published[recipe.arch])
    if recipe.weights is not None and recipe.weights.is_file():
        return float(recipe.weights.stat().st_size)
    return BYTES_OF_RESNETS.get(recipe.arch, 0.0) * (recipe.width / FULL_WIDTH) ** 2


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(count / 1e6, 1):.0f} MB"
