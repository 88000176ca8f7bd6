"""Read data sets in formats that other tools write: MedMNIST, CIFAR-100, WebDataset, Parquet with images, metadata.csv.

A format is recognized by the names of its files. Formats that can't be read safely are named.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.data.archives import Content, read
from workers.data.images import is_image
from workers.data.layout import PARTS, Item
from workers.data.leftovers import is_leftover
from workers.data.tables import read_table
from workers.errors import UserInputError

Files = Mapping[str, Content]
Reader = Callable[[Path, Files], Iterator[Item]]
CIFAR_SIDE, CIFAR_LABELS = 32, 2  # pixels, and bytes of labels before them: coarse and fine
METADATA = "metadata.csv"


def items_of_known_format(root: Path, files: Sequence[tuple[str, Content]]) -> list[Item] | None:
    """Return the items of a data set in one of these formats, or None if its files are in no such format.

    Args:
        root: The folder or the archive.
        files: Its files by name.

    Raises:
        UserInputError: If the data set is damaged, or in a format that can't be read.
    """
    kept = {name: content for name, content in files if not is_leftover(name)}
    reader = _reader_of(root, kept)
    return list(reader(root, kept)) if reader else None


def _reader_of(root: Path, files: Files) -> Reader | None:
    names = {PurePosixPath(name).name for name in files}
    suffixes = {PurePosixPath(name).suffix.lower() for name in files}
    has_images = any(map(is_image, files))
    metadata = [content for name, content in files.items() if PurePosixPath(name).name == METADATA]
    if has_images and metadata and all(b"file_name" in _bytes(content).partition(b"\n")[0] for content in metadata):
        return _with_metadata
    if ".cls" in suffixes and has_images:
        return _web_dataset
    if has_images:
        return None
    if {"train_images.npy", "train_labels.npy"} <= names or suffixes == {".npz"}:
        return _medmnist
    if {"train.bin", "test.bin", "fine_label_names.txt"} <= names:
        return _cifar100
    if ".parquet" in suffixes:
        return lambda _, files: items_of_parquet([name for name in files if name.endswith(".parquet")], files)
    _refuse_unreadable(root, names, suffixes)
    return None


def _refuse_unreadable(root: Path, names: set[str], suffixes: set[str]) -> None:
    """Raise UserInputError for formats that are recognized and not read."""
    advice = "Save the images as PNG files in one folder per class."
    if {"train", "test", "meta"} <= names or any(name.startswith("data_batch_") for name in names):
        raise UserInputError(
            f"{root}: CIFAR's files for Python are pickles, which could run any code when they are read. Give the binary version "
            "of CIFAR-100 (cifar-100-binary.tar.gz); `dataset: cifar10` reads CIFAR-10, whose checksums are known."
        )
    if any("idx" in name and "ubyte" in name for name in names):
        raise UserInputError(f"{root}: these are MNIST's idx files, which Conclave can't read. {advice}")
    if ".npy" in suffixes:
        raise UserInputError(f"{root}: these are NumPy arrays (.npy), which Conclave can't read as images. {advice}")


def _with_metadata(root: Path, files: Files) -> Iterator[Item]:
    """Yield the images that the metadata.csv in each part names, with `file_name` and a label (Hugging Face's ImageFolder)."""
    tables = {name: content for name, content in files.items() if PurePosixPath(name).name == METADATA}
    for table_name, content in tables.items():
        folder = PurePosixPath(table_name).parent
        part = PARTS.get(folder.name.casefold(), "")
        path = root / table_name
        table = read_table(path, None, _bytes(content))
        labels = [name for name in table.header if name != "file_name"]
        label = "label" if "label" in labels else labels[0] if len(labels) == 1 else None
        if "file_name" not in table.header or label is None:
            raise UserInputError(f"{path}: the columns file_name and label are needed; there are {', '.join(table.header)}.")
        for number, row in table.rows:
            name = (folder / row["file_name"]).as_posix()
            if name not in files or not row[label]:
                what = f"{row['file_name']} is not there" if name not in files else "the label is missing"
                raise UserInputError(f"{path}: in row {number}, {what}.")
            yield Item(name, row[label], part, files[name])


def _web_dataset(root: Path, files: Files) -> Iterator[Item]:
    """Yield the images of a WebDataset shard, with the label in the .cls file of the same name."""
    for name, content in files.items():
        if is_image(name):
            label = files.get(f"{name.rpartition('.')[0]}.cls")
            if label is None:
                raise UserInputError(f"{root}: {name} has no .cls file with its label, as other images have.")
            yield Item(name, _bytes(label).decode("utf-8", "replace").strip(), "", content)


def _medmnist(root: Path, files: Files) -> Iterator[Item]:
    """Yield the images of MedMNIST's arrays: PART_images (n, H, W[, 3]) uint8 and PART_labels (n, 1)."""
    for name, content in files.items():
        if name.endswith(".npz"):
            with np.load(io.BytesIO(_bytes(content)), allow_pickle=False) as arrays:
                yield from _of_arrays(root / name, {key: arrays[key] for key in arrays.files})
            return
    arrays_by_name = {PurePosixPath(name).stem: _array(root / name, content) for name, content in files.items()}
    yield from _of_arrays(root, arrays_by_name)


def _array(path: Path, content: Content) -> NDArray[Any]:
    try:
        return np.asarray(np.lib.format.read_array(io.BytesIO(_bytes(content)), allow_pickle=False))
    except ValueError as error:
        raise UserInputError(f"{path}: not a readable array ({error}).") from None


def _of_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Iterator[Item]:
    parts = [part for part in ("train", "val", "test") if f"{part}_images" in arrays and f"{part}_labels" in arrays]
    for part in parts:
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if labels.size != len(images):
            raise UserInputError(f"{path}: the images have several labels each, and Conclave trains one label for each image.")
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise UserInputError(f"{path}: {part}_images has the shape {images.shape} and type {images.dtype}: not 8-bit images.")
        for i, (image, label) in enumerate(zip(images, labels.reshape(-1), strict=True)):
            yield Item(f"{part}/{i}", str(label), part, image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2))


def _cifar100(root: Path, files: Files) -> Iterator[Item]:
    """Yield the images of CIFAR-100's binary version, with their fine labels."""
    by_name = {PurePosixPath(name).name: content for name, content in files.items()}
    classes = _bytes(by_name["fine_label_names.txt"]).decode("utf-8").split()
    size = CIFAR_LABELS + 3 * CIFAR_SIDE**2
    for part in ("train", "test"):
        content = _bytes(by_name[f"{part}.bin"])
        if len(content) % size:
            raise UserInputError(f"{root}: {part}.bin is cut off. Download it again.")
        rows = np.frombuffer(content, np.uint8).reshape(-1, size)
        for i, row in enumerate(rows):
            pixels = row[CIFAR_LABELS:].reshape(3, CIFAR_SIDE, CIFAR_SIDE).transpose(1, 2, 0)
            yield Item(f"{part}/{i}", classes[row[1]], part, np.ascontiguousarray(pixels))


def items_of_parquet(names: Sequence[str], files: Mapping[str, Content]) -> Iterator[Item]:
    """Yield the images of Parquet files with a column of image bytes and a column of labels, as Hugging Face writes them.

    Args:
        names: Names of the Parquet files; the first word of a name tells the part.
        files: All files by name.

    Raises:
        UserInputError: If a file has no such columns.
    """
    from pyarrow import ArrowException, BufferReader, parquet

    parts = {name: PARTS.get(PurePosixPath(name).name.replace("_", "-").partition("-")[0].casefold(), "") for name in names}
    for name in names:
        try:
            table = parquet.read_table(BufferReader(_bytes(files[name])))
        except (ArrowException, ValueError) as error:
            raise UserInputError(f"{name}: not a readable Parquet file ({type(error).__name__}).") from None
        images = [c for c in table.column_names if str(table.schema.field(c).type).startswith("struct") or c == "image"]
        labels = [c for c in table.column_names if c in ("label", "labels", "fine_label")]
        if not images or not labels:
            raise UserInputError(f"{name}: no columns `image` and `label`; there are {', '.join(table.column_names)}.")
        classes = _class_names(table.schema.metadata or {}, labels[0])
        pairs = zip(table[images[0]].to_pylist(), table[labels[0]].to_pylist(), strict=True)
        for i, (image, label) in enumerate(pairs):
            content = image.get("bytes") if isinstance(image, dict) else image
            if not isinstance(content, bytes) or label is None:
                raise UserInputError(f"{name}: row {i} has no {'label' if isinstance(content, bytes) else 'bytes of an image'}.")
            shown = f"{PurePosixPath(name).stem}/{i}" if len(names) > 1 else str(i)
            yield Item(shown, classes[label] if classes else str(label), parts[name] if len(names) > 1 else "", content)


def holds_images(path: Path) -> bool:
    """Return whether a Parquet file has a column of images: structures that hold bytes."""
    from pyarrow import ArrowException, parquet

    try:
        schema = parquet.read_schema(path)
    except (ArrowException, ValueError, OSError):
        return False
    return any(str(field.type).startswith("struct<bytes: binary") for field in schema)


def _class_names(metadata: Mapping[bytes, bytes], column: str) -> list[str]:
    """Return the class names in Hugging Face's description of a label column; empty without one."""
    try:
        feature = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"][column]
    except (ValueError, KeyError, TypeError):
        return []
    names = feature.get("names", []) if isinstance(feature, dict) else []
    return [str(name) for name in names]


def _bytes(content: Content) -> bytes:
    found = read(content)
    return found.read_bytes() if isinstance(found, Path) else found
