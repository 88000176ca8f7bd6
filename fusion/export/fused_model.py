"""Assemble networks and a combiner into one torch module: uint8 images in, class probabilities out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fusion.export.abstaining import disagreement, prediction_sets
from fusion.interface import FUSIONS, FusionMethod, NetworkOutputs
from fusion.metrics.calibration import TINY
from fusion.selection.fitting import FittedFusion
from fusion.selection.networks import CandidateNetworks
from workers.models.network import Network
from workers.training.augmentation import to_float

OUTPUTS = ("probabilities", "sets", "disagreement")  # the last two only if the model abstains


class Combiner(nn.Module):
    """A fusion's `combine` as a torch module, with the fusion's arrays as buffers.

    Args:
        method: The fusion.
        arrays: Its fitted arrays by name.
    """

    def __init__(self, method: type[FusionMethod], arrays: Mapping[str, Any]) -> None:
        super().__init__()
        self.method, self.names = method, tuple(arrays)
        for name, values in arrays.items():
            tensor = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values), dtype=torch.float32)
            self.register_buffer(name, tensor)

    @property
    def arrays(self) -> dict[str, Tensor]:
        """The arrays by name."""
        return {name: cast(Tensor, getattr(self, name)) for name in self.names}

    def forward(self, features: list[Tensor], logits: list[Tensor]) -> Tensor:
        """Return log-probabilities (N, C) from the networks' features (N, D_m) and logits (N, C)."""
        side_by_side = torch.cat(features, 1) if self.method.uses_features else None
        return self.method.combine(self.arrays, NetworkOutputs(torch.stack(logits), side_by_side))

    def ask_in_turn(self, networks: Sequence[nn.Module], x: Tensor) -> Tensor | None:
        """Return the same from images, running fewer networks, or None if the fusion needs all of them."""
        return self.method.ask_in_turn(self.arrays, networks, x)


def restore_combiner(stored_name: str, arrays: Mapping[str, Tensor]) -> Combiner:
    """Restore an exported combiner from its stored name and arrays. Raises KeyError for an unknown name."""
    by_stored_name = {method.stored_name: method for _, method in FUSIONS}
    return Combiner(by_stored_name[stored_name], arrays)


class FusedModel(nn.Module):
    """Networks, a combiner and a temperature as one module: (N, H, W, 3) uint8 -> (N, C) float32 probabilities.

    Args:
        members: The networks, in the combiner's order.
        combiner: Turns the networks' outputs into log-probabilities.
        temperature: Temperature that calibrates the output.
        flips: Whether to average each network's features over an image and its mirror image.

    Attributes:
        level: Level of the prediction sets, which the exported model adds to its outputs; None to output only probabilities.
    """

    def __init__(self, members: Sequence[nn.Module], combiner: Combiner, temperature: float, flips: bool = False) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.combiner = combiner
        self.temperature = temperature
        self.flips = flips
        self.level: float | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities of images."""
        x = to_float(images)
        in_turn = None if self.flips else self.combiner.ask_in_turn(list(self.members), x)
        return self.answer(x)[0] if in_turn is None else self._calibrate(in_turn)

    def answer(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run all networks: (N, 3, H, W) float32 in [0, 1] -> probabilities (N, C), and each network's logits (N, C)."""
        return self.answer_features([features_of(cast(Network, member), x, self.flips) for member in self.members])

    def answer_features(self, features: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the outputs of `answer` from the features (N, D_m) of all networks."""
        logits = [cast(Network, m).head(f) for m, f in zip(self.members, features, strict=True)]
        return self._calibrate(cast(Tensor, self.combiner(features, logits))), logits

    def conclude(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        """Return the outputs of the exported model, as OUTPUTS names them, from the features of all networks."""
        probabilities, logits = self.answer_features(features)
        if self.level is None:
            return (probabilities,)
        sets = prediction_sets(probabilities, self.level)
        return probabilities, sets, disagreement(torch.stack(logits).softmax(2))

    def _calibrate(self, log_probabilities: Tensor) -> Tensor:
        """Apply the temperature as `apply_temperature` does, whose lower bound matters at high temperatures."""
        return (log_probabilities.clamp(min=float(np.log(TINY))) / self.temperature).softmax(1)


def features_of(network: Network, x: Tensor, flips: bool) -> Tensor:
    """Return a network's features (N, D), averaged over each image (N, 3, H, W) and its mirror image if `flips`."""
    return (network.features(x) + network.features(x.flip(3))) / 2 if flips else network.features(x)


def assemble(fitted: FittedFusion, networks: CandidateNetworks[nn.Module], flips: bool = False) -> FusedModel:
    """Return a fitted fusion as a module, in evaluation mode.

    Args:
        fitted: The fusion.
        networks: The networks of the team.
        flips: Whether to average features over each image and its mirror image.
    """
    count = len(networks.full) if fitted.members is None else len(fitted.members)
    combiner = Combiner(type(fitted.method), fitted.method.arrays(fitted.method.used(count)))
    return FusedModel(networks.used(fitted), combiner, fitted.temperature, flips).eval()
