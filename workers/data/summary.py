"""The summary of a data set, for people and scripts. Fast to import; workers/data/inspection.py creates it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class DataSummary(BaseModel):
    """Summary of a packed and split data set.

    Attributes:
        version: Version of this format.
        rows: Number of rows of each part: *fit*, *fuse* and *test*.
        classes: Number of rows of each part, by class.
        origins: Origin of the rows of each part, in words.
        image_sizes: Width and height of the smallest, the median and the largest image; empty if there are no image files.
        size: Side of the packed images in pixels.
        notes: Sentences on how the data set was read.
        warnings: Sentences on possible problems.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: Literal[1] = 1
    rows: dict[str, int]
    classes: dict[str, dict[str, int]]
    origins: dict[str, str]
    image_sizes: list[tuple[int, int]]
    size: int
    notes: list[str]
    warnings: list[str]

    def facts(self) -> list[str]:
        """Describe the data set, one line per fact."""
        counts = ", ".join(f"{part} {count:,}" for part, count in self.rows.items())
        facts = [f"{len(self.classes):,} classes, {sum(self.rows.values()):,} images ({counts})"]
        facts += [f"{part} is {origin}" for part, origin in self.origins.items()]
        if self.image_sizes:
            smallest, median, largest = (f"{width} x {height}" for width, height in self.image_sizes)
            sizes = f"of {median} pixels" if smallest == largest else f"from {smallest} to {largest} pixels, the median {median}"
            facts.append(f"the images are {sizes}; they are trained on at {self.size} x {self.size}")
        return [*facts, *self.notes]

    def lines(self) -> list[str]:
        """Return the facts and the warnings as lines for the terminal."""
        return [*(f"data: {fact}" for fact in self.facts()), *(f"warning: {warning}" for warning in self.warnings)]
