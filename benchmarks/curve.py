"""Learning curves of kept fits as one picture for the README: `python -m benchmarks.curve`; docs/images/curves.png.

The 3x3 stem (`CONCLAVE_TABLE=stem python -m benchmarks.table fit stem` makes it) beside torchvision's stem (`plain` of the
accuracy table): accuracy on the *fuse* rows by epoch, and by hours of one core, by each fit's median epoch.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.kept import KeptFit

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "images" / "curves.png"
FITS = {"3x3 stem": "stem/stem", "torchvision's stem": "table/plain"}


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    plots: list[Any] = list(axes)
    for name, fit in FITS.items():
        epochs = KeptFit(HERE / "results" / f"{fit}.npz").record["history"]
        accuracy = [100 * epoch["fuse/accuracy"] for epoch in epochs]
        typical = median(epoch["seconds"] for epoch in epochs)  # an epoch that shared its core counts no more than the others
        hours = typical / 3600 * np.arange(1, len(epochs) + 1)
        plots[0].plot(range(1, len(epochs) + 1), accuracy, marker=".", label=f"{name}: {accuracy[-1]:.1f} %")
        plots[1].plot(hours, accuracy, marker=".")
        print(f"{name}: {len(epochs)} epochs, {hours[-1]:.2f} h, {accuracy[-1]:.2f} % of the fuse rows")
    plots[0].set(xlabel="epoch", ylabel="accuracy on fuse, %")
    plots[1].set(xlabel="hours of one core")
    plots[0].legend(frameon=False, loc="lower right")
    for plot in plots:
        plot.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
