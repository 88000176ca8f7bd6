"""Data sets as people have them are read right, or refused with a sentence; never read wrongly without a word."""

from __future__ import annotations

import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusion.serving.entries import list_entries
from fusion.serving.predictor import Predictor
from tests.factories import snapshot
from tests.inputs import HEIC, bursts, classes, flat, macos_zip, pack, picture, refused, saved, spec, tar, write_table
from workers.config.specs import DataSpec
from workers.data.images import MAX_PIXELS, UnreadableImageError, decode, is_image, read_image
from workers.data.packing import pack_data
from workers.data.splits import get_split
from workers.data.store import Store
from workers.errors import UserInputError

TWO = {"cat": 12, "dog": 12}


def per_class(store: Store) -> dict[str, int]:
    return dict(Counter(store.classes[label] for label in store.labels.tolist()))


def parts(root: Path, **counts: int) -> Path:
    """A folder for each part, with two classes of so many pictures; no picture is in two parts."""
    for number, (part, count) in enumerate(counts.items()):
        for hue, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                picture(hue, 100 * number + i).save(root / part / name / f"{i}.png")
    return root


@pytest.mark.parametrize(("train", "other"), [("train", "validation"), ("Training", "Dev"), ("TRAIN", "valid"), ("train", "val")])
def test_the_usual_names_of_parts_are_known_in_any_case(train: str, other: str, tmp_path: Path) -> None:
    store = pack(parts(tmp_path / "images", **{train: 12, other: 4}))
    assert store.classes == ["cat", "dog"]
    assert store.tested.sum() == 8, "validation stands in for the test"
    assert any(f"{other} stands in for the test rows" in note for note in store.notes())
    assert store.record.origins == {"train": f"the folder {train}", "test": f"the folder {other}"}


@pytest.mark.parametrize("test", ["test", "Testing", "eval"])
def test_validation_beside_a_test_is_fuse_or_left_out_with_a_note(test: str, tmp_path: Path) -> None:
    root = parts(tmp_path / "images", **{"train": 12, "valid": 5, test: 4})
    left_out = pack(root)
    assert (len(left_out.labels), left_out.tested.sum(), left_out.validation.sum()) == (32, 8, 0)
    assert any("valid is left out" in note and "version: 2" in note for note in left_out.notes())
    used = pack(root, validation="fuse")
    assert (len(used.labels), used.tested.sum(), used.validation.sum()) == (42, 8, 10)
    split = get_split(used, spec(root, validation="fuse"), 0)
    assert {used.ids[row].split("/")[0] for row in split.fuse.tolist()} == {"valid"}
    assert {used.ids[row].split("/")[0] for row in split.fit.tolist()} == {"train"}
    assert used.digest != left_out.digest


def test_folders_around_everything_are_looked_through(tmp_path: Path) -> None:
    plain = pack(parts(tmp_path / "images", train=12, test=4))
    wrapped = pack(parts(tmp_path / "more" / "a" / "b" / "c", train=12, test=4).parents[1])
    assert wrapped.ids == plain.ids
    assert wrapped.digest == plain.digest
    classes(tmp_path / "other" / "x" / "y", TWO)
    assert per_class(pack(tmp_path / "other")) == TWO


def test_a_folder_beside_a_part_is_refused_and_never_a_class(tmp_path: Path) -> None:
    root = parts(tmp_path / "images", train=12, test=4)
    flat(root / "extra", 3)
    assert "the folder extra lies beside" in refused(root)


def test_images_without_class_folders_are_left_out_with_a_note(tmp_path: Path) -> None:
    root = parts(tmp_path / "images", train=12)
    flat(root / "test", 5)
    store = pack(root)
    assert (store.classes, len(store.labels), store.tested.sum()) == (["cat", "dog"], 24, 0)
    assert any("test holds 5 images in no class folders" in note and "predict" in note for note in store.notes())


def test_class_folders_are_read_with_all_that_is_below_them(tmp_path: Path) -> None:
    """Whether all, some or none of the classes have folders of their own."""
    root = classes(tmp_path / "images", {"cat/indoors": 4, "cat/outdoors": 5, "dog": 9, "horse/far/away": 6})
    assert per_class(pack(root)) == {"cat": 9, "dog": 9, "horse": 6}


def test_a_class_without_an_image_is_refused(tmp_path: Path) -> None:
    root = classes(tmp_path / "images", TWO)
    (root / "horse").mkdir()
    (root / "horse" / "1.xcf").write_bytes(b"gimp xcf")
    assert "none of the 1 files in the folder horse is an image" in refused(root)
    (root / "horse" / "1.png").write_bytes(b"")
    assert "no image of class 'horse' can be read" in refused(root, max_bad=5)


def test_a_class_of_leftovers_alone_is_refused(tmp_path: Path) -> None:
    root = classes(tmp_path / "images", TWO)
    (root / "horse").mkdir()
    (root / "horse" / "._1.png").write_bytes(b"x")
    assert "none of the 1 files in the folder horse is an image" in refused(root)


def test_a_folder_around_the_classes_of_a_part_is_looked_through(tmp_path: Path) -> None:
    root = classes(tmp_path / "data", {"train/images/cat": 12, "train/images/dog": 12})
    for hue, name in enumerate(("cat", "dog")):
        (root / "test" / name).mkdir(parents=True)
        picture(hue, 99).save(root / "test" / name / "1.png")
    store = pack(root)
    assert per_class(store) == {"cat": 13, "dog": 13}
    assert store.tested.sum() == 2


@pytest.mark.parametrize("leftover", [".ipynb_checkpoints", "@eaDir", "__MACOSX", ".Trash-1000", "lost+found", "$RECYCLE.BIN"])
def test_what_systems_and_editors_leave_is_no_data(leftover: str, tmp_path: Path) -> None:
    root = classes(tmp_path / "images", TWO)
    classes(root / leftover, {"": 4})
    classes(root / "dog" / leftover, {"": 3})
    for name in ("Thumbs.db", "desktop.ini", "._001.png", ".DS_Store"):
        (root / "cat" / name).write_bytes(b"x")
    (root / "notes.txt").write_text("x")
    store = pack(root)
    assert per_class(store) == TWO
    assert store.record.skipped == 12
    assert any(note.startswith("skipped 11 files that are hidden, or left by an editor or a system") for note in store.notes())
    assert any("1 file with the extension .txt, for example notes.txt" in note for note in store.notes())


def test_a_zip_of_macos_and_a_tar_with_absolute_names_are_the_data_themselves(tmp_path: Path) -> None:
    classes(tmp_path / "images" / "pets", TWO)
    stores = [
        pack(tmp_path / "images"),
        pack(macos_zip(tmp_path / "images", tmp_path / "pets.zip")),
        pack(tar(tmp_path / "images", tmp_path / "a.tar", "/data/")),
        pack(tar(tmp_path / "images", tmp_path / "a.tgz", "//data/", "w:gz")),
    ]
    assert all(store.digest == stores[0].digest for store in stores)
    assert all(per_class(store) == TWO for store in stores)


def test_names_in_one_and_in_two_characters_are_the_same_class(tmp_path: Path) -> None:
    """macOS writes é as e and an accent, other systems as one character."""
    classes(tmp_path / "images" / "train", {unicodedata.normalize("NFD", "crème"): 12, "tea": 12})
    classes(tmp_path / "images" / "test", {unicodedata.normalize("NFC", "crème"): 3, "tea": 3})
    for i, path in enumerate(sorted((tmp_path / "images" / "test").rglob("*.png"))):
        picture(i, 500 + i).save(path)
    assert pack(tmp_path / "images").classes == ["crème", "tea"]


@pytest.mark.parametrize(
    ("name", "expected"), [("a/b.JPG", True), ("jpg", False), (".jpg", False), ("a.png/notes", False), ("x.tar.gif", True)]
)
def test_an_image_is_known_by_its_extension(name: str, expected: bool) -> None:
    assert is_image(name) is expected


def test_photos_of_phones_are_decoded(tmp_path: Path) -> None:
    heic = read_image(HEIC, 16)
    assert (heic.width, heic.height) == (24, 16)
    red, green = heic.pixels[..., 0].astype(int), heic.pixels[..., 1].astype(int)
    assert (red[:, -1] - red[:, 0] > 100).all(), "red grows to the right"
    assert (green[-1] - green[0] > 100).all(), "green grows downwards"
    (tmp_path / "photo.png").write_bytes(HEIC)  # whatever it is called
    assert np.array_equal(decode(tmp_path / "photo.png", 16), heic.pixels)
    smooth = Image.fromarray(np.tile(np.linspace(0, 255, 16).astype(np.uint8)[None, :, None], (16, 1, 3)))
    assert np.abs(decode(saved(smooth, "AVIF", quality=95), 16).astype(int) - np.asarray(smooth)).max() < 12


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".avif", ".heic"])
def test_all_their_names_are_known(suffix: str, tmp_path: Path) -> None:
    root = classes(tmp_path / "images", TWO)
    for path in (root / "dog").iterdir():
        path.rename(path.with_suffix(suffix))
    assert per_class(pack(root)) == TWO


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        content = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        red, _, blue = decode(content, 8).reshape(-1, 3).mean(0)
        assert red > 200 > 50 > blue, kind


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"<!doctype html><title>404</title>", "is an HTML page"),
        (b"\n <HTML><body>", "is an HTML page"),
        (b"%PDF-1.7", "is a PDF document"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS has not fetched"),
        (b"\x00\x01\x02", "no image format that is known"),
    ],
)
def test_a_file_that_is_no_image_is_called_what_it_is(content: bytes, why: str, tmp_path: Path) -> None:
    root = classes(tmp_path / "images", TWO)
    (root / "cat" / "000.png").write_bytes(content)
    text = refused(root)
    assert why in text
    assert "cat/000.png" in text
    assert "0x" not in text
    with pytest.raises(UnreadableImageError, match=why):
        decode(content, 8)


def test_a_rare_class_is_in_every_part(tmp_path: Path) -> None:
    root = classes(tmp_path / "images", {"common": 200, "rare": 3})
    for folds in (0, 2):
        store = pack(root, fuse_fraction=0.1, folds=folds)
        for seed in range(5):
            split = get_split(store, spec(root, fuse_fraction=0.1, folds=folds), seed)
            for part in (split.fit, split.fuse, split.test):
                assert set(store.labels[part].tolist()) == {0, 1}
            assert len(split.fit) + len(split.fuse) + len(split.test) == 203


def test_a_share_that_is_too_small_is_answered_with_one_that_works(tmp_path: Path) -> None:
    root = classes(tmp_path / "images", {f"c{i:02d}": 10 for i in range(20)})
    store = pack(root)
    with pytest.raises(
        UserInputError, match=r"data.fuse_fraction: 0.1 of 160 images .* A share from 0.125 to 0.875 works"
    ) as refusal:
        get_split(store, spec(root, fuse_fraction=0.1), 0)
    assert "n_splits" not in str(refusal.value)
    assert len(get_split(store, spec(root, fuse_fraction=0.125), 0).fuse) == 20


def manifest(table: Path, root: Path | None = None, **keys: object) -> DataSpec:
    given = {"dataset": "manifest", "root": root, "manifest": table, "image_size": 8, "folds": 3, "fuse_fraction": 0.2, **keys}
    return DataSpec.model_validate(given)


def nearest_accuracy(store: Store, fit: np.ndarray, test: np.ndarray) -> float:
    """The accuracy of the label of the nearest picture."""
    flat_images = store.images.reshape(len(store.labels), -1).astype(float)
    distances = ((flat_images[test][:, None] - flat_images[fit][None]) ** 2).sum(2)
    return float((store.labels[fit][distances.argmin(1)] == store.labels[test]).mean())


def test_no_group_is_on_two_sides_and_the_accuracy_is_no_lie(tmp_path: Path) -> None:
    """The label says nothing of the picture. A split by rows finds nearly the same picture in the training rows all the same."""
    table = bursts(tmp_path / "images")
    given = manifest(table)
    store = pack_data(given, tmp_path / "home")
    by_rows = pack_data(spec(tmp_path / "images"), tmp_path / "home")
    honest, lie = [], []
    for seed in range(5):
        split = get_split(store, given, seed)
        groups = [set(store.groups[part].tolist()) for part in (split.fit, split.fuse, split.test)]  # type: ignore[index]
        assert sum(map(len, groups)) == len(set.union(*groups)) == 12
        for fold in range(3):
            inside = split.folds == fold
            assert not set(store.groups[split.fit[inside]]) & set(store.groups[split.fit[~inside]])  # type: ignore[index]
        for part in (split.fit, split.fuse, split.test):
            assert set(store.labels[part].tolist()) == {0, 1}
        honest.append(nearest_accuracy(store, split.fit, split.test))
        rows = get_split(by_rows, spec(tmp_path / "images", folds=0), seed)
        lie.append(nearest_accuracy(by_rows, rows.fit, rows.test))
    assert np.mean(lie) > 0.95
    assert np.mean(honest) < 0.75


def test_a_manifest_says_the_labels_the_parts_and_the_folds(tmp_path: Path) -> None:
    root = flat(tmp_path / "images", 40)
    lines = ["file;species;split;fold"]
    splits = ["train"] * 24 + ["valid"] * 8 + ["Test"] * 8
    lines += [
        f"./{i:03d}.png;{'owl' if i % 2 else 'crow'};{split};{i // 2 % 3 if i < 24 else ''}" for i, split in enumerate(splits)
    ]
    table = write_table(tmp_path / "labels.csv", lines)
    given = manifest(table, root, columns={"path": "file", "label": "species"}, validation="fuse")
    store = pack_data(given, tmp_path / "home")
    assert per_class(store) == {"crow": 20, "owl": 20}
    split = get_split(store, given, 0)
    assert [len(part) for part in (split.fit, split.fuse, split.test)] == [24, 8, 8]
    assert split.folds.tolist() == [i // 2 % 3 for i in range(24)]
    without = pack_data(given.model_copy(update={"validation": None}), tmp_path / "home")
    assert len(without.labels) == 32
    assert any("the split val of labels.csv is left out" in note for note in without.notes())


def test_a_parquet_file_says_the_same_as_a_csv_file(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    root = flat(tmp_path / "images", 24)
    rows = [{"path": f"{i:03d}.png", "label": "owl" if i % 2 else "crow", "group": f"g{i // 2}"} for i in range(24)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    lines = ["path,label,group,weight", *(f"{row['path']},{row['label']},{row['group']},2" for row in rows)]
    stores = [
        pack_data(manifest(table, root), tmp_path / "home")
        for table in (tmp_path / "a.parquet", write_table(tmp_path / "a.csv", lines))
    ]
    assert stores[0].digest == stores[1].digest
    assert stores[1].weights is None, "equal weights say nothing"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda lines: [lines[0].replace("label", "labels"), *lines[1:]],
            r"no column 'label' for .*; the columns are path, labels",
        ),
        (lambda lines: [*lines, "900.png,owl"], r"in row 26, the file is not there, such as 900.png"),
        (lambda lines: [*lines, f"{'a' * 300}.png,owl"], r"in row 26, the file is not there"),
        (lambda lines: [*lines, "900.png,owl", "../x.png,owl"], r"in row 27, the file is not below"),
        (
            lambda lines: [*lines, "../x.png,owl"],
            r"in row 26, the file is not below .*images, such as ../x.png .* Give data.root",
        ),
        (lambda lines: [*lines[:2], "001,owl", *lines[3:]], r"in row 3, the file .* There is 001.png: the extension belongs"),
        (lambda lines: [*lines[:3], "002.png, ", "003.png,", *lines[5:]], r"in rows 4, 5, the label is missing"),
        (lambda lines: [*lines, lines[4], "./004.png,crow"], r"rows 5 and 26, 6 and 27 name the same file"),
    ],
)
def test_a_wrong_row_of_a_manifest_is_named(change: Callable[[list[str]], list[str]], why: str, tmp_path: Path) -> None:
    root = flat(tmp_path / "images", 24)
    lines = ["path,label", *(f"{i:03d}.png,{'owl' if i % 2 else 'crow'}" for i in range(24))]
    table = write_table(tmp_path / "labels.csv", change(lines))
    (tmp_path / "x.png").write_bytes((root / "000.png").read_bytes())
    before = snapshot(tmp_path)
    with pytest.raises(UserInputError, match=why):
        pack_data(manifest(table, root), tmp_path / "home")
    assert snapshot(tmp_path) == before


def test_images_that_are_there_twice_are_dropped_where_that_is_asked_for(tmp_path: Path) -> None:
    root = parts(tmp_path / "images", train=12, test=4)
    for i in range(3):  # in train and in test
        (root / "test" / "cat" / f"copy{i}.png").write_bytes((root / "train" / "cat" / f"{i}.png").read_bytes())
    (root / "train" / "dog" / "both.png").write_bytes((root / "train" / "cat" / "5.png").read_bytes())  # under two labels
    assert len(pack(root).labels) == 36
    dropped = pack(root, duplicates="drop")
    assert len(dropped.labels) == 31
    assert any("left out 5 images" in note for note in dropped.notes())
    assert "test/cat/copy0.png" not in dropped.ids, "the training rows keep theirs"
    assert not {"train/dog/both.png", "train/cat/5.png"} & set(dropped.ids), "nobody knows which label is right"


FILES: dict[str, Callable[[Image.Image], bytes]] = {
    ".png": lambda image: saved(image, "PNG"),
    ".jpg": lambda image: saved(image, "JPEG"),
    ".jfif": lambda image: saved(image, "JPEG"),
    ".bmp": lambda image: saved(image, "BMP"),
    ".gif": lambda image: saved(image, "GIF"),
    ".tiff": lambda image: saved(image, "TIFF"),
    ".webp": lambda image: saved(image, "WEBP"),
    ".ppm": lambda image: saved(image, "PPM"),
    ".avif": lambda image: saved(image, "AVIF"),
    ".heic": lambda image: HEIC,
    ".PNG": lambda image: saved(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 16), "PNG"),
}


class Watched(Predictor):
    """Keeps the pixels that a model would see, and needs none."""

    def __init__(self, size: int, bits: int) -> None:
        self.size, self.bits, self.max_pixels, self.interpolation = size, bits, MAX_PIXELS, "bilinear"
        self.seen: list[np.ndarray] = []

    def predict_proba(self, images: np.ndarray) -> np.ndarray:
        self.seen.extend(images)
        return np.zeros((len(images), 2), np.float32)


def test_predicting_sees_the_pixels_that_training_saw(tmp_path: Path) -> None:
    """Of each format, from a folder and from an archive."""
    for number, (suffix, encode) in enumerate(FILES.items()):
        for hue, name in enumerate(("cat", "dog")):
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            content = encode(picture(hue, number, (20, 30)))
            (tmp_path / "images" / name / f"{number}{suffix}").write_bytes(content)
    store = pack(tmp_path / "images")
    trained = dict(zip(store.ids, store.images, strict=True))
    for place in (tmp_path / "images", tar(tmp_path / "images", tmp_path / "a.tar.xz", mode="w:xz")):
        predictor = Watched(8, store.record.bits)
        with ExitStack() as open_files:
            names = [one.name for one in predictor.predictions(list_entries([place], open_files, print))]
        assert sorted(names) == sorted(trained)
        assert all(np.array_equal(pixels, trained[name]) for name, pixels in zip(names, predictor.seen, strict=True))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("training_set/training_set", "test_set/test_set"), {"train": "training_set", "test": "test_set"}),
        (("seg_train/seg_train", "seg_test/seg_test"), {"train": "seg_train", "test": "seg_test"}),
        (("train-images", "Validation images"), {"train": "train-images", "test": "Validation images"}),
    ],
)
def test_parts_are_known_by_a_word_of_their_names_too(names: tuple[str, str], expected: dict[str, str], tmp_path: Path) -> None:
    root = parts(tmp_path / "images", **{names[0]: 12, names[1]: 4})
    store = pack(root)
    assert per_class(store) == {"cat": 16, "dog": 16}
    assert store.tested.sum() == 8
    assert store.record.origins == {part: f"the folder {folder}" for part, folder in expected.items()}
    flat(root / "seg_pred", 3)
    assert "the folder seg_pred lies beside" in refused(root)


def test_classes_whose_names_have_such_a_word_stay_classes(tmp_path: Path) -> None:
    assert per_class(pack(classes(tmp_path / "images", {"test tube": 8, "flask": 8, "training shoe": 8}))) == {
        "test tube": 8,
        "flask": 8,
        "training shoe": 8,
    }


@pytest.mark.parametrize(
    ("folders", "why"),
    [
        ({"data/train/cat": 4, "data/train/dog": 4, "data_more/cat": 4}, "is data a class"),
        ({"a/x/cat": 4, "a/x/dog": 4, "b/x/cat": 4, "b/x/dog": 4}, "are a, b the classes, or cat, dog"),
    ],
)
def test_what_could_be_meant_in_two_ways_is_refused(folders: dict[str, int], why: str, tmp_path: Path) -> None:
    assert why in refused(classes(tmp_path / "images", folders))


def test_a_part_without_a_readable_name_is_refused(tmp_path: Path) -> None:
    root = parts(tmp_path / "images", train=12)
    (root / "test" / "cat").mkdir(parents=True)
    (root / "test" / "cat" / "1.cr2").write_bytes(b"raw")
    assert "test holds no image by its name, such as test/cat/1.cr2" in refused(root)


def test_a_class_with_folders_of_its_own_stays_one_where_other_parts_name_it(tmp_path: Path) -> None:
    root = parts(tmp_path / "images", train=12)
    classes(root / "test", {"cat/day": 3, "cat/night": 3})
    assert per_class(pack(root)) == {"cat": 18, "dog": 12}


def test_an_empty_folder_beside_the_classes_is_named(tmp_path: Path) -> None:
    root = classes(tmp_path / "images", TWO)
    (root / "bird" / "inner").mkdir(parents=True)
    assert any("bird is empty, and therefore no class" in note for note in pack(root).notes())


@pytest.mark.parametrize("column", ["split", "fold"])
def test_parts_and_folds_that_divide_a_group_are_refused(column: str, tmp_path: Path) -> None:
    root = flat(tmp_path / "images", 40)
    value = {"split": lambda i: "test" if i % 4 == 0 else "train", "fold": lambda i: i // 2 % 2}[column]
    lines = [f"path,label,group,{column}"]
    lines += [f"{i:03d}.png,{'owl' if i // 4 % 2 else 'crow'},g{i // 4},{value(i)}" for i in range(40)]
    given = manifest(write_table(tmp_path / "labels.csv", lines), root, folds=2)
    store = pack_data(given, tmp_path / "home")
    with pytest.raises(UserInputError, match=r"the manifest divides \d+ groups: .* Give all rows of a group the same split"):
        get_split(store, given, 0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('path,label,notes\n000.png,owl,"5 inch\n001.png,crow,x\n', "row 2 is no valid CSV .* A quote may be open"),
        ("path,label\n\n000.png,owl, domestic\n", "row 3 has 3 fields, and there are 2 columns"),
        ("path,label,label\n000.png,owl,crow\n", "the column 'label' is there twice"),
        ("path,label\n", "there is no row below the names"),
        ("path,label,fold\n000.png,owl,\u00b2\n", "in row 2, the fold is not a whole number"),
        ("path,label,fold\n000.png,owl,1\n001.png,owl,\n", "in row 3, the fold is missing, while other rows have one"),
        ("path,label\n000.PNG,owl\n", "There is 000.png, which is written otherwise"),
    ],
)
def test_a_table_that_could_be_read_wrongly_is_refused(text: str, why: str, tmp_path: Path) -> None:
    root = flat(tmp_path / "images", 24)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserInputError, match=why):
        pack_data(manifest(tmp_path / "labels.csv", root), tmp_path / "home")


def test_tables_as_programs_write_them_are_read_alike(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    root = flat(tmp_path / "images", 24)
    plain = ["path,label", *(f"{i:03d}.png,{i % 2}" for i in range(24))]
    write_table(tmp_path / "plain.csv", plain)
    spaced = [f'"{root}/{i:03d}.png", "{i % 2}"' for i in range(24)]
    (tmp_path / "spaced.csv").write_bytes(("\ufeffpath, label\r\n\r\n" + "\r\n".join(spaced)).encode())
    rows = [{"path": f".\\{i:03d}.png", "label": float(i % 2), "group": float("nan")} for i in range(24)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    as_bytes = [{**row, "label": b"01"[i % 2 : i % 2 + 1]} for i, row in enumerate(rows)]
    parquet.write_table(pa.Table.from_pylist(as_bytes), tmp_path / "b.parquet")
    names = ("plain.csv", "spaced.csv", "a.parquet", "b.parquet")
    stores = [pack_data(manifest(tmp_path / name, root), tmp_path / "home") for name in names]
    assert [store.classes for store in stores] == [["0", "1"]] * 4
    assert len({store.digest for store in stores}) == 1
    parquet.write_table(pa.Table.from_pylist([{**row, "label": None} for row in rows[:1]] + rows[1:]), tmp_path / "c.parquet")
    with pytest.raises(UserInputError, match="in row 2, the label is missing"):
        pack_data(manifest(tmp_path / "c.parquet", root), tmp_path / "home")


def test_archives_of_odd_makes_are_read_or_called_by_their_name(tmp_path: Path) -> None:
    plain = pack(classes(tmp_path / "images", TWO))
    assert pack(tar(tmp_path / "images", tmp_path / "a.tar", mode="w:gz")).digest == plain.digest, "compressed, whatever its name"
    assert pack(tar(tmp_path / "images", tmp_path / "b.tar", "photos 12:30/")).digest == plain.digest
    (tmp_path / "images" / "cat" / ".#1.png").symlink_to(tmp_path / "nowhere")
    assert pack(tmp_path / "images").digest == plain.digest, "a lock of an editor"
    locked = tmp_path / "c.zip"
    with zipfile.ZipFile(locked, "w") as archive:
        archive.writestr("cat/1.png", b"x")
    content = bytearray(locked.read_bytes())
    for sign, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(sign) + place] |= 1
    locked.write_bytes(content)
    assert "is protected by a password" in refused(locked)
