"""Convert a fused model to ONNX, tracing each kind of network only once.

Converting a network takes seconds, nearly all of them for tracing, and networks of one recipe differ only in their weights. So
one network of each kind is traced, and its graph is copied for the others, with their own weights. The operations before and
after the networks are traced with features as inputs. A call of torch's exporter takes two seconds or more, so a single call
traces all parts; they are then extracted from its graph and joined.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import cast

import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch import Tensor, nn

from fusion.export.fused_model import OUTPUTS, FusedModel, features_of
from workers.models.network import Network
from workers.training.augmentation import to_float

ROWS = 2  # of the traced example; the batch size is dynamic in the graph
TRUNK_INPUT = "trunk_input"
OPSET, IR_VERSION = 18, 8  # the lowest that torch writes; ONNX Runtime reads them from 1.14 on


class _Features(nn.Module):
    """A network's features, as the fused model sees them.

    Args:
        network: The network, in evaluation mode.
        number: Its position in the model.
        flips: Whether to average features over each image and its mirror image.
    """

    def __init__(self, network: Network, number: int, flips: bool) -> None:
        super().__init__()
        self.network, self.number, self.flips = network, number, flips

    def forward(self, x: Tensor) -> Tensor:
        return features_of(self.network, x, self.flips)

    def values(self) -> dict[str, Tensor]:
        """Return its parameters and buffers by name, including non-persistent buffers."""
        return {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}

    def kind(self) -> str:
        """Return a key that is equal for networks that differ only in their weights."""
        code = getattr(self.network.trunk, "code", "")
        shapes = [(name, tuple(value.shape), value.dtype) for name, value in self.values().items()]
        return f"{self.network!r} {code} {shapes}"


class _Parts(nn.Module):
    """Parts of a model side by side: the operations around its networks, with features as inputs, and some networks.

    Args:
        model: The model.
        networks: Some of its networks, which share a separate input.
    """

    def __init__(self, model: FusedModel, networks: Sequence[_Features]) -> None:
        super().__init__()
        self.model = model
        self.networks = list(networks)  # not submodules, so that their weights keep their names in the model

    def forward(self, images: Tensor, features: list[Tensor], x: Tensor) -> tuple[Tensor, ...]:
        return to_float(images), *self.model.conclude(features), *(network(x) for network in self.networks)


@torch.no_grad()
def convert(model: FusedModel, size: int, with_copies: bool = True) -> ir.Model:
    """Convert a model to ONNX with a dynamic batch size.

    The input is `images`. The outputs are `probabilities` and, if the model has a level, `sets` and `disagreement`.

    Args:
        model: The model, in evaluation mode.
        size: Side of its images in pixels.
        with_copies: Whether networks of one kind share the graph of the first.
    """
    networks = [_Features(cast(Network, member), number, model.flips) for number, member in enumerate(model.members)]
    kinds = [network.kind() if with_copies else str(network.number) for network in networks]
    first = dict(reversed(list(zip(kinds, networks, strict=True))))  # first network of each kind, whose graph the others share
    traced = _traced(model, list(first.values()), networks, size)
    inputs = ["images", *(_feature_name(network) for network in networks)]
    whole = ir.Model(
        ir.convenience.extract(traced.graph, inputs, ["x", *_output_names(model)]),
        ir_version=IR_VERSION,
        producer_name=traced.producer_name,
        producer_version=traced.producer_version,
        functions=tuple(traced.functions.values()),
    )
    for kind, network in zip(kinds, networks, strict=True):
        trunk = ir.convenience.extract(traced.graph, [TRUNK_INPUT], [_trunk_name(first[kind])])
        _insert(whole.graph, trunk, first[kind], network)
    del whole.graph.outputs[0]  # x, which only the trunks read
    whole.graph.sort()
    optimizer.fold_constants(whole)  # what computes a constant has types of its own, which converters to float16 miss
    optimizer.remove_unused_nodes(whole)
    _order_weights(whole.graph)
    return whole


def _order_weights(graph: ir.Graph) -> None:
    """Sort the weights by name, so that a model always gives the same file."""
    values = sorted(graph.initializers.items())
    for name, value in values:
        del graph.initializers[name]
        graph.register_initializer(value)


def _traced(model: FusedModel, traced: Sequence[_Features], networks: Sequence[_Features], size: int) -> ir.Model:
    """Trace the parts of a model. The graph is left as traced, because ONNX Runtime optimizes it better.

    Args:
        model: The model.
        traced: Its networks to trace.
        networks: All its networks.
        size: Side of its images in pixels.
    """
    for name in ("torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    images = torch.zeros(ROWS, size, size, 3, dtype=torch.uint8)
    x = to_float(images)
    batch = torch.export.Dim("N")
    shapes = {"images": {0: batch}, "features": [{0: batch}] * len(networks), "x": {0: torch.export.Dim("M")}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Parts(model, traced).eval(),
            (images, [network(x) for network in networks], x),
            dynamo=True,
            optimize=False,
            input_names=["images", *(_feature_name(network) for network in networks), TRUNK_INPUT],
            output_names=["x", *_output_names(model), *(_trunk_name(network) for network in traced)],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    return program.model


def _output_names(model: FusedModel) -> tuple[str, ...]:
    return OUTPUTS[:1] if model.level is None else OUTPUTS


def _feature_name(network: _Features) -> str:
    return f"features_{network.number}"


def _trunk_name(network: _Features) -> str:
    return f"trunk_{network.number}"


def _insert(whole: ir.Graph, trunk: ir.Graph, traced: _Features, network: _Features) -> None:
    """Insert a trunk into the whole graph, with a network's weights, in place of the input for its features.

    Args:
        whole: The graph to insert into.
        trunk: The trunk's graph; its nodes are moved out of it.
        traced: The network that the trunk was traced from.
        network: The network whose weights it gets.
    """
    prefix = f"member_{network.number}_"  # for computed values: a weight may have the name of an operation
    weights = network.values()
    for name, value in list(trunk.initializers.items()):
        _, of_network, own = name.partition(f"members.{traced.number}.")
        weight = own if of_network else name  # constants of the graph belong to no network
        if weight in weights:
            value.const_value = ir.tensor(weights[weight].detach().contiguous().numpy())
        del trunk.initializers[name]
        value.name = f"members.{network.number}.{weight}"
        whole.register_initializer(value)
    x, features = trunk.inputs[0], trunk.outputs[0]
    placeholder = next(value for value in whole.inputs if value.name == _feature_name(network))
    ir.convenience.replace_all_uses_with(x, whole.outputs[0])
    for node in list(trunk):
        trunk.remove(node)
        node.name = prefix + (node.name or "")
        for output in node.outputs:
            output.name = prefix + (output.name or "")
        whole.append(node)
    ir.convenience.replace_all_uses_with(placeholder, features)
    whole.inputs.remove(placeholder)
