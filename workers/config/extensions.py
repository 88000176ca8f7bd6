"""Extension points of a training: augmentations, optimizers, schedules, layouts, architecture sources.

Each kind has a registry and a base class. Registered modules import torch only when they compute, so names and documentation
can be listed without it. A reference like `my_module:Posterize` names a user's own class or function.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from workers.config.own_code import import_own
from workers.config.registry import Registry
from workers.config.strict import Strict
from workers.errors import UserInputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from workers.data.layout import Layout
    from workers.models.source import ArchitectureSource

REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Labels(NamedTuple):
    """The labels of a batch of N images, each of which may be a mixture of two.

    Attributes:
        first: (N,) int64, the labels.
        second: (N,) int64, the labels of the images that were mixed in.
        share: Weight of `first`; 1 if nothing was mixed in. A scalar tensor in a captured step.
        other: (N,) int64, the batch indices of the images that were mixed in. Weighted rows need it.
    """

    first: Tensor
    second: Tensor
    share: float | Tensor = 1.0
    other: Tensor | None = None


def is_reference(name: str) -> bool:
    """Return whether a name is a reference to user code, package.module:name."""
    return REFERENCE.fullmatch(name) is not None


def load_reference(name: str) -> Any:
    """Import the object that a reference names. Raises UserInputError if that fails."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_own(module), attribute)
    except Exception as error:  # a user's module can raise anything
        raise UserInputError(f"{name}: can't be imported ({type(error).__name__}: {error}).") from error


class Augmentation:
    """One way to change a batch of images. Its strength is one number, which a team file gives as NAME: STRENGTH.

    All randomness comes from the given generator, so that trainings are reproducible.

    Class attributes:
        default: The strength if a team file gives none.
        largest: The largest strength that makes sense.
        meaning: Description of the strength.
        order: Augmentations are applied in this order, whatever the order in the team file.
        moves_pixels: Whether it only moves pixels. It then gets (N, H, W, 3) uint8, before the others, which get
            (N, 3, H, W) float32 in [0, 1].
        can_be_captured: Whether `apply` may run in a CUDA graph: it draws random numbers on the images' device only, and
            nothing in it depends on a Python number that changes.

    Args:
        strength: The strength.
    """

    default: ClassVar[float] = 1.0
    largest: ClassVar[float] = float("inf")
    meaning: ClassVar[str] = "strength"
    order: ClassVar[int] = 70
    moves_pixels: ClassVar[bool] = False
    can_be_captured: ClassVar[bool] = False

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed images of the same shape and type. `generator` is on the images' device."""
        return images

    def mix(self, x: Tensor, labels: Labels, generator: torch.Generator) -> tuple[Tensor, Labels]:
        """Mix images (N, 3, H, W) with each other, and their labels. Runs after all other augmentations."""
        return x, labels


class OptimizerSpec(Strict, ABC):
    """An optimizer with its settings, as a team file gives them."""

    kind: str
    lr: float = Field(gt=0)

    @abstractmethod
    def make(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Return torch's optimizer for these parameters."""


class OwnOptimizer(OptimizerSpec):
    """A user's own subclass of torch.optim.Optimizer. All keys but `kind` are its arguments."""

    model_config = ConfigDict(extra="allow")

    lr: float = Field(1e-3, gt=0)

    def make(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Call the user's class with the parameters, the learning rate and the other settings."""
        made: torch.optim.Optimizer = load_reference(self.kind)(parameters, lr=self.lr, **(self.model_extra or {}))
        return made


class ScheduleSpec(Strict, ABC):
    """A schedule of the learning rate, as a team file gives it."""

    kind: str

    @abstractmethod
    def rate(self, base: float, step: int, steps: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step.

        Args:
            base: The optimizer's learning rate.
            step: Number of the step, from 0, over the whole training.
            steps: Number of steps of the whole training.
            steps_per_epoch: Number of steps of an epoch.
        """


class OwnSchedule(ScheduleSpec):
    """A user's own function of (step, steps, steps_per_epoch), which returns a factor of the learning rate."""

    model_config = ConfigDict(extra="allow")

    def rate(self, base: float, step: int, steps: int, steps_per_epoch: int) -> float:
        """Multiply by what the user's function returns."""
        return base * float(load_reference(self.kind)(step, steps, steps_per_epoch, **(self.model_extra or {})))


class Kinds:
    """A pydantic annotation that parses a name, or a mapping with `kind`, into the settings class registered for it.

    Args:
        registry: The classes by kind.
        own: The settings class for references to user code.
        allows_changes: Whether to keep a mapping without `kind`, which changes settings of the kind in `defaults:`.
    """

    def __init__(self, registry: Registry[Any], own: type[Strict], allows_changes: bool = False) -> None:
        self.registry, self.own, self.allows_changes = registry, own, allows_changes

    def parse(self, value: Any) -> Any:
        """Parse a team file's value into settings. Raises ValueError if it is invalid."""
        if isinstance(value, self.own.__mro__[1]):
            return value
        settings = {"kind": value} if isinstance(value, str) else value
        if not isinstance(settings, Mapping):
            raise ValueError(  # noqa: TRY004  # pydantic reports only ValueError to users
                f"expected the name of one {self.registry.kind}, or a mapping with its kind"
            )
        if "kind" not in settings:
            if self.allows_changes:
                return dict(settings)
            raise ValueError(f"say which {self.registry.kind}: add `kind`, one of {', '.join(self.registry.names())}")
        name = str(settings["kind"])
        return (self.own if is_reference(name) else self.registry[name]).model_validate(dict(settings))

    def classes(self) -> list[type[Strict]]:
        """Return the settings classes of all kinds."""
        return [self.registry[name] for name in self.registry.names()]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Parse pydantic fields with this annotation."""
        return core_schema.no_info_plain_validator_function(self.parse)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """List the kinds and their settings in a JSON Schema."""
        settings = [kind.model_json_schema() for kind in self.classes()]
        for entry in settings:
            entry["required"] = ["kind"]
        name = {"type": "string", "pattern": f"^{REFERENCE.pattern}$"}
        own = {"type": "object", "required": ["kind"], "properties": {"kind": name}}
        changes = [{"type": "object", "not": {"required": ["kind"]}}] if self.allows_changes else []
        return {"anyOf": [{"enum": list(self.registry.names())}, name, *settings, own, *changes]}


AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation", "workers.training.augmentations", "conclave.augmentations")
OPTIMIZERS: Registry[OptimizerSpec] = Registry("optimizer", "workers.training.optimizers", "conclave.optimizers")
SCHEDULES: Registry[ScheduleSpec] = Registry("schedule", "workers.training.schedules", "conclave.schedules")
LAYOUTS: Registry[Layout] = Registry("data set", "workers.data.layouts", "conclave.layouts")
ARCHITECTURES: Registry[ArchitectureSource] = Registry(
    "architecture source", "workers.models.architectures", "conclave.architectures"
)
