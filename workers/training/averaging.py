"""Average weights during training: for `train.ema` (the average is the result) and for a member's `average`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from pydantic import JsonValue
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from workers.config.recipe import Ema, Swa
from workers.config.specs import MemberSpec, TrainSpec
from workers.models.network import Network

EMA, SECOND_MEMBER = "ema", "average"  # names of the averages in checkpoints


class WeightAverage:
    """Average of a network's weights: over all steps (EMA) or over the last epochs (SWA).

    Args:
        network: The network being trained.
        rule: How to average.
        epochs: Number of epochs in the whole training.
    """

    def __init__(self, network: Network, rule: Ema | Swa, epochs: int) -> None:
        self.rule = rule
        self.first = epochs - max(1, round(epochs * rule.last)) if isinstance(rule, Swa) else 0
        update = get_ema_multi_avg_fn(rule.decay) if isinstance(rule, Ema) else None  # type: ignore[no-untyped-call]
        self.model = AveragedModel(network, multi_avg_fn=update, use_buffers=isinstance(rule, Ema))

    @property
    def network(self) -> Network:
        """The network with averaged weights."""
        return self.model.module  # type: ignore[return-value]

    def on_step_end(self, network: Network) -> None:
        """Update an EMA after an optimizer step."""
        if isinstance(self.rule, Ema):
            self.model.update_parameters(network)

    def on_epoch_end(self, network: Network, epochs_done: int) -> None:
        """Update an SWA after an epoch, if it is among the last ones."""
        if isinstance(self.rule, Swa) and epochs_done > self.first:
            self.model.update_parameters(network)

    def update_batchnorm_stats(self, images: Iterable[Tensor], device: torch.device) -> None:
        """Recompute batch norm statistics from images (n, 3, H, W). Only SWA needs it: EMA averages the buffers too."""
        if isinstance(self.rule, Swa):
            update_bn(images, self.network, device)


class WeightAverages:
    """The weight averages of one training: `train.ema`'s and the second member's.

    Args:
        network: The network being trained.
        recipe: The recipe, with the second member's averaging rule.
        spec: Settings shared by all trainings.
        has_second_member: Whether a second member is still missing.
    """

    def __init__(self, network: Network, recipe: MemberSpec, spec: TrainSpec, has_second_member: bool) -> None:
        self.by_name: dict[str, WeightAverage] = {}
        self.rule = recipe.average if has_second_member else None
        if spec.ema:
            self.by_name[EMA] = WeightAverage(network, Ema(decay=spec.ema), spec.epochs)
        if self.rule:
            self.by_name[SECOND_MEMBER] = WeightAverage(network, self.rule, spec.epochs)

    @property
    def settings(self) -> dict[str, JsonValue] | None:
        """The second member's averaging rule, as recorded in checkpoints; None without a second member."""
        return self.rule.model_dump(mode="json") if self.rule else None

    def on_step_end(self, network: Network) -> None:
        """Update all averages after an optimizer step."""
        for average in self.by_name.values():
            average.on_step_end(network)

    def on_epoch_end(self, network: Network, epochs_done: int) -> None:
        """Update all averages after an epoch."""
        for average in self.by_name.values():
            average.on_epoch_end(network, epochs_done)

    def evaluated(self, network: Network) -> Network:
        """Return the network to evaluate: the average of `train.ema` if set, else the network itself."""
        return self.by_name[EMA].network if EMA in self.by_name else network

    def second_member(self, images: Iterable[Tensor], device: torch.device) -> Network:
        """Return the second member's network, with batch norm statistics from images (n, 3, H, W)."""
        self.by_name[SECOND_MEMBER].update_batchnorm_stats(images, device)
        return self.by_name[SECOND_MEMBER].network

    def states(self) -> dict[str, dict[str, Tensor]]:
        """Return each average's tensors, by the average's name."""
        return {name: average.model.state_dict() for name, average in self.by_name.items()}

    def load_states(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore what `states` returned. Raises KeyError or RuntimeError if it does not fit these averages."""
        for name, average in self.by_name.items():
            average.model.load_state_dict(states[name])
