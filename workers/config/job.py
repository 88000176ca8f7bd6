"""Describe one training as it is scheduled, and derive its seeds."""

from __future__ import annotations

import hashlib
from pathlib import Path

from workers.config.specs import DataSpec, MemberSpec, TrainSpec
from workers.config.strict import Strict


class Job(Strict):
    """One training as it is scheduled.

    Attributes:
        signature: Hash of everything that changes the training's result.
        member: The recipe.
        fold: The fold that is left out; None for a full training.
        train: What all trainings of the team share, with the epochs of this one.
        data: The data set and its splits.
        team_seed: Seed of the split.
        home: The home.
        store: Folder of the packed data.
        import_paths: Folders from which the users' own modules are imported.
        checkpoint_seconds: Longest time without a checkpoint.
        after: Signature of the training from whose last checkpoint this one goes on.
        followed: Whether another job of the plan goes on from this one.
        teachers: Signatures of the full trainings whose pooled answers a student learns.
        start: Signature of the teacher whose weights a student begins from.
    """

    signature: str
    member: MemberSpec
    fold: int | None
    train: TrainSpec
    data: DataSpec
    team_seed: int
    home: Path
    store: Path
    import_paths: tuple[str, ...] = ()
    checkpoint_seconds: float = 300.0  # the longest that a training goes without one
    after: str | None = None  # the training from whose last checkpoint this one continues
    followed: bool = False  # whether another job of the plan goes on from this one
    teachers: tuple[str, ...] = ()  # the full trainings whose pooled answers a student learns
    start: str | None = None  # the one of them whose weights it begins from

    @property
    def label(self) -> str:
        """The member's name, and the fold where there is one."""
        return self.member.name if self.fold is None else f"{self.member.name} fold {self.fold}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The signatures of the trainings that must be done before this one begins."""
        return (*self.teachers, *([self.after] if self.after else []))

    @property
    def epochs(self) -> tuple[int, int]:
        """The first epoch, from 0, and the one behind the last.

        These are all epochs of a plain training, those of one cycle of a snapshot, and none where another training's weights are
        averaged.
        """
        if self.member.averaged:
            return self.train.epochs, self.train.epochs
        ends = [0, *self.member.cycle_ends(self.train.epochs)]
        return ends[self.member.cycle - 1], ends[self.member.cycle]

    @property
    def seed(self) -> int:
        """The seed of this training."""
        return self._seed_of(self.member.seed)

    @property
    def recipe(self) -> MemberSpec:
        """The member's recipe with the seeds of this training."""
        return self.member.model_copy(update={"seed": self.seed, "packed": tuple(map(self._seed_of, self.member.packed))})

    def _seed_of(self, seed: int) -> int:
        """Return the seed for a member's seed: the same for a full training, a derived one for a fold training."""
        return seed if self.fold is None else derive_seed(seed, "fold", self.fold)


def derive_seed(*parts: object) -> int:
    """Derive a seed below 2**31 from anything printable: the same on every machine and day."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
