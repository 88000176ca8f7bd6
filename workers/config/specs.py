"""Describe what a member is (`MemberSpec`), and what the whole team shares (`DataSpec`, `TrainSpec`). No torch."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from workers.config.architectures import check_arch
from workers.config.recipe import Augment, Augments, Average, Cycles, Optimizer, Schedule, Sgd, StepSchedule, Swa
from workers.config.resources import Resources
from workers.config.search_space import Choice, SearchSpec
from workers.config.strict import Name, Strict


class DataSpec(Strict):
    """The data set, its splits and its image size."""

    dataset: Literal["digits", "cifar10", "folder"] = "digits"
    root: Path | None = Field(None, strict=False)
    image_size: int | None = Field(None, ge=8, le=1024)
    fuse_fraction: float = Field(0.1, gt=0, lt=1)
    test_fraction: float = Field(0.2, gt=0, lt=1)
    folds: int = Field(5, ge=0)
    max_bad: int = Field(0, ge=0)  # images that may fail to decode; they are left out and listed

    @property
    def size(self) -> int:
        """Side of the images in pixels: as the team says, else what suits the data set."""
        return self.image_size or {"digits": 8, "cifar10": 32, "folder": 64}[self.dataset]


class StopSpec(Strict):
    """Stop early, by a tenth of the *fit* rows that is set apart; never by *fuse* or *test*."""

    patience: int = Field(ge=1)


def _compile(value: Any) -> Any:
    """Let `true` stand for torch's own default, and `false` for none."""
    return {True: "default", False: None}.get(value, value) if isinstance(value, bool) else value


class TrainSpec(Strict):
    """The settings that all trainings of a team share."""

    epochs: int = Field(50, ge=1)
    batch_size: int = Field(128, ge=1)
    accumulate: int = Field(1, ge=1)
    schedule: Schedule = StepSchedule()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = Field(1, ge=1)
    clip: float | None = Field(None, gt=0)
    ema: float | None = Field(None, gt=0, lt=1)
    stop: StopSpec | None = None
    fold_epochs: float = Field(1.0, gt=0, le=1)  # share of the epochs that a fold training runs
    compile: Annotated[Literal["default", "max-autotune"] | None, BeforeValidator(_compile)] = None  # by torch.compile

    def of_fold(self, fold: int | None) -> TrainSpec:
        """Return the settings of one training: the share of epochs of a fold training becomes a number of epochs."""
        epochs = self.epochs if fold is None else max(1, round(self.epochs * self.fold_epochs))
        return self.model_copy(update={"epochs": epochs, "fold_epochs": 1.0})

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return what changes a training's result.

        A newer key counts only where it is used, so that finished trainings stay valid.
        """
        return self.model_dump(mode="json", exclude={"fold_epochs", *(() if self.compile else ("compile",))})


NON_RECIPE_FIELDS = (
    "name",
    "resources",
    "cycle",
    "averaged",
    "search",
    "pick",
)  # keys of a member that say nothing of one training's


class MemberSpec(Strict):
    """One recipe, with every default filled in."""

    name: Name
    seed: int = Field(ge=0, lt=2**63)
    arch: Annotated[str, AfterValidator(check_arch)] = "resnet18"
    width: int = Field(64, ge=4, le=1024)
    stem: Literal["auto", "imagenet", "cifar"] = "auto"
    optimizer: Optimizer = Sgd()
    augment: Augments = (Augment(name="flip", strength=0.5), Augment(name="crop", strength=0.125))
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    weights: Path | None = Field(None, strict=False)
    snapshots: int = Field(1, ge=1, le=100)  # cycles of one training, each of which ends in a member
    cycles: Cycles | None = None  # how long they are; of equal lengths where left out
    cycle: int = Field(1, ge=1)  # which of them this is
    average: Average | None = None  # of the weights along the training: a second member that costs no training of its own
    averaged: bool = False  # whether this is that second one
    packed: tuple[int, ...] = ()  # the seeds of all that are trained at once, in one process; none: it is trained alone
    resources: Resources = Resources()
    search: SearchSpec | None = None  # where this recipe is still to be found
    pick: int = Field(1, ge=1)  # which of the found ones this is

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return what changes the result of a training, and nothing else: no name, no resources, no path."""
        excluded = {"name", "resources", "weights"}
        excluded |= {"snapshots", "cycle"} if self.snapshots == 1 else set()
        excluded |= set() if self.cycles else {"cycles"}
        excluded |= set() if self.search else {"search", "pick"}
        excluded |= set() if self.averaged else {"average", "averaged"}
        excluded |= set() if self.packed else {"packed"}
        fields = self.model_dump(mode="json", exclude=excluded)
        return {**fields, "settled": "shuffled"} if self.averaged and isinstance(self.average, Swa) else fields

    def chosen(self, choice: Choice) -> MemberSpec:
        """Return the recipe with a search's choice in the place of its own settings."""
        optimizer: dict[str, Any] = self.optimizer.model_dump()
        if choice.get("optimizer", optimizer["kind"]) != optimizer["kind"]:
            optimizer = {"kind": choice["optimizer"]}
        optimizer |= {key: choice[key] for key in ("lr", "weight_decay") if key in choice}
        strengths: dict[str, Any] = {augmentation.name: augmentation.strength for augmentation in self.augment}
        strengths |= {key.removeprefix("augment."): value for key, value in choice.items() if key.startswith("augment.")}
        augment = tuple({name: strength} for name, strength in strengths.items())
        values = {**dict(self), "optimizer": optimizer, "augment": augment, "search": None, "pick": 1}
        return type(self).model_validate(values)

    def averages(self) -> dict[str, Any] | None:
        """Return how weights are averaged along the training, as a checkpoint records it."""
        return self.average.model_dump(mode="json") if self.average else None

    def cycle_ends(self, epochs: int) -> list[int]:
        """Return the epoch after which each cycle ends, for a training of `epochs` epochs."""
        if self.cycles is None:
            return [round(epochs * k / self.snapshots) for k in range(1, self.snapshots + 1)]
        first, others = round(epochs * self.cycles.first), self.snapshots - 1
        return [first + round((epochs - first) * k / others) for k in range(self.snapshots)]

    def cycle_lengths(self, epochs: int) -> list[int]:
        """Return the number of epochs of each cycle, for a training of `epochs` epochs."""
        ends = [0, *self.cycle_ends(epochs)]
        return [end - start for start, end in itertools.pairwise(ends)]


class StudentSpec(MemberSpec):
    """A network that learns from the members' pooled answers.

    Attributes:
        epochs: Number of epochs; as many as the members' where left out.
        soft: Share of the loss that is the distance to the members' answers. The rest is that of the labels.
        temperature: Above 1, small probabilities count for more.
        start: The member whose weights it begins from; fresh ones where left out.
    """

    epochs: int | None = Field(None, ge=1)  # as many as the members' where left out
    soft: float = Field(1.0, gt=0, le=1)  # share of the loss that is the distance to the members' answers; the rest: labels
    temperature: float = Field(1.0, gt=0, le=100)  # above 1 the small probabilities count for more
    start: Name | None = None  # the member whose weights it begins from; fresh ones where left out

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return what changes the result.

        The epochs are part of the training's, and a start counts by its signature, not its name.
        """
        return {k: v for k, v in super().fingerprint_fields().items() if k not in ("epochs", "start")}
