"""Bad images, changed data and artifacts that don't fit each other, by the real command."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.factories import bad_tar, huge_png, not_utf8, picture, symlink_loop, too_few, tree, truncated
from tests.faults.place import TEAM, Place, rewrite
from workers.storage.artifacts import MemberArtifact
from workers.storage.manifest import Manifest, read_manifest

FOLDER = TEAM.replace("dataset: digits", "dataset: folder, root: images, image_size: 8, fuse_fraction: 0.2")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (truncated, "can't be decoded"),
        (huge_png, "pixels"),
        (symlink_loop, "a loop"),
        (not_utf8, "not UTF-8"),
        (too_few, "at least 3"),
    ],
)
def test_a_bad_folder_is_refused_before_anything_starts(make: Callable[[Path], None], expected: str, place: Place) -> None:
    make(place.folder / "images")
    _refused(place, FOLDER, expected)


def test_an_archive_that_reaches_out_of_its_folder_is_refused(place: Place) -> None:
    bad_tar(place.folder / "images.tar.gz", "train/../../evil.png")
    _refused(place, FOLDER.replace("root: images", "root: images.tar.gz"), "points outside")


def test_a_class_missing_from_a_fold_is_refused(place: Place) -> None:
    tree(place.folder / "images")
    text = FOLDER.replace("folds: 0", "folds: 11").replace("fusion: [vote]", "fusion: [vote, stack]")
    _refused(place, text, "11 folds, but the largest class has")


def _refused(place: Place, text: str, expected: str) -> None:
    place.write(text)
    before = place.disk()
    place.sweep("--inline", code=2)
    assert expected in place.said()
    assert place.disk() == before


def test_changed_data_is_told_and_trained_on(place: Place) -> None:
    tree(place.folder / "images")
    place.write(FOLDER)
    first = place.sweep("--inline")
    (place.folder / "images/train/cat/0.png").write_bytes(picture(99))
    second = place.sweep("--inline")
    assert "changed since the last run: data content: " in place.said()
    assert (second["trained"], second["reused"]) == (2, 0)
    assert second["members"]["a"]["weights_sha256"] != first["members"]["a"]["weights_sha256"]


def test_members_that_count_the_classes_in_another_order_are_fused_by_name(place: Place) -> None:
    before = place.sweep("--inline")
    _turn_classes_round(place.fits()["b"] / "fit")
    again = place.command("fuse", "tiny", "--home", "home", "--json")
    for name in ("b", "vote"):
        scores = {**before["members"], **before["fusions"]}[name]["test"]
        assert again["candidates"][name]["test"]["nll"] == pytest.approx(scores["nll"], abs=1e-6)
    place.command("export", "tiny", "--home", "home", "--method", "vote")  # refuses where the file's answers are not the fusion's


def _turn_classes_round(fit: Path) -> None:
    """The same member, had it been trained with its classes the other way round."""
    files, classes = dict(read_manifest(fit, Manifest).files), MemberArtifact(fit.parent).manifest().classes
    for file in ("weights.safetensors", "outputs.safetensors"):
        tensors = load_file(fit / file)
        for name in tensors:
            if name.startswith("head."):
                tensors[name] = tensors[name].flip(0).contiguous()
            elif name.endswith("logits"):
                tensors[name] = tensors[name].flip(1).contiguous()
        save_file(tensors, fit / file)
        files[file] = hashlib.sha256((fit / file).read_bytes()).hexdigest()
    rewrite(fit, files=files, classes=classes[::-1])


def test_an_artifact_of_other_classes_is_not_fused(place: Place) -> None:
    place.sweep("--inline")
    rewrite(place.fits()["b"] / "fit", classes=[f"x{i}" for i in range(10)])
    place.command("fuse", "tiny", "--home", "home", code=1)
    assert "member b knows other classes than the data" in place.said()
