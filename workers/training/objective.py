"""The loss that a training minimises: of mixed labels, and for a student of the distance to its teacher."""

from __future__ import annotations

from typing import cast

from torch import Tensor
from torch.nn import functional as F

from workers.config.extensions import Labels, is_reference, load_reference
from workers.config.specs import MemberSpec, StudentSpec
from workers.training.distillation import distillation_loss


class Objective:
    """The loss of a micro-batch.

    Args:
        recipe: The recipe.
    """

    def __init__(self, recipe: MemberSpec) -> None:
        self.recipe = recipe
        self.own = load_reference(recipe.loss) if is_reference(recipe.loss) else None

    def __call__(self, logits: Tensor, labels: Labels, part: slice, taught: Tensor | None = None) -> Tensor:
        """Return the mean loss.

        Args:
            logits: (n, C) of the network.
            labels: The labels of the whole batch, those that were mixed in, and the share of the first.
            part: The rows of the batch that `logits` are of.
            taught: (n, C) probabilities of the teacher, for a student.
        """
        loss = self._mixed(logits, labels, part)
        if taught is None or not isinstance(self.recipe, StudentSpec):
            return loss
        soft = self.recipe.soft
        return soft * distillation_loss(logits, taught, self.recipe.temperature) + (1 - soft) * loss

    def _mixed(self, logits: Tensor, labels: Labels, part: slice) -> Tensor:
        first, second, share = labels
        loss = self.loss(logits, first[part])
        return loss if share == 1 else share * loss + (1 - share) * self.loss(logits, second[part])

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of logits (n, C) and labels (n,)."""
        if self.own is not None:
            return cast(Tensor, self.own(logits, labels))
        return F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
