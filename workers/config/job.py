"""Describe one training as it is scheduled, and derive its seeds."""

from __future__ import annotations

import hashlib
from pathlib import Path

from workers.config.specs import DataSpec, MemberSpec, TrainedMember, TrainSpec
from workers.config.strict import Strict


class JobMember(TrainedMember):
    """A member that a job publishes.

    Attributes:
        signature: Hash of everything that changes its weights. It names the folder and the run of its artifact.
    """

    signature: str


class Job(Strict):
    """One training as it is scheduled. It publishes an artifact for each of its members.

    Attributes:
        recipe: The recipe.
        members: The members that it publishes, in order of completion.
        fold: The fold that is left out; None for a full training.
        train: The team's training settings, with the epochs of this training.
        data: The data set and its splits.
        team_seed: Seed of the split.
        home: The home.
        store: Folder of the packed data.
        split: Key of its split (`Split.key`).
        import_paths: Folders from which the users' own modules are imported.
        checkpoint_seconds: Longest time without a checkpoint.
        teachers: Signatures of the members that a student learns from.
        start: Signature of the teacher whose weights a student begins from.
        weights_sha256: SHA-256 of the recipe's file of weights, if it has one.
    """

    recipe: MemberSpec
    members: tuple[JobMember, ...]
    fold: int | None
    train: TrainSpec
    data: DataSpec
    team_seed: int
    home: Path
    store: Path
    split: str
    import_paths: tuple[str, ...] = ()
    checkpoint_seconds: float = 300.0
    teachers: tuple[str, ...] = ()
    start: str | None = None
    weights_sha256: str | None = None

    @property
    def signatures(self) -> tuple[str, ...]:
        """The signatures of the members that it publishes."""
        return tuple(member.signature for member in self.members)

    @property
    def key(self) -> str:
        """The job's unique key: the signatures that it publishes."""
        return "+".join(self.signatures)

    @property
    def label(self) -> str:
        """The training's name, with the fold of a fold training."""
        return self._with_fold(self.recipe.name)

    def label_of(self, member: TrainedMember) -> str:
        """Return a member's name, with the fold of a fold training."""
        return self._with_fold(member.name)

    def _with_fold(self, name: str) -> str:
        return name if self.fold is None else f"{name} fold {self.fold}"

    def first_epoch(self, member: TrainedMember) -> int:
        """Return the first epoch, from 0, that only this member needs: the end of the previous snapshot."""
        ends = [0, *(self.last_epoch(other) for other in self.members)]
        return self.last_epoch(member) if member.averaged else max(end for end in ends if end < self.last_epoch(member))

    def last_epoch(self, member: TrainedMember) -> int:
        """Return the number of epochs after which a member is complete."""
        return self.recipe.last_epoch(member, self.train.epochs)

    @property
    def seed(self) -> int:
        """The seed of this training."""
        return self.seed_of(self.recipe.seed)

    @property
    def seeded_recipe(self) -> MemberSpec:
        """The recipe with the seed of this training."""
        return self.recipe.model_copy(update={"seed": self.seed})

    def seed_of(self, seed: int) -> int:
        """Return the seed for a member's seed: the same for a full training, a derived one for a fold training."""
        return seed if self.fold is None else derive_seed(seed, "fold", self.fold)


def derive_seed(*parts: object) -> int:
    """Derive a seed below 2**31 from the text of `parts`, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
