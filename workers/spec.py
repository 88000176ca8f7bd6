"""What a member is (`MemberSpec`) and what the whole team shares (`DataSpec`, `TrainSpec`).

Frozen and strict: unknown keys and wrong types are errors. No torch here, so that `validate` and `plan` stay light.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from workers.networks import check_arch

AUGMENTS: dict[str, tuple[float, float, str]] = {
    # name: (default strength, largest strength, what the strength means)
    "flip": (0.5, 1.0, "probability of a horizontal flip"),
    "crop": (0.125, 256.0, "padding before a random crop: a share of the side, or pixels from 1 on"),
    "rotate": (15.0, 180.0, "largest angle in degrees"),
    "cutout": (0.5, 256.0, "side of the square hole: a share of the side, or pixels from 1 on"),
    "color": (0.2, 1.0, "largest relative change of brightness, contrast and saturation"),
    "erase": (0.25, 1.0, "probability of erasing a random rectangle"),
    "mixup": (0.2, 10.0, "alpha of the Beta distribution that mixes pairs of images"),
}


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("a name has 1 to 64 letters, digits, '.', '_' or '-', and starts with a letter or digit")
    return value


Name = Annotated[str, AfterValidator(_name)]


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


def _kind(value: Any) -> Any:
    """`adamw` stands for `{kind: adamw}`."""
    return {"kind": value} if isinstance(value, str) else value


class Sgd(Strict):
    kind: Literal["sgd"] = "sgd"
    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    nesterov: bool = True


class AdamW(Strict):
    kind: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)


class StepSchedule(Strict):
    """Multiply the learning rate by `factor` every `every` epochs."""

    kind: Literal["step"] = "step"
    every: int = Field(30, ge=1)
    factor: float = Field(0.1, gt=0, le=1)


class CosineSchedule(Strict):
    kind: Literal["cosine"] = "cosine"


class OneCycleSchedule(Strict):
    """Warm up for the first `warmup` of all steps, then anneal by a cosine."""

    kind: Literal["one_cycle"] = "one_cycle"
    warmup: float = Field(0.3, gt=0, lt=1)


Optimizer = Annotated[Annotated[Sgd | AdamW, Field(discriminator="kind")], BeforeValidator(_kind)]
Schedule = Annotated[
    Annotated[StepSchedule | CosineSchedule | OneCycleSchedule, Field(discriminator="kind")], BeforeValidator(_kind)
]


class Ema(Strict):
    """Exponential moving average of the weights, over steps."""

    kind: Literal["ema"] = "ema"
    decay: float = Field(0.999, gt=0, lt=1)


class Swa(Strict):
    """Stochastic weight averaging (Izmailov et al. 2018): the mean of the weights at the ends of the last epochs."""

    kind: Literal["swa"] = "swa"
    last: float = Field(0.25, gt=0, le=1)  # share of the epochs


Average = Annotated[Annotated[Ema | Swa, Field(discriminator="kind")], BeforeValidator(_kind)]


class Cycles(Strict):
    """How a training's epochs are shared among its snapshots: a long first cycle, then short ones at a lower rate (Garipov et
    al. 2018, fast geometric ensembling)."""

    first: float = Field(gt=0, lt=1)  # the first cycle's share of the epochs; the others have equal shares of the rest
    rate: float = Field(1.0, gt=0, le=1)  # the share of the learning rate at which the others start


class Augment(Strict):
    """One augmentation with its strength."""

    name: str
    strength: float


def _augment(value: Any) -> Any:
    """`flip` and `{rotate: 15}` become Augment(name, strength)."""
    if isinstance(value, Augment):
        return value
    if isinstance(value, str):
        name, strength = value, None
    elif isinstance(value, Mapping) and len(value) == 1:
        name, strength = next(iter(value.items()))
    elif isinstance(value, Mapping) and set(value) == {"name", "strength"}:
        name, strength = value["name"], value["strength"]
    else:
        raise ValueError("expected a name like flip, or one name with its strength like {rotate: 15}")
    if name not in AUGMENTS:
        raise ValueError(f"unknown augmentation {name!r}; known are {', '.join(AUGMENTS)}")
    default, largest, meaning = AUGMENTS[name]
    strength = default if strength is None else strength
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= largest:
        raise ValueError(f"the strength of {name} is its {meaning}: a number above 0, at most {largest:g}")
    return Augment(name=name, strength=float(strength))


def _no_augment_twice(value: tuple[Augment, ...]) -> tuple[Augment, ...]:
    names = [a.name for a in value]
    if len(set(names)) < len(names):
        raise ValueError("names an augmentation twice")
    return value


Augments = Annotated[tuple[Annotated[Augment, BeforeValidator(_augment)], ...], AfterValidator(_no_augment_twice)]


Labels = tuple[tuple[str, str], ...]  # sorted pairs of a key and its value
LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")


def _labels(value: Any) -> Any:
    """`{market: spot}`, or a list of such, the first being preferred."""
    if value == () or (isinstance(value, tuple) and value and isinstance(value[0], tuple)):
        return value
    entries = value if isinstance(value, tuple | list) else (value,)
    for entry in entries:
        if not (isinstance(entry, Mapping) and entry and all(_is_label(word) for pair in entry.items() for word in pair)):
            raise ValueError("expected labels of machines like {market: spot}, or a list of such, the preferred ones first")
    return tuple(tuple(sorted(entry.items())) for entry in entries)


def _is_label(word: object) -> bool:
    return isinstance(word, str) and LABEL.fullmatch(word) is not None


class Resources(Strict):
    """What one job asks of the scheduler. `gpus: null` means one a process where there are GPUs, else none."""

    gpus: float | None = Field(None, ge=0)
    cpus: float = Field(1, gt=0)
    workers: int | None = Field(None, ge=1, le=1024)  # processes that train one fit together; null: one a GPU
    labels: Annotated[tuple[Labels, ...], BeforeValidator(_labels)] = ()  # of machines, the preferred first; none: any will do
    wait_minutes: float | None = Field(None, ge=0)  # for a machine that could hold the job; null: as long as one may come

    def preference(self, labels: Mapping[str, str]) -> int | None:
        """Which of the wishes, from 0, a machine with these labels meets first; None: none of them."""
        wishes = self.labels or ((),)
        return next((i for i, wish in enumerate(wishes) if all(labels.get(k) == v for k, v in wish)), None)

    def gpus_where(self, some: bool) -> float:
        """How many GPUs a job asks for, by whether there are some."""
        return float(some) * (self.workers or 1) if self.gpus is None else self.gpus

    @property
    def processes(self) -> int:
        """How many train one fit together, on one machine."""
        whole = self.gpus is not None and self.gpus.is_integer()
        return self.workers or (max(1, int(self.gpus or 0)) if whole else 1)


class DataSpec(Strict):
    dataset: Literal["digits", "cifar10", "folder"] = "digits"
    root: Path | None = Field(None, strict=False)
    image_size: int | None = Field(None, ge=8, le=1024)
    fuse_fraction: float = Field(0.1, gt=0, lt=1)
    test_fraction: float = Field(0.2, gt=0, lt=1)
    folds: int = Field(5, ge=0)
    max_bad: int = Field(0, ge=0)  # images that may fail to decode; they are left out and listed

    @property
    def size(self) -> int:
        """Side in pixels: as the team says, else what suits the data set."""
        return self.image_size or {"digits": 8, "cifar10": 32, "folder": 64}[self.dataset]


class StopSpec(Strict):
    """Early stopping on a tenth of the *fit* rows, set apart; never on *fuse* or *test*."""

    patience: int = Field(ge=1)


def _compile(value: Any) -> Any:
    """`true` stands for torch's own default, `false` for none."""
    return {True: "default", False: None}.get(value, value) if isinstance(value, bool) else value


class TrainSpec(Strict):
    epochs: int = Field(50, ge=1)
    batch_size: int = Field(128, ge=1)
    accumulate: int = Field(1, ge=1)
    schedule: Schedule = StepSchedule()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = Field(1, ge=1)
    clip: float | None = Field(None, gt=0)
    ema: float | None = Field(None, gt=0, lt=1)
    stop: StopSpec | None = None
    fold_epochs: float = Field(1.0, gt=0, le=1)  # share of the epochs that a fold fit runs
    compile: Annotated[Literal["default", "max-autotune"] | None, BeforeValidator(_compile)] = None  # by torch.compile

    def of_fold(self, fold: int | None) -> TrainSpec:
        """What one fit does: the share is resolved into a number of epochs, and is no part of what a fit is."""
        epochs = self.epochs if fold is None else max(1, round(self.epochs * self.fold_epochs))
        return self.model_copy(update={"epochs": epochs, "fold_epochs": 1.0})

    def science(self) -> dict[str, Any]:
        """What changes a fit's result; what came later counts where it is used, so that finished fits stay what they are."""
        return self.model_dump(mode="json", exclude={"fold_epochs", *(() if self.compile else ("compile",))})


def _range(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] < value[1]:
        raise ValueError("expected a range like [0.001, 0.3]: two numbers above 0, the smaller one first")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_range)]


def _augment_range(value: Mapping[str, Range]) -> Mapping[str, Range]:
    for name, (_, high) in value.items():
        if name not in AUGMENTS:
            raise ValueError(f"unknown augmentation {name!r}; known are {', '.join(AUGMENTS)}")
        if high > AUGMENTS[name][1]:
            raise ValueError(f"the strength of {name} is its {AUGMENTS[name][2]}: at most {AUGMENTS[name][1]:g}")
    return value


class SearchSpec(Strict):
    """What to try instead of the member's own settings. Trials are scored on a tenth of the *fit* rows, set apart; the best
    become members."""

    trials: int = Field(ge=2, le=1000)
    keep: int = Field(1, ge=1, le=100)
    epochs: int | None = Field(None, ge=1)  # the most that a trial trains; as many as a member where left out
    grace: int = Field(1, ge=1)  # epochs that each trial trains before it may be stopped
    lr: Range | None = None  # searched by its logarithm, as is the next
    weight_decay: Range | None = None
    optimizer: tuple[Literal["sgd", "adamw"], ...] = ()
    augment: Annotated[dict[str, Range], AfterValidator(_augment_range)] = Field({})  # of strengths

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not (self.lr or self.weight_decay or self.augment):  # by names alone the same would be tried again and again
            raise ValueError("nothing to search; give a range of lr, weight_decay or augment (optimizers alone: write members)")
        if self.keep > self.trials:
            raise ValueError(f"keep: {self.keep} of {self.trials} trials")
        return self


NO_RECIPE = ("name", "resources", "cycle", "averaged", "search", "pick")  # keys of a member that say nothing of one training's


Choice = dict[str, float | str]  # lr, weight_decay, optimizer, augment.NAME


class MemberSpec(Strict):
    """One recipe, resolved: nothing in it is left to a default any more."""

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

    def science(self) -> dict[str, Any]:
        """What changes the result, and nothing else: no name, no resources, no path."""
        without = {"name", "resources", "weights"}
        without |= {"snapshots", "cycle"} if self.snapshots == 1 else set()
        without |= set() if self.cycles else {"cycles"}
        without |= set() if self.search else {"search", "pick"}
        without |= set() if self.averaged else {"average", "averaged"}
        without |= set() if self.packed else {"packed"}
        return self.model_dump(mode="json", exclude=without)

    def chosen(self, choice: Choice) -> MemberSpec:
        """The recipe with what a search chose in the place of its own settings."""
        optimizer: dict[str, Any] = self.optimizer.model_dump()
        if choice.get("optimizer", optimizer["kind"]) != optimizer["kind"]:
            optimizer = {"kind": choice["optimizer"]}
        optimizer |= {key: choice[key] for key in ("lr", "weight_decay") if key in choice}
        strengths: dict[str, Any] = {one.name: one.strength for one in self.augment}
        strengths |= {key.removeprefix("augment."): value for key, value in choice.items() if key.startswith("augment.")}
        augment = tuple({name: strength} for name, strength in strengths.items())
        found = {**dict(self), "optimizer": optimizer, "augment": augment, "search": None, "pick": 1}
        return type(self).model_validate(found)

    def averages(self) -> dict[str, Any] | None:
        """How weights are averaged along the training, as a checkpoint records it."""
        return self.average.model_dump(mode="json") if self.average else None

    def cycle_ends(self, epochs: int) -> list[int]:
        """The epoch after which each cycle ends, of so many epochs in all."""
        if self.cycles is None:
            return [round(epochs * k / self.snapshots) for k in range(1, self.snapshots + 1)]
        first, others = round(epochs * self.cycles.first), self.snapshots - 1
        return [first + round((epochs - first) * k / others) for k in range(self.snapshots)]

    def cycle_lengths(self, epochs: int) -> list[int]:
        """The epochs of each cycle, of so many in all."""
        ends = [0, *self.cycle_ends(epochs)]
        return [end - start for start, end in itertools.pairwise(ends)]


class StudentSpec(MemberSpec):
    """A network that learns from the members' pooled answers: one more recipe, and how it listens."""

    epochs: int | None = Field(None, ge=1)  # as many as the members' where left out
    soft: float = Field(1.0, gt=0, le=1)  # share of the loss that is the distance to the members' answers; the rest: labels
    temperature: float = Field(1.0, gt=0, le=100)  # above 1 the small probabilities count for more
    start: Name | None = None  # the member whose weights it begins from; fresh ones where left out

    def science(self) -> dict[str, Any]:
        """How many epochs is the training's own to say; whose weights, a signature, for names are no part of a fit."""
        return {k: v for k, v in super().science().items() if k not in ("epochs", "start")}


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


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists become JSON."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = json.dumps(value) if isinstance(value, list | tuple) else value
    return flat
