"""Whoever follows a fit."""

from __future__ import annotations

Epoch = dict[str, float]


class Watcher:
    """What a fit tells and asks while it runs. This one looks away."""

    def resumed(self, history: list[Epoch]) -> None:
        """Before the first step; `history` is empty in a fresh start."""

    def epoch(self, epoch: int, metrics: Epoch) -> None:
        """After each epoch, from 0; its checkpoint is written."""

    def step(self) -> None:
        """A sign of life after each step."""

    def saved(self) -> None:
        """A checkpoint was written."""

    def note(self, text: str) -> None:
        """Something that people should know."""

    def stop_asked(self) -> bool:
        """True: write a checkpoint at the next step and leave by Stopped."""
        return False
