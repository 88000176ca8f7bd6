"""Convert a fused model to ONNX: each kind of network once, however many of a kind there are.

Converting a network takes seconds, nearly all of them for tracing it. Networks of one recipe differ in their weights alone. So a
network of each kind is converted, and its graph is copied for the others, with their own weights. What comes before and after
the networks is converted apart, with their features as inputs, and the graphs are put together.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import Tensor, nn

from fusion.export.abstaining import OUTPUTS, AbstainingModel
from fusion.export.fused_model import FusedModel, features_with_flips
from workers.models.network import Network
from workers.training.augmentation import to_float

ROWS = 2  # of the example that is traced; the number is left open in the graph
Exported = FusedModel | AbstainingModel


class _Frame(nn.Module):
    """All of a fused model but its networks' trunks: images and the networks' features -> the trunks' input, and the outputs."""

    def __init__(self, model: Exported) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, features: list[Tensor]) -> tuple[Tensor, ...]:
        return to_float(images), *self.model.conclude(features)


class _Features(nn.Module):
    """A network's features, as the fused model sees them."""

    def __init__(self, network: Network, flips: bool) -> None:
        super().__init__()
        self.network, self.flips = network, flips

    def forward(self, x: Tensor) -> Tensor:
        return features_with_flips(self.network, x) if self.flips else self.network.features(x)

    def values(self) -> dict[str, Tensor]:
        """Return its parameters and buffers by name, those included that are not saved."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def kind(self) -> str:
        """Return what networks have in common that differ in their weights alone."""
        code = getattr(self.network.trunk, "code", "")
        shapes = [(name, tuple(value.shape), value.dtype) for name, value in self.values().items()]
        return f"{self.network!r} {code} {shapes}"


@torch.no_grad()
def convert(model: Exported, size: int, with_copies: bool = True) -> ir.Model:
    """Convert a model to ONNX with a dynamic batch: input `images`, output `probabilities`, and `sets` and `disagreement`.

    Args:
        model: The model, in evaluation mode.
        size: The side of its images.
        with_copies: Whether the graph of a network serves for others of its kind.
    """
    fused = model if isinstance(model, FusedModel) else model.model
    networks = [_Features(cast(Network, member), fused.flips) for member in fused.members]
    images = torch.zeros(ROWS, size, size, 3, dtype=torch.uint8)
    x = to_float(images)
    features = [network(x) for network in networks]
    names = ["x", *(OUTPUTS if isinstance(model, AbstainingModel) else OUTPUTS[:1])]
    batch = torch.export.Dim("N")
    shapes = {"images": {0: batch}, "features": [{0: batch}] * len(features)}
    inputs = ["images", *(_feature_name(number) for number in range(len(features)))]
    whole = _traced(_Frame(model), (images, features), inputs, names, shapes)
    trunks: dict[str, ir.Model] = {}
    for number, network in enumerate(networks):
        kind = network.kind() if with_copies else str(number)
        if kind not in trunks:
            trunks[kind] = _traced(network, (x,), ["x"], ["features"], {"x": {0: batch}})
        _insert(whole.graph, trunks[kind].graph.clone(), number, network.values())
    del whole.graph.outputs[0]  # x, which only the trunks read
    whole.graph.sort()
    return whole


def _traced(
    module: nn.Module, example: tuple[Any, ...], inputs: Sequence[str], outputs: Sequence[str], shapes: dict[str, Any]
) -> ir.Model:
    """Convert one module. Its graph is as it was traced: ONNX Runtime does better what could be done to it here."""
    for name in ("torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            optimize=False,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None
    return program.model


def _feature_name(number: int) -> str:
    return f"features_{number}"


def _insert(whole: ir.Graph, trunk: ir.Graph, number: int, weights: Mapping[str, Tensor]) -> None:
    """Put the graph of a network's features into the whole, with this network's weights, in the place of an input."""
    prefix = f"member_{number}_"  # of what is computed: a weight may have the name of an operation
    for name, value in list(trunk.initializers.items()):
        if name in weights:
            value.const_value = ir.tensor(weights[name].detach().contiguous().numpy())
        del trunk.initializers[name]
        value.name = f"members.{number}.{name.removeprefix('network.')}"
        whole.register_initializer(value)
    x, features = trunk.inputs[0], trunk.outputs[0]
    placeholder = next(value for value in whole.inputs if value.name == _feature_name(number))
    ir.convenience.replace_all_uses_with(x, whole.outputs[0])
    for node in list(trunk):
        trunk.remove(node)
        node.name = prefix + (node.name or "")
        for output in node.outputs:
            output.name = prefix + (output.name or "")
        whole.append(node)
    ir.convenience.replace_all_uses_with(placeholder, features)
    whole.inputs.remove(placeholder)
