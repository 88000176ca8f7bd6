"""Draw a few images of each class on one sheet, to see at a glance whether the labels are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workers.data.store import Store
from workers.data.summary import DataSummary

IMAGES = 10  # per class
MOST_CLASSES = 40
INCHES = 0.62  # side of an image


def draw_contact_sheet(store: Store, summary: DataSummary, target: Path) -> str:
    """Write an SVG file with a row of images for each class.

    Args:
        store: The packed data.
        summary: The summary of the data set.
        target: The file.

    Returns:
        A note on omitted classes; "" if there are none.
    """
    from matplotlib.figure import Figure

    from orchestrator.reporting.plots import save_svg

    shown, labels = store.classes[:MOST_CLASSES], np.asarray(store.labels)
    figure = Figure(figsize=(IMAGES * INCHES + 1, len(shown) * (INCHES + 0.3) + 0.2), layout="constrained")
    for index, name in enumerate(shown):
        rows = np.flatnonzero(labels == index)
        chosen = rows[np.linspace(0, len(rows) - 1, min(IMAGES, len(rows))).astype(int)]
        step = store.size + max(1, store.size // 16)  # leaves a white gap between images
        strip = np.full((store.size, IMAGES * step, 3), 255, dtype=np.uint8)
        for number, row in enumerate(chosen.tolist()):
            strip[:, number * step : number * step + store.size] = store.images[row]
        axes = figure.add_subplot(len(shown), 1, index + 1)
        axes.imshow(strip, interpolation="nearest")
        axes.set_axis_off()
        counts = ", ".join(f"{part} {count:,}" for part, count in summary.classes[name].items())
        axes.set_title(f"{name}: {counts}", loc="left", fontsize=8, parse_math=False)
    save_svg(figure, target)
    hidden = len(store.classes) - len(shown)
    return f"the sheet shows the first {MOST_CLASSES} classes, and leaves {hidden} out" if hidden else ""
