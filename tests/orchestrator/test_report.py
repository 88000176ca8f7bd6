"""The report's page: whatever users' folders and files are called stands there as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fusion.results import TestResults as Measured
from orchestrator import sweep as pipeline
from orchestrator.execution.ray_backend import inline_executor
from orchestrator.home import Home
from orchestrator.reporting.report import smallest_difference
from tests.factories import TEAM
from tests.inputs import classes

CLASSES = ("<img src=x onerror=alert(1)>", "$x_$", 'quo"ted')


def test_names_of_classes_and_files_are_text(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for image in range(20):
            pixels = draw.integers(0, 90, (8, 8, 3)) + 80 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f'<b>"{image}.png')
    data = "data: {dataset: folder, root: images, image_size: 8, folds: 0}\n"
    (tmp_path / "team.yaml").write_text(TEAM.replace("data: {dataset: digits, folds: 2}\n", data))
    result = pipeline.run_sweep(tmp_path / "team.yaml", pipeline.SweepOptions(Home(tmp_path / "home"), inline_executor))
    assert result.exit_code == 0
    page = (tmp_path / "home/sweeps/tiny/report.html").read_text()
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<img src=x" not in page
    assert "<b>&#34;" not in page
    assert "&lt;b&gt;" in page


def test_the_smallest_difference_is_said_where_no_fusion_is_recommended() -> None:
    candidates = {name: Measured(detectable=value) for name, value in {"a": 0.0, "b": 0.02, "vote": 0.01}.items()}
    assert smallest_difference(candidates, "a", "a") == 0.02
    assert smallest_difference(candidates, "vote", "a") == 0.01
    assert smallest_difference({"a": Measured()}, "a", "a") is None


def test_the_plots_keep_class_names_in_any_script_as_text(tmp_path: Path) -> None:
    """A browser draws them with its own fonts. pytest turns matplotlib's warning of a missing letter into an error."""
    names = ["\u8682\u8681", "\u871c\u8702", "cr\u00e8me"]
    for hue, name in enumerate(names):
        classes(tmp_path / "images", {name: 12 + hue})
    text = TEAM.replace("data: {dataset: digits, folds: 2}\n", "data: {dataset: folder, root: images, image_size: 8, folds: 0}\n")
    (tmp_path / "team.yaml").write_text(text.replace("fusion: [vote, stack]", "fusion: [vote]"))
    result = pipeline.run_sweep(tmp_path / "team.yaml", pipeline.SweepOptions(Home(tmp_path / "home"), inline_executor))
    assert result.summary.data.classes.keys() == set(names)
    for plot in ("classes", "confusion"):
        drawn = (tmp_path / f"home/sweeps/tiny/{plot}.svg").read_text()
        assert all(name in drawn for name in names), plot
