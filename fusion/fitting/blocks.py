"""Rows that belong to the same folds, as blocks: what is computed of a block serves all of its folds, and no other one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusion.predictions import Labels

Splits = Sequence[tuple[Labels, Labels]]  # the fitted and the held-out rows of each fold


@dataclass(frozen=True)
class Block:
    """Neighbouring rows that belong to the same folds.

    Attributes:
        rows: The rows, in the order that `blocks_of` returns.
        fitted_by: Numbers of the folds that are fitted on them.
        held_out_by: Numbers of the folds that hold them out.
    """

    rows: slice
    fitted_by: Labels
    held_out_by: Labels


def blocks_of(splits: Splits, rows: int) -> tuple[Labels, list[Block]]:
    """Return an order of the rows, (n,), in which those of the same folds are neighbours, and the blocks of this order.

    Rows that have such an order already keep it.

    Args:
        splits: The folds.
        rows: Number of rows.
    """
    belongs = np.zeros((2, len(splits), rows), dtype=bool)
    for fold, sides in enumerate(splits):
        for side, numbers in enumerate(sides):
            belongs[side, fold, numbers] = True
    _, first, kind = np.unique(belongs.reshape(-1, rows), axis=1, return_index=True, return_inverse=True)
    first_of = first[np.ravel(kind)]  # the first row of the same kind, for each row
    order = np.argsort(first_of, kind="stable")
    blocks, start = list[Block](), 0
    for row, count in zip(*np.unique(first_of, return_counts=True), strict=True):
        fitted, held_out = (np.flatnonzero(belongs[side, :, row]) for side in (0, 1))
        blocks.append(Block(slice(start, start + int(count)), fitted, held_out))
        start += int(count)
    return order, blocks
