"""One fit as it is scheduled, and the seeds that it derives."""

from __future__ import annotations

import hashlib
from pathlib import Path

from workers.spec import DataSpec, MemberSpec, TrainSpec
from workers.strict import Strict


class Job(Strict):
    """One fit as scheduled: a full fit (`fold` is None) or the fold fit that leaves `fold` out."""

    signature: str
    member: MemberSpec
    fold: int | None
    train: TrainSpec
    data: DataSpec
    team_seed: int
    home: Path
    store: Path
    import_paths: tuple[str, ...] = ()
    checkpoint_seconds: float = 300.0  # the longest that a fit goes without one
    after: str | None = None  # the fit from whose last checkpoint this one goes on
    followed: bool = False  # whether another job of the plan goes on from this one
    teachers: tuple[str, ...] = ()  # the full fits whose pooled answers a student learns
    start: str | None = None  # the one of them whose weights it begins from

    @property
    def label(self) -> str:
        return self.member.name if self.fold is None else f"{self.member.name} fold {self.fold}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The fits that have to be done before this one begins."""
        return (*self.teachers, *([self.after] if self.after else []))

    @property
    def epochs(self) -> tuple[int, int]:
        """Its first epoch, from 0, and the one behind its last: all of them, those of one cycle, or none where another fit's
        weights are averaged."""
        if self.member.averaged:
            return self.train.epochs, self.train.epochs
        ends = [0, *self.member.cycle_ends(self.train.epochs)]
        return ends[self.member.cycle - 1], ends[self.member.cycle]

    @property
    def seed(self) -> int:
        return self._seed_of(self.member.seed)

    @property
    def recipe(self) -> MemberSpec:
        """The member's, with the seeds of this fit."""
        return self.member.model_copy(update={"seed": self.seed, "packed": tuple(map(self._seed_of, self.member.packed))})

    def _seed_of(self, seed: int) -> int:
        """The full fit's seed is the member's; a fold fit's derives from it."""
        return seed if self.fold is None else derive_seed(seed, "fold", self.fold)


def derive_seed(*parts: object) -> int:
    """A seed below 2**31 from anything printable: the same on every machine and day."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
