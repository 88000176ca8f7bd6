"""Describe members (`MemberSpec`) and the settings that a team shares (`DataSpec`, `TrainSpec`), without torch."""

from __future__ import annotations

import codecs
import itertools
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field

from workers.config.architectures import check_arch
from workers.config.extensions import LAYOUTS, is_reference
from workers.config.recipe import (
    Augment,
    Augments,
    Average,
    Cycles,
    Optimizer,
    Schedule,
    Swa,
    default_optimizer,
    default_schedule,
)
from workers.config.resources import Resources
from workers.config.search_space import Choice, SearchSpec
from workers.config.strict import FilePath, Name, Strict

Interpolation = Literal["bilinear", "bicubic"]
Column = Literal["path", "label", "split", "group", "fold", "weight"]
MOST_EPOCHS = 10**5
NEWER_DATA_KEYS: dict[str, object] = {  # with their defaults
    "validation": None,
    "duplicates": "warn",
    "manifest": None,
    "columns": {},
    "encoding": None,
    "extension": None,
    "classes": None,
    "max_pixels": None,
    "on_missing_label": None,
    "interpolation": None,
    "fuse": "part",
    "split": None,
    "images_per_class": None,
}


def check_encoding(name: str) -> str:
    """Return the name of an encoding that Python knows. Raises ValueError otherwise."""
    try:
        return codecs.lookup(name).name
    except LookupError:
        raise ValueError("unknown encoding. Common ones are gbk, shift_jis, euc_kr, cp1251 and cp850") from None


class DataSpec(Strict):
    """The data set, its splits and its image size."""

    dataset: Annotated[str, LAYOUTS] = "digits"
    root: FilePath | None = Field(None, strict=False)
    image_size: int | None = Field(None, ge=8, le=1024)
    interpolation: Interpolation | None = None  # how images are resized; None: as for the published weights, or bilinear
    fuse: Literal["part", "out_of_fold"] = "part"  # what fusions are fitted and chosen on: rows of their own, or all by fold
    fuse_fraction: float = Field(0.1, gt=0, lt=1)
    test_fraction: float = Field(0.2, gt=0, lt=1)
    folds: int = Field(5, ge=0, le=1000)
    max_bad: int = Field(0, ge=0, le=10**9)  # maximum number of undecodable images, which are left out and listed
    max_pixels: int | None = Field(None, ge=1, le=2**31)  # largest image that is decoded
    validation: Literal["fuse", "leave_out"] | None = None  # role of val rows beside train and test; None: by the file's version
    duplicates: Literal["warn", "drop", "error"] = "warn"  # identical images in two parts or with two labels
    encoding: Annotated[str, AfterValidator(check_encoding)] | None = (
        None  # of names in a ZIP, and of a table, that are not UTF-8
    )
    extension: str | None = Field(None, pattern=r"^\.\w{1,10}$")  # added to a manifest's paths, such as .jpg
    on_missing_label: Literal["error", "drop"] | None = (
        None  # for rows without a label, and labels such as nan; None: warn of these
    )
    classes: FilePath | None = Field(None, strict=False)  # a text file with a class name on each line, which fixes their order
    manifest: FilePath | None = Field(None, strict=False)
    columns: dict[Column, str] = Field(default_factory=dict)  # a manifest's column names, by role
    images_per_class: int | None = Field(None, ge=3, le=10**9)  # largest number of images of each class and part
    split: FilePath | None = Field(None, strict=False)  # a table of parts and folds, written by `conclave split`

    def described(self) -> dict[str, object]:
        """Return the settings as JSON, without newer keys at their defaults, so that older sweeps compare as equal."""
        values = self.model_dump(mode="json")
        return {key: value for key, value in values.items() if key not in NEWER_DATA_KEYS or value != NEWER_DATA_KEYS[key]}

    @property
    def is_out_of_fold(self) -> bool:
        """Whether there is no *fuse* part, and fusions are fitted and chosen on out-of-fold predictions."""
        return self.fuse == "out_of_fold"

    @property
    def size(self) -> int:
        """Side of the images in pixels: the team's setting, or the data set's default."""
        return self.image_size or LAYOUTS[self.dataset].default_size


class StopSpec(Strict):
    """Early stopping on a held-out tenth of the *fit* rows; never on *fuse* or *test*."""

    patience: int = Field(ge=1, le=MOST_EPOCHS)


class TrainSpec(Strict):
    """The settings that all trainings of a team share."""

    epochs: int = Field(50, ge=1, le=MOST_EPOCHS)
    batch_size: int = Field(128, ge=2, le=10**6)
    accumulate: int = Field(1, ge=1, le=10**4)
    schedule: Schedule = Field(default_factory=default_schedule)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = Field(1, ge=1, le=1024)
    clip: float | None = Field(None, gt=0, le=1e9)
    ema: float | None = Field(None, gt=0, lt=1)
    stop: StopSpec | None = None
    steps_per_epoch: int | None = Field(None, ge=1, le=10**9)  # largest number of steps in an epoch
    fold_epochs: float = Field(1.0, gt=0, le=1)  # share of the epochs that a fold training runs

    def of_fold(self, fold: int | None) -> TrainSpec:
        """Return the settings of one training, with `fold_epochs` resolved into a number of epochs."""
        epochs = self.epochs if fold is None else max(1, round(self.epochs * self.fold_epochs))
        return self.model_copy(update={"epochs": epochs, "fold_epochs": 1.0})

    @property
    def references(self) -> tuple[str, ...]:
        """References to user code in the settings: a schedule."""
        return (self.schedule.kind,) if is_reference(self.schedule.kind) else ()

    def fingerprint_fields(self) -> dict[str, object]:
        """Return the settings that change a training's result. A newer one counts only if it is used."""
        newer = {"steps_per_epoch"} if self.steps_per_epoch is None else set()
        return self.model_dump(mode="json", exclude={"fold_epochs", *newer})


CROSS_ENTROPY = "cross_entropy"
PUBLISHED = (Path("imagenet"), Path("pretrained"))  # values of `weights` that stand for those of the architecture's source


def check_loss(name: str) -> str:
    """Return the loss's name if it is cross_entropy or a reference to a function. Raises ValueError otherwise."""
    if name != CROSS_ENTROPY and not is_reference(name):
        raise ValueError(f"unknown loss {name!r}. Use {CROSS_ENTROPY}, or a function of your own as package.module:function")
    return name


RECIPE_FIELDS = ("seed", "arch", "width", "stem", "optimizer", "augment", "label_smoothing")  # the fields that affect the weights


class TrainedMember(Strict):
    """One member that a training makes.

    Attributes:
        name: The member's name.
        seed: Its seed.
        cycle: The snapshot cycle that ends in it, from 1.
        averaged: Whether its weights are averaged along the training.
    """

    name: Name
    seed: int = Field(ge=0, lt=2**63)
    cycle: int = Field(1, ge=1)
    averaged: bool = False


class NetworkKeys(Strict):
    """The keys of a network's recipe that have the same form in a team file and in a resolved recipe."""

    width: int = Field(64, ge=4, le=1024, description="Channels of the first stage of resnet18 and resnet34.")
    stem: Literal["auto", "imagenet", "cifar"] = Field(
        "auto", description="First layers of a ResNet; cifar is one 3x3 convolution."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of each label that is spread over all classes.")
    loss: Annotated[str, AfterValidator(check_loss)] = Field(
        CROSS_ENTROPY, description="The loss: cross_entropy, or a custom function as package.module:function."
    )
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0, le=10**6)]] | None = Field(
        None, description="Weights of the classes in the loss, by name; balanced: in inverse proportion to their images."
    )
    sampler: Literal["balanced"] | None = Field(
        None, description="balanced: an epoch draws as many images of each class, with replacement."
    )
    weights: FilePath | None = Field(
        None, strict=False, description="A file of weights to start from, or imagenet: the published ones of the architecture."
    )
    freeze: Literal["backbone"] | None = Field(
        None, description="backbone: train only the last layer, on features that are computed once for each image."
    )
    views: int = Field(1, ge=1, le=100, description="Views of an image that a frozen backbone sees: itself, then augmented ones.")


class MemberKeys(Strict):
    """The keys of a member's recipe that a student lacks, in the form that a team file and a resolved recipe share."""

    snapshots: int = Field(1, ge=1, le=100, description="Number of cycles of one training; each ends in a member.")
    cycles: Cycles | None = Field(None, description="Lengths of the snapshot cycles; equal by default.")
    average: Average | None = Field(None, description="A second member, with weights averaged over the training.")
    search: SearchSpec | None = Field(None, description="Settings to try in place of the member's.")


class StudentKeys(Strict):
    """The keys that only a student has, in the form that a team file and a resolved recipe share."""

    epochs: int | None = Field(None, ge=1, le=MOST_EPOCHS, description="Number of epochs; the members' by default.")
    soft: float = Field(1.0, gt=0, le=1, description="Share of the loss that is the distance to the members' predictions.")
    temperature: float = Field(1.0, gt=0, le=100, description="Above 1, small probabilities count for more.")
    start: Name | None = Field(None, description="The member whose weights the student starts from.")


class MemberSpec(NetworkKeys, MemberKeys):
    """The recipe of one training, with all defaults filled in. It makes the members in `members`, usually one.

    Attributes:
        pick: Rank of this recipe in its search, from 1.
    """

    name: Name
    seed: int = Field(ge=0, lt=2**63)
    arch: Annotated[str, AfterValidator(check_arch)] = "resnet18"
    optimizer: Optimizer = Field(default_factory=default_optimizer)
    augment: Augments = (Augment(name="flip", strength=0.5), Augment(name="crop", strength=0.125))
    resources: Resources = Resources()
    pick: int = Field(1, ge=1)

    @property
    def references(self) -> tuple[str, ...]:
        """References to user code in the recipe, except the network: augmentations, optimizer, loss."""
        names = (*(augment.name for augment in self.augment), self.optimizer.kind, self.loss)
        return tuple(name for name in names if is_reference(name))

    @property
    def members(self) -> tuple[TrainedMember, ...]:
        """The members that the training makes: NAME; or snapshots NAME.1, NAME.2; or NAME and NAME.swa."""
        if self.snapshots > 1:
            cycles = range(1, self.snapshots + 1)
            return tuple(TrainedMember(name=f"{self.name}.{cycle}", seed=self.seed, cycle=cycle) for cycle in cycles)
        plain = TrainedMember(name=self.name, seed=self.seed)
        if self.average is None:
            return (plain,)
        return plain, TrainedMember(name=f"{self.name}.{self.average.kind}", seed=self.seed, averaged=True)

    def fingerprint_fields(self, member: TrainedMember | None = None) -> dict[str, object]:
        """Return only the fields that change a member's weights: no name, no resources, no path.

        Args:
            member: The member; the first if None.
        """
        member = member or self.members[0]
        fields = self.model_dump(mode="json", include={*RECIPE_FIELDS})
        fields["seed"] = member.seed
        if self.loss != CROSS_ENTROPY:
            fields["loss"] = self.loss
        if self.snapshots > 1:
            fields |= {"snapshots": self.snapshots, "cycle": member.cycle}
        if self.cycles:
            fields["cycles"] = self.cycles.model_dump(mode="json")
        if self.average and member.averaged:
            fields |= {"average": self.average.model_dump(mode="json"), "averaged": True}
            fields |= {"settled": "shuffled"} if isinstance(self.average, Swa) else {}
        if self.freeze:
            fields |= {"freeze": self.freeze, "views": self.views, **({"augment": []} if self.views == 1 else {})}
        if self.class_weights:
            fields["class_weights"] = self.class_weights
        if self.sampler:
            fields["sampler"] = self.sampler
        if self.search:
            fields |= {"search": self.search.model_dump(mode="json"), "pick": self.pick}
        return fields

    def record(self, member: TrainedMember) -> MemberRecord:
        """Return the record of a member for manifests and exported models."""
        selected = {"name": member.name, "seed": member.seed, "cycle": member.cycle, "averaged": member.averaged}
        return MemberRecord.model_validate_json(json.dumps({**self.model_dump(mode="json"), **selected}))

    def last_epoch(self, member: TrainedMember, epochs: int) -> int:
        """Return the number of epochs after which a member is complete, for a training of `epochs` epochs."""
        return self.cycle_ends(epochs)[member.cycle - 1]

    def chosen(self, choice: Choice) -> MemberSpec:
        """Return the recipe with a search's choice filled in."""
        optimizer: dict[str, Any] = self.optimizer.model_dump()
        if choice.get("optimizer", optimizer["kind"]) != optimizer["kind"]:
            optimizer = {"kind": choice["optimizer"]}
        optimizer |= {key: choice[key] for key in ("lr", "weight_decay") if key in choice}
        strengths: dict[str, Any] = {augmentation.name: augmentation.strength for augmentation in self.augment}
        strengths |= {key.removeprefix("augment."): value for key, value in choice.items() if key.startswith("augment.")}
        augment = tuple({name: strength} for name, strength in strengths.items())
        values = {**dict(self), "optimizer": optimizer, "augment": augment, "search": None, "pick": 1}
        return type(self).model_validate(values)

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


class MemberRecord(MemberSpec):
    """A member in manifests and exported models: its training's recipe, with its own seed and cycle."""

    model_config = ConfigDict(extra="allow")  # a student has more keys

    cycle: int = Field(1, ge=1)
    averaged: bool = False

    def fingerprint_fields(self, member: TrainedMember | None = None) -> dict[str, object]:
        """Return the fields that change this member's weights."""
        own = TrainedMember(name=self.name, seed=self.seed, cycle=self.cycle, averaged=self.averaged)
        return super().fingerprint_fields(member or own)

    def recipe_fields(self, *others: str) -> dict[str, object]:
        """Return the fields that the members of one training share, without the keys `others`."""
        excluded = {"name", "resources", "cycle", "averaged", "search", "pick", *others}
        return self.model_dump(mode="json", exclude=excluded)


class StudentSpec(MemberSpec, StudentKeys):
    """A student: one network that is distilled from the members' pooled predictions."""

    def fingerprint_fields(self, member: TrainedMember | None = None) -> dict[str, object]:
        """Return the fields that change the weights. Epochs are a training setting; `start` counts by signature, not name."""
        return {**super().fingerprint_fields(member), "soft": self.soft, "temperature": self.temperature}
