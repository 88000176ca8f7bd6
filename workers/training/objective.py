"""The training loss: for mixed labels, row weights, and a student's distance to its teacher."""

from __future__ import annotations

from typing import cast

from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from workers.config.extensions import Labels, is_reference, load_reference
from workers.config.specs import MemberSpec, StudentSpec
from workers.errors import UserInputError
from workers.training.distillation import distillation_loss

NO_OTHERS = "An augmentation mixes images without saying which (Labels.other); rows with weights need that."


class Objective:
    """The loss of a micro-batch.

    Args:
        recipe: The recipe.
    """

    def __init__(self, recipe: MemberSpec) -> None:
        self.recipe = recipe
        self.own = load_reference(recipe.loss) if is_reference(recipe.loss) else None

    def __call__(
        self, logits: Tensor, labels: Labels, part: slice, taught: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Return the mean loss.

        Args:
            logits: (n, C) of the network.
            labels: The labels of the whole batch.
            part: The rows of the batch that `logits` belong to.
            taught: (n, C) probabilities of the teacher, for a student.
            weights: Loss weight of each row of the whole batch; None for equal weights.
        """
        loss = self._mixed(logits, labels, part) if weights is None else self._weighted(logits, labels, part, weights)
        if taught is None or not isinstance(self.recipe, StudentSpec):
            return loss
        soft = self.recipe.soft
        own = None if weights is None else weights[part]
        return soft * distillation_loss(logits, taught, self.recipe.temperature, own) + (1 - soft) * loss

    def _mixed(self, logits: Tensor, labels: Labels, part: slice) -> Tensor:
        loss = self.loss(logits, labels.first[part])
        return (
            loss if _is_all(labels.share) else labels.share * loss + (1 - labels.share) * self.loss(logits, labels.second[part])
        )

    def _weighted(self, logits: Tensor, labels: Labels, part: slice, weights: Tensor) -> Tensor:
        """Return the mean weighted loss. A mixed image's loss for each label has the weight of that label's image."""
        loss = (self.losses(logits, labels.first[part]) * weights[part]).mean()
        if _is_all(labels.share):
            return loss
        if labels.other is None:
            raise UserInputError(NO_OTHERS)
        mixed_in = (self.losses(logits, labels.second[part]) * weights[labels.other][part]).mean()
        return labels.share * loss + (1 - labels.share) * mixed_in

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of logits (n, C) and labels (n,)."""
        if self.own is not None:
            return cast(Tensor, self.own(logits, labels))
        return F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each row: (n,)."""
        if (own := self.own) is not None:
            try:
                return cast(Tensor, vmap(lambda z, label: own(z[None], label[None]))(logits, labels))
            except (RuntimeError, ValueError) as error:
                text = f"loss {self.recipe.loss}: rows with weights need it row by row, by torch.func.vmap ({error})."
                raise UserInputError(text) from error
        return F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing, reduction="none")


def _is_all(share: float | Tensor) -> bool:
    """Return True if nothing is mixed in. Never reads a tensor's value: that would synchronize with the GPU."""
    return not isinstance(share, Tensor) and share == 1
