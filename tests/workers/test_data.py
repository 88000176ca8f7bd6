"""Data sets: what is packed, how it is split, and every bad one leaving the disk as it was."""

import hashlib
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from errno import ENOSPC
from pathlib import Path, PurePosixPath
from shutil import make_archive
from typing import Literal
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from tests.factories import bad_tar, huge_png, not_utf8, picture, snapshot, symlink_loop, too_few, tree, truncated
from workers.config.specs import DataSpec
from workers.data.images import decode
from workers.data.packing import pack_data
from workers.errors import ConclaveError, UserInputError


def folder_spec(root: Path, **keys: object) -> DataSpec:
    return DataSpec.model_validate({"dataset": "folder", "root": root, "image_size": 8, "folds": 2, "fuse_fraction": 0.2, **keys})


def test_folder_and_archives_of_it_are_the_same_data(tmp_path: Path) -> None:
    root = tree(tmp_path / "images")
    (root / "train" / "cat" / "notes.txt").write_text("skipped")
    packed = [root]
    modes: dict[str, Literal["w", "w:gz", "w:xz"]] = {".tar": "w", ".tar.gz": "w:gz", ".tar.xz": "w:xz"}
    for suffix, mode in modes.items():
        with tarfile.open(tmp_path / f"a{suffix}", mode) as archive:
            archive.add(root, arcname="images")
        packed.append(tmp_path / f"a{suffix}")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, path.relative_to(root))
    packed.append(tmp_path / "a.zip")
    stores = [pack_data(folder_spec(path), tmp_path / "home") for path in packed]
    contents = [sorted(zip(s.ids, s.labels.tolist(), (s.images.reshape(48, -1).sum(1)).tolist(), strict=True)) for s in stores]
    assert all(c == contents[0] for c in contents)
    assert all(s.record.skipped == 1 for s in stores)
    assert stores[0].images.shape == (48, 8, 8, 3)


def test_val_stands_in_only_where_there_is_no_test(tmp_path: Path) -> None:
    with_val = pack_data(folder_spec(tree(tmp_path / "a", ("train", "val"))), tmp_path / "home")
    both = pack_data(folder_spec(tree(tmp_path / "b", ("train", "val", "test"))), tmp_path / "home")
    assert with_val.tested.sum() == 24
    assert [i for i in both.ids if i.startswith("val")] == []


def test_the_second_use_decodes_nothing(tmp_path: Path) -> None:
    decoded: list[int] = []
    for _ in range(2):
        pack_data(DataSpec(), tmp_path, lambda rows, expected: decoded.append(rows))
    assert decoded == [1797]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


def test_resizing_is_shorter_side_then_centre() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, "PNG")
    assert (decode(buffer.getvalue(), 10) == 200).all()


def single_class(root: Path) -> None:
    tree(root, classes=("cat",))


def empty(root: Path) -> None:
    root.mkdir()


def no_class_folders(root: Path) -> None:
    root.mkdir()
    (root / "1.png").write_bytes(picture(1))


def broken_link(root: Path) -> None:
    (tree(root) / "train" / "cat" / "x.png").symlink_to(root / "nowhere")


def folders_in_two_ways(root: Path) -> None:
    """cat/indoors/1.png, dog/indoors/1.png and so on: either of the two levels may be the classes."""
    for name in ("cat/indoors", "dog/indoors", "cat/outdoors", "dog/outdoors"):
        (root / name).mkdir(parents=True)
        for i in range(4):
            (root / name / f"{i}.png").write_bytes(picture(i))


def thin(root: Path) -> None:
    Image.fromarray(np.zeros((1, 2_000_000), np.uint8)).save(tree(root) / "train" / "cat" / "1.png")


def postscript(root: Path) -> None:
    """Pillow would start Ghostscript for it, by what is in the file."""
    (tree(root) / "train" / "cat" / "1.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    )


def floats(root: Path) -> None:
    path = tree(root) / "train" / "cat" / "1.tif"
    Image.fromarray(np.random.default_rng(0).random((9, 9), dtype=np.float32)).save(path)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (truncated, "can't be decoded"),
        (huge_png, "pixels"),
        (single_class, "only one class"),
        (too_few, "at least 3"),
        (empty, "no image found"),
        (no_class_folders, "in no class folder"),
        (symlink_loop, "a loop"),
        (broken_link, "broken or circular symlink"),
        (not_utf8, "not UTF-8"),
        (folders_in_two_ways, "are cat, dog the classes, or indoors, outdoors"),
        (thin, "too long and thin"),
        (postscript, "can't be decoded"),
        (floats, "range is not known"),
    ],
)
def test_a_bad_folder_is_rejected_and_nothing_is_written(make: Callable[[Path], None], expected: str, tmp_path: Path) -> None:
    make(tmp_path / "images")
    before = snapshot(tmp_path)
    with pytest.raises(UserInputError, match=expected):
        pack_data(folder_spec(tmp_path / "images"), tmp_path / "home")
    assert snapshot(tmp_path) == before


def bad_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil.png", b"abc")


def damaged_zip(path: Path) -> None:
    """Whole by its directory, with a stream that can't be inflated."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/cat/1.png", b"abc" * 1000)
    content = bytearray(path.read_bytes())
    content[46:60] = bytes(14)
    path.write_bytes(content)


def test_a_truncated_archive_of_cifar_is_refused(tmp_path: Path) -> None:
    bad_tar(tmp_path / "whole.tar.gz", "cifar-10-batches-py/data_batch_1")
    (tmp_path / "a.tar.gz").write_bytes((tmp_path / "whole.tar.gz").read_bytes()[:60])
    with pytest.raises(UserInputError, match="not a readable archive"):
        pack_data(DataSpec(dataset="cifar10", root=tmp_path / "a.tar.gz"), tmp_path / "home")


def test_a_full_disk_is_not_called_a_damaged_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_archive(str(tmp_path / "a"), "gztar", tree(tmp_path / "images"))
    before = snapshot(tmp_path)
    monkeypatch.setattr("shutil.copyfileobj", Mock(side_effect=OSError(ENOSPC, "No space left on device")))
    with pytest.raises(ConclaveError, match="no room to pack the data"):
        pack_data(folder_spec(tmp_path / "a.tar.gz"), tmp_path / "home")
    assert snapshot(tmp_path) == before


def test_what_macos_adds_to_an_archive_is_no_class(tmp_path: Path) -> None:
    tree(tmp_path / "images")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted((tmp_path / "images").rglob("*.png")):
            name = path.relative_to(tmp_path / "images").as_posix()
            archive.writestr(name, path.read_bytes())
            archive.writestr(f"__MACOSX/{PurePosixPath(name).parent}/._{path.name}", b"\0\5\x16\7")
    store = pack_data(folder_spec(tmp_path / "a.zip"), tmp_path / "home")
    assert store.classes == pack_data(folder_spec(tmp_path / "images"), tmp_path / "home").classes


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    assert np.array_equal(decode(tmp_path / "x.png", 8)[..., 0], ramp >> 8)


@pytest.mark.parametrize(
    ("file", "make", "expected"),
    [
        ("a.tar.gz", lambda p: bad_tar(p, "../evil.png"), "points outside"),
        ("a.tar.gz", lambda p: bad_tar(p, "train/cat/1.png", link=True), "is a link"),
        ("a.zip", bad_zip, "points outside"),
        ("a.tar.gz", lambda p: p.write_bytes(b"no archive"), "not a readable archive"),
        ("a.zip", lambda p: p.write_bytes(b"no archive"), "not a readable archive"),
        ("a.zip", lambda p: damaged_zip(p), "not a readable archive"),
        ("a.rar", lambda p: p.write_bytes(b"no archive"), "neither a folder nor"),
        ("a.tar.gz", lambda p: None, "is not there"),
    ],
)
def test_a_bad_archive_is_rejected_and_nothing_is_written(
    file: str, make: Callable[[Path], object], expected: str, tmp_path: Path
) -> None:
    make(tmp_path / file)
    before = snapshot(tmp_path)
    with pytest.raises(UserInputError, match=expected):
        pack_data(folder_spec(tmp_path / file), tmp_path / "home")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
@pytest.mark.parametrize(("limit", "value"), [("MAX_FILES", 20), ("MAX_FILE_BYTES", 100), ("MAX_BYTES", 4000)])
def test_an_archive_that_unpacks_to_too_much_is_refused(
    suffix: str, limit: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(tmp_path / "images")
    make_archive(str(tmp_path / "a"), {".tar.gz": "gztar", ".zip": "zip"}[suffix], root)
    monkeypatch.setattr(f"workers.data.archives.{limit}", value)
    before = snapshot(tmp_path)
    with pytest.raises(UserInputError, match=r"more than|no image is that large"):
        pack_data(folder_spec(tmp_path / f"a{suffix}"), tmp_path / "home")
    assert snapshot(tmp_path) == before


def cifar(root: Path, payload: object = None) -> dict[str, str]:
    """Write files like torchvision's, and return the MD5 of each."""
    folder, digests = root / "cifar-10-batches-py", {}
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        data = np.random.default_rng(0).integers(0, 255, (40, 3072), dtype=np.uint8)
        classes = ["airplane", *(f"class {i}" for i in range(1, 10))]
        content = {"data": data, "labels": [i % 10 for i in range(40)], "label_names": classes}
        (folder / name).write_bytes(pickle.dumps(payload if payload is not None else content, protocol=2))
        digests[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    return digests


def test_torchvisions_cifar_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = cifar(tmp_path / "c")
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{i}", digests[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", digests["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": digests["batches.meta"]})
    store = pack_data(DataSpec(dataset="cifar10", root=tmp_path / "c"), tmp_path / "home")
    assert store.images.shape == (240, 32, 32, 3)
    assert store.tested.sum() == 40
    assert store.classes[0] == "airplane"


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


def test_a_malicious_cifar_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checksum is not CIFAR-10's, so it is never unpickled."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", Mock(side_effect=OSError))
    cifar(tmp_path / "c", Evil())
    with pytest.raises(UserInputError, match="CIFAR-10 is not complete"):
        pack_data(DataSpec(dataset="cifar10", root=tmp_path / "c"), tmp_path / "home")
    assert not (tmp_path / "pwned").exists()
