"""Load weights to start from into a network: a plain state dict, or that of a member."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from workers.config.specs import MemberSpec
from workers.errors import UserInputError
from workers.models.network import Network

WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts save a state dict
COUNTER = "num_batches_tracked"  # of batch norms; older files lack it
AUXILIARY = re.compile(r"(aux|AuxLogits)")  # heads that only help a training, as torchvision's files have them
SHOWN = 3


class Names(NamedTuple):
    """Names of the parameters of the network that a source built, and of the `Network` made of it.

    Attributes:
        trunk: Prefix of what became the trunk, such as "trunk.".
        head: Name of what became the head, such as "fc"; None if there is no head apart.
    """

    trunk: str
    head: str | None

    def in_network(self, name: str) -> str:
        """Return the name in the `Network` of a parameter of the source's network."""
        if self.head and name.startswith(f"{self.head}."):
            return f"head.{name.removeprefix(f'{self.head}.')}"
        return f"{self.trunk}{name}"


def load_weights(network: Network, names: Names, spec: MemberSpec) -> None:
    """Load `spec.weights` into a network, except a head for another number of classes, which stays fresh.

    Args:
        network: The network.
        names: Where the parts of the network that the source built have gone.
        spec: The member.

    Raises:
        UserInputError: If the file is no plain state dict, or that of another network; the message names layers and shapes.
    """
    state = _read(cast(Path, spec.weights), spec.name)
    if not all(name.startswith(("trunk.", "head.")) for name in state):  # a member's own file has the names of a Network
        state = {names.in_network(name): tensor for name, tensor in state.items()}
    mine = network.state_dict()
    is_head = {name: name.startswith("head.") for name in {*state, *mine}}
    missing = [name for name in mine if name not in state and not is_head[name] and not name.endswith(COUNTER)]
    unknown = [name for name in state if name not in mine and not is_head[name] and not AUXILIARY.match(_bare(name))]
    shared = [name for name in mine if name in state]
    reshaped = [name for name in shared if mine[name].shape != state[name].shape and not is_head[name]]
    if missing or unknown or reshaped:
        raise UserInputError(_refusal(spec, mine, state, (missing, unknown, reshaped)))
    fresh = {name for name in shared if is_head[name] and mine[name].shape != state[name].shape}
    has_fresh_head = bool(fresh) or any(is_head[name] and name not in state for name in mine)
    network.load_state_dict({n: state[n] for n in shared if not (is_head[n] and has_fresh_head)}, strict=False)


def _read(path: Path, member: str) -> Mapping[str, Tensor]:
    """Read a state dict. Never unpickles code."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: object = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        problem = str(error).split("\n")[0]
        raise UserInputError(f"member {member}: weights {path} can't be read as a plain state dict ({problem}).") from None
    while isinstance(state, dict) and (inner := next((state[key] for key in WRAPPERS if isinstance(state.get(key), dict)), None)):
        state = inner
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserInputError(f"member {member}: weights {path} hold no state dict.")
    prefix = "module." if all(name.startswith("module.") for name in state) else ""  # of DataParallel
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _bare(name: str) -> str:
    return name.partition(".")[2]


def _refusal(
    spec: MemberSpec, mine: Mapping[str, Tensor], state: Mapping[str, Tensor], differences: tuple[list[str], list[str], list[str]]
) -> str:
    missing, unknown, reshaped = differences
    parts = []
    if missing:
        parts.append(f"it lacks {_listed([f'{_bare(name)} {_shape(mine[name])}' for name in missing])}")
    if unknown:
        parts.append(f"it has {_listed([f'{_bare(name)} {_shape(state[name])}' for name in unknown])}, which the network lacks")
    if reshaped:
        shapes = [f"{_bare(name)} is {_shape(state[name])}, and {_shape(mine[name])} in the network" for name in reshaped]
        parts.append(_listed(shapes))
    hint = " Set `stem: imagenet`, if it is of such a network." if reshaped[:1] == ["trunk.conv1.weight"] else ""
    return f"member {spec.name}: weights {spec.weights} are of another network than {spec.arch}: {'; '.join(parts)}.{hint}"


def _listed(entries: list[str]) -> str:
    more = f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
    return ", ".join(entries[:SHOWN]) + more


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
