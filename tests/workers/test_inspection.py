"""The data summary: what it counts, where each part came from, and what it warns of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.inputs import classes, picture
from workers.config.specs import DataSpec
from workers.data.duplicates import find_equal, find_similar, perceptual_hashes
from workers.data.inspection import inspect_data
from workers.data.summary import DataSummary
from workers.errors import UserInputError


def inspected(root: Path, **keys: object) -> DataSummary:
    given = {"dataset": "folder", "root": root, "image_size": 8, "folds": 0, "fuse_fraction": 0.2, **keys}
    return inspect_data(DataSpec.model_validate(given), 0, root.parent / "home")[1]


def test_it_counts_and_says_where_each_part_came_from(tmp_path: Path) -> None:
    root = classes(tmp_path / "images", {"train/cat": 20, "train/dog": 20})
    for hue, name in enumerate(("cat", "dog")):
        (root / "validation" / name).mkdir(parents=True)
        for i in range(6):
            picture(hue, 100 + i, (32, 24)).save(root / "validation" / name / f"{i}.png")
    found = inspected(root)
    assert found.rows == {"fit": 32, "fuse": 8, "test": 12}
    assert found.classes == {"cat": {"fit": 16, "fuse": 4, "test": 6}, "dog": {"fit": 16, "fuse": 4, "test": 6}}
    assert found.origins["test"] == "the folder validation"
    assert found.origins["fuse"] == "20% of the training rows, drawn by the team's seed"
    assert found.image_sizes == [(16, 16), (16, 16), (24, 32)]
    assert found.warnings == []
    assert any("stands in for the test rows" in line for line in found.lines())


def test_equal_and_nearly_equal_images_of_two_parts_are_counted(tmp_path: Path) -> None:
    root = classes(tmp_path / "images", {"train/cat": 20, "train/dog": 20})
    (root / "test" / "cat").mkdir(parents=True)
    for i in range(8):
        picture(7, 100 + i).save(root / "test" / "cat" / f"{i}.png")
    for i in range(3):
        (root / "test" / "cat" / f"equal{i}.png").write_bytes((root / "train" / "cat" / f"{i:03d}.png").read_bytes())
    pixels = np.asarray(picture(0, 9)).copy()
    pixels[0, 0] += 5
    Image.fromarray(pixels).save(root / "test" / "cat" / "nearly.png")
    equal, nearly = [text for text in inspected(root).warnings if "another part" in text and "test images" in text]
    assert equal.startswith("3 of 12 test images are equal to an image of another part")
    assert "test/cat/equal0.png and train/cat/000.png" in equal
    assert nearly.startswith("1 of 12 test images is nearly equal")
    with pytest.raises(UserInputError, match="duplicates: 3 of 12 test images are equal"):
        inspected(root, duplicates="error")


def test_one_image_under_two_labels_is_named(tmp_path: Path) -> None:
    root = classes(tmp_path / "images", {"cat": 20, "dog": 20})
    for i in range(2):
        (root / "dog" / f"copy{i}.png").write_bytes((root / "cat" / f"{i:03d}.png").read_bytes())
    assert any(
        "4 images are equal but have different labels: cat/000.png and dog/copy0.png" in w for w in inspected(root).warnings
    )


def test_few_images_and_imbalance_are_said_with_numbers(tmp_path: Path) -> None:
    root = classes(tmp_path / "images", {"common": 120, "rare": 6})
    warnings = inspected(root, folds=5).warnings
    assert any("common has 120 images and rare has 6" in text and "95.2%" in text for text in warnings)
    assert any("fewer fit images than the 5 folds in rare (" in text for text in warnings)
    assert any("fewer than 5 test images in rare (1)" in text for text in warnings)


def test_a_hash_is_equal_for_what_looks_the_same_and_pairs_are_found() -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(20, 230, (40, 32, 32, 3)).astype(np.uint8)
    images[30] = images[3]
    images[31] = images[4] + 1
    looks = perceptual_hashes(images)
    assert len(set(looks.tolist())) == 38
    equal = find_equal(np.stack([looks, images.reshape(40, -1).sum(1).astype(np.uint64)], axis=1))
    assert equal.tolist() == [[3, 30]]
    similar = find_similar(looks, images, equal)
    assert similar.tolist() == [[4, 31]]
