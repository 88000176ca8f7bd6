"""Archives, tables and formats as people have them: read right, or refused by a sentence that says what to do."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from tests.inputs import classes, flat, pack, picture, refused, spec, tar
from workers.data.inspection import inspect_data
from workers.data.packing import pack_data
from workers.data.store import Store
from workers.data.summary import DataSummary

NAMES = ("cat", "dog", "horse")


def images(folder: Path, count: int = 36, name: str = "{}.jpg") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(1, count + 1):
        picture(i % 3, i).save(folder / name.format(i), "JPEG")
    return folder


def write(path: Path, rows: Sequence[Sequence[str]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    path.write_bytes("".join(f"{delimiter.join(row)}\n" for row in rows).encode(encoding))
    return path


def labelled(count: int = 36) -> list[list[str]]:
    return [[f"{i}.jpg", NAMES[i % 3]] for i in range(1, count + 1)]


def read_manifest(tmp_path: Path, rows: Sequence[Sequence[str]], **keys: object) -> Store:
    table = write(tmp_path / "table.csv", rows)
    return pack(images(tmp_path / "images"), dataset="manifest", manifest=table, **keys)


def summary_of(tmp_path: Path, rows: Sequence[Sequence[str]], **keys: object) -> DataSummary:
    table = write(tmp_path / "table.csv", rows)
    given = spec(images(tmp_path / "images"), dataset="manifest", manifest=table, **keys)
    return inspect_data(given, 0, tmp_path / "home")[1]


def refused_manifest(tmp_path: Path, rows: Sequence[Sequence[str]], **keys: object) -> str:
    table = write(tmp_path / "table.csv", rows)
    return refused(images(tmp_path / "images"), dataset="manifest", manifest=table, **keys)


class _RawNames(zipfile.ZipInfo):
    """An entry whose name is written as these bytes."""

    raw = b""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # Python's own name
        return self.raw, self.flag_bits & ~0x800


def zip_of(path: Path, names: Sequence[bytes], unicode_paths: Sequence[str] = ()) -> Path:
    """A ZIP archive with twelve pictures in each folder, whose names are written as these bytes without the flag of UTF-8."""
    with zipfile.ZipFile(path, "w") as archive:
        for kind, label in enumerate(names):
            for i in range(12):
                content = io.BytesIO()
                picture(kind, i).save(content, "PNG")
                info = _RawNames(f"{kind}-{i}.png")
                info.raw = label + f"/{i}.png".encode()
                if unicode_paths:
                    name = f"{unicode_paths[kind]}/{i}.png".encode()
                    info.extra = struct.pack("<HHBL", 0x7075, 5 + len(name), 1, zlib.crc32(info.raw)) + name
                archive.writestr(info, content.getvalue())
    return path


@pytest.mark.parametrize(
    ("encoding", "labels"), [("gbk", ["猫", "狗"]), ("shift_jis", ["表", "ソフト"]), ("cp850", ["Äpfel", "Nüsse"])]
)
def test_names_in_another_encoding_are_asked_for_and_then_read(encoding: str, labels: list[str], tmp_path: Path) -> None:
    """In Shift-JIS, the second byte of both names is a backslash: a path would be split there."""
    archive = zip_of(tmp_path / "images.zip", [label.encode(encoding) for label in labels])
    message = refused(archive)
    assert "is not UTF-8" in message
    assert "`encoding` under `data:`" in message
    assert pack(archive, encoding=encoding).classes == sorted(labels)


def test_utf_8_without_its_flag_is_read_and_so_is_the_unicode_path(tmp_path: Path) -> None:
    labels = ["Äpfel", "Birnen"]
    assert pack(zip_of(tmp_path / "mac.zip", [label.encode() for label in labels])).classes == sorted(labels)
    named = zip_of(tmp_path / "path.zip", [b"\x8epfel", b"Birnen"], labels)
    assert pack(named).classes == sorted(labels)


def test_an_encoding_that_does_not_exist_or_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown encoding"):
        spec(tmp_path, encoding="klingon")
    archive = zip_of(tmp_path / "images.zip", [b"\xff\xff", b"a"])
    assert "is not in gbk" in refused(archive, encoding="gbk")


@pytest.mark.parametrize("mode", ["bz2", "xz", "gz", "zst"])
def test_tars_of_every_compression_are_read_whatever_they_are_called(mode: str, tmp_path: Path) -> None:
    root, target = classes(tmp_path / "photos", {"cat": 12, "dog": 12}), tmp_path / "photos.zip"
    if mode == "zst":
        plain = tar(root, tmp_path / "photos.tar").read_bytes()
        with pyarrow.output_stream(str(target), compression="zstd") as stream:
            stream.write(plain)
    else:
        tar(root, target, mode=f"w:{mode}")
    assert pack(target).classes == ["cat", "dog"]
    target.rename(tmp_path / f"photos.tar.{mode}")
    assert pack(tmp_path / f"photos.tar.{mode}").classes == ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.7z", b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive, which Conclave can't read. Unpack it (`7z x a.7z`)"),
        ("a.zip", b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
        ("a.rar", b"Rar!\x1a\x07\x01\x00", "a RAR archive, which Conclave can't read. Unpack it (`unrar x a.rar`)"),
        ("a.zip.001", b"PK\x03\x04", "one part of a split archive"),
        ("a.z01", b"PK\x03\x04", "one part of a split archive"),
        ("a.txt", b"path,label", "neither a folder nor an archive (.tar, .tar.gz,"),
    ],
)
def test_archives_that_are_not_read_are_named_with_what_to_do(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content + bytes(64))
    assert said in refused(tmp_path / name)


def test_an_archive_in_an_archive_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("train.zip", b"PK")
        archive.writestr("sample_submission.csv", "id,label\n")
    message = refused(tmp_path / "all.zip")
    assert "no images, but train.zip inside. Unpack it (`unzip all.zip`)" in message


def test_a_shard_of_webdataset_has_its_labels_beside_the_images(tmp_path: Path) -> None:
    folder = images(tmp_path / "shard", name="{:06d}.jpg")
    for i in range(1, 37):
        (folder / f"{i:06d}.cls").write_text(f"{i % 3}\n")
    store = pack(tar(folder, tmp_path / "shard-000000.tar"))
    assert store.classes == ["0", "1", "2"]
    assert [store.classes[label] for label in store.labels[:3]] == [str(int(name[:6]) % 3) for name in store.ids[:3]]
    (folder / "000001.cls").unlink()
    assert "000001.jpg has no .cls file" in refused(tar(folder, tmp_path / "cut.tar"))


@pytest.mark.parametrize("in_folder", [True, False])
def test_the_arrays_of_medmnist_are_read_with_their_parts(in_folder: bool, tmp_path: Path) -> None:
    pixels = np.stack([np.asarray(picture(i % 3, i)) for i in range(36)])
    arrays = {f"{part}_images": pixels + i for i, part in enumerate(("train", "val", "test"))}
    arrays |= {f"{part}_labels": (np.arange(36) % 3)[:, None] for part in ("train", "val", "test")}
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "path.npz", **arrays)  # type: ignore[arg-type]
    root = tmp_path / "npz" if in_folder else tmp_path / "npz" / "path.npz"
    store = pack_data(spec(root, validation="fuse", image_size=16), tmp_path / "home")
    assert (store.classes, len(store.labels), int(store.tested.sum()), int(store.validation.sum())) == (
        ["0", "1", "2"],
        108,
        36,
        36,
    )
    assert np.array_equal(store.images[:36], pixels)


def test_arrays_that_are_pickled_or_have_several_labels_are_refused(tmp_path: Path) -> None:
    pixels = np.zeros((6, 8, 8), np.uint8)
    np.savez(tmp_path / "many.npz", train_images=pixels, train_labels=np.zeros((6, 14), int))
    assert "several labels each" in refused(tmp_path / "many.npz")
    np.savez(tmp_path / "objects.npz", train_images=np.array([{}], dtype=object), train_labels=np.zeros(1))
    assert "not a readable array" in refused(tmp_path / "objects.npz")


def test_cifar_100_is_read_in_its_binary_form(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    pixels = np.stack([np.asarray(picture(i % 3, i, (32, 32))) for i in range(36)])
    rows = [bytes([0, i % 3]) + image.transpose(2, 0, 1).tobytes() for i, image in enumerate(pixels)]
    (folder / "train.bin").write_bytes(b"".join(rows))
    (folder / "test.bin").write_bytes(b"".join(rows[::-1]))
    (folder / "fine_label_names.txt").write_text("\n".join(NAMES))
    (folder / "coarse_label_names.txt").write_text("animal")
    store = pack(tar(folder, tmp_path / "cifar-100-binary.tar.gz", "cifar-100-binary/", "w:gz"), image_size=32)
    assert (store.classes, int(store.tested.sum())) == (list(NAMES), 36)
    assert np.array_equal(store.images[:36], pixels)
    (folder / "train.bin").write_bytes(rows[0][:-1])
    assert "train.bin is cut off" in refused(folder)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["train", "test", "meta"], "CIFAR's files for Python are pickles"),
        (["data_batch_1"], "CIFAR's files for Python are pickles"),
        (["train-images-idx3-ubyte.gz"], "MNIST's idx files"),
        (["cat/0.npy", "dog/0.npy"], "NumPy arrays (.npy)"),
    ],
)
def test_formats_that_are_not_read_are_named(files: list[str], said: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"\x80\x04")
    assert said in refused(tmp_path / "data")


def write_parquet(path: Path, has_names: bool = True) -> Path:
    rows = []
    for i in range(36):
        content = io.BytesIO()
        picture(i % 3, i).save(content, "PNG")
        rows.append({"bytes": content.getvalue(), "path": f"{i}.png"})
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table({"image": pyarrow.array(rows, kind), "label": [i % 3 for i in range(36)]})
    if has_names:
        info = {"info": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    parquet.write_table(table, path)
    return path


def test_parquet_with_images_is_read_with_the_names_of_its_classes(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "train-00000-of-00001.parquet")
    store = pack_data(spec(None, dataset="manifest", manifest=table), tmp_path / "home")
    assert (store.classes, len(store.labels)) == (list(NAMES), 36)
    folder = tmp_path / "data"
    folder.mkdir()
    write_parquet(folder / "train-00000-of-00001.parquet", has_names=False)
    write_parquet(folder / "test-00000-of-00001.parquet", has_names=False)
    store = pack(folder)
    assert (store.classes, int(store.tested.sum())) == (["0", "1", "2"], 36)


def test_metadata_csv_in_each_part_is_read(tmp_path: Path) -> None:
    for part in ("train", "test"):
        images(tmp_path / "data" / part)
        write(tmp_path / "data" / part / "metadata.csv", [["file_name", "label"], *labelled()])
    store = pack(tmp_path / "data")
    assert (store.classes, int(store.tested.sum())) == (list(NAMES), 36)
    write(tmp_path / "data" / "train" / "metadata.csv", [["file_name", "label"], ["37.jpg", "cat"]])
    assert "in row 2, 37.jpg is not there" in refused(tmp_path / "data")


def test_another_metadata_csv_beside_class_folders_is_no_table_of_labels(tmp_path: Path) -> None:
    root = classes(tmp_path / "images", {"cat": 12, "dog": 12})
    write(root / "metadata.csv", [["camera", "year"], ["phone", "2024"]])
    assert pack(root).classes == ["cat", "dog"]


def test_tables_as_excel_writes_them_are_read(tmp_path: Path) -> None:
    rows = [["path", "label"], *labelled()]
    root = images(tmp_path / "images")
    tables = {
        "sep.csv": b"sep=;\r\n" + "".join(f"{';'.join(row)}\r\n" for row in rows).encode(),
        "trailing.csv": "".join(f"{','.join(row)},,\r\n" for row in rows).encode(),
        "utf16.csv": "".join("\t".join(row) + "\r\n" for row in rows).encode("utf-16"),
    }
    for name, content in tables.items():
        (tmp_path / name).write_bytes(content)
        store = pack(root, dataset="manifest", manifest=tmp_path / name)
        assert Counter(store.classes[label] for label in store.labels) == dict.fromkeys(NAMES, 12)


def test_a_table_in_another_encoding_is_refused_until_it_is_named(tmp_path: Path) -> None:
    rows = [["path", "label"], *([path, label.replace("horse", "Nüsse")] for path, label in labelled())]
    table = write(tmp_path / "table.csv", rows, ";", "cp1252")
    root = images(tmp_path / "images")
    assert "name its encoding as `encoding` under `data:`" in refused(root, dataset="manifest", manifest=table)
    assert pack(root, dataset="manifest", manifest=table, encoding="cp1252").classes == ["Nüsse", "cat", "dog"]


def test_ids_get_the_extension_that_the_message_names(tmp_path: Path) -> None:
    rows = [["path", "label"], *([path.removesuffix(".jpg"), label] for path, label in labelled())]
    assert "There is 1.jpg: set `extension: .jpg` under `data:`." in refused_manifest(tmp_path, rows)
    assert len(read_manifest(tmp_path, rows, extension=".jpg").labels) == 36


def test_a_table_without_a_header_is_told_from_one_with_other_names(tmp_path: Path) -> None:
    assert "the first row looks like data (1.jpg)" in refused_manifest(tmp_path, labelled())
    assert "looks like data" in refused_manifest(tmp_path, labelled(), columns={"path": "1.jpg", "label": "dog"})
    rows = [["file", "kind"], *labelled()]
    assert "data.columns: {path: file}" in refused_manifest(tmp_path, rows)
    long = [[f"c{i}" for i in range(30)], [str(i) for i in range(30)]]
    assert "c9 and 20 more" in refused_manifest(tmp_path, long)


def one_hot() -> list[list[str]]:
    return [["path", "MEL", "NV", "BCC"], *([f"{i}.jpg", *(f"{float(i % 3 == k)}" for k in range(3))] for i in range(1, 37))]


def test_one_hot_columns_are_labels(tmp_path: Path) -> None:
    store = read_manifest(tmp_path, one_hot())
    assert store.classes == ["BCC", "MEL", "NV"]
    assert store.classes[store.labels[0]] == "NV", "the first row is image 1"
    assert any("the labels are the one-hot columns MEL, NV, BCC" in note for note in store.notes())


def test_a_label_of_zeros_and_ones_is_questioned(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, one_hot(), columns={"label": "MEL"})
    assert any("MEL holds only 0 and 1" in note for note in summary.notes)


@pytest.mark.parametrize("mark", ["nan", "None", "NA", "null", "?"])
def test_marks_of_missing_labels_are_warned_of_dropped_or_refused(mark: str, tmp_path: Path) -> None:
    rows = [["path", "label"], *([path, mark if i < 6 else label] for i, (path, label) in enumerate(labelled()))]
    warned = summary_of(tmp_path, rows)
    assert any(f"6 images have the label {mark}" in warning for warning in warned.warnings)
    dropped = read_manifest(tmp_path, rows, on_missing_label="drop")
    assert (dropped.classes, len(dropped.labels)) == (list(NAMES), 30)
    assert any("left out 6 rows" in note for note in dropped.notes())
    assert "in rows 2, 3, 4, 5, 6 and 1 more, the label is missing" in refused_manifest(tmp_path, rows, on_missing_label="error")


def test_labels_and_folds_of_test_rows_are_not_needed(tmp_path: Path) -> None:
    rows = [["path", "label", "split", "fold"]]
    rows += [
        [path, label, "train", str(i % 2)] if i < 24 else [path, "", "test", "-1"] for i, (path, label) in enumerate(labelled())
    ]
    store = read_manifest(tmp_path, rows, folds=2)
    assert len(store.labels) == 24
    assert any("left out 12 test rows" in note for note in store.notes())
    unsaid = [
        ["path", "label", "fold"],
        *([path, label, str(i % 2 if i < 24 else -1)] for i, (path, label) in enumerate(labelled())),
    ]
    assert "If these are test rows, say so in a column `split`" in refused_manifest(tmp_path, unsaid)


def test_spellings_of_a_class_are_warned_of_with_invisible_characters_shown(tmp_path: Path) -> None:
    spellings = {"cat": "Cat", "dog": "golden retriever", "horse": "horse\u200b"}
    rows = [["path", "label"], *labelled()]
    rows = [
        rows[0],
        *(
            [path, spellings[label] if i % 2 else label.replace("dog", "golden_retriever")]
            for i, (path, label) in enumerate(rows[1:])
        ),
    ]
    summary = summary_of(tmp_path, rows, fuse_fraction=0.3)
    [warning] = [text for text in summary.warnings if "spelling" in text]
    for pair in ("'Cat' and 'cat'", "'golden retriever' and 'golden_retriever'", "'horse' and 'horse\\u200b'"):
        assert pair in warning


def test_a_class_of_one_part_is_named_with_its_other_spelling(tmp_path: Path) -> None:
    root = classes(tmp_path / "images", {"train/cat": 12, "train/dog": 12, "test/Cat": 4, "test/dog": 4})
    message = refused(root)
    assert "class 'Cat' has 0 training images" in message
    assert "'Cat' and 'cat'" in message


@pytest.mark.parametrize(
    ("several", "is_told"), [("cat,dog", True), ("cat|lost", True), ("cat dog", True), ("golden retriever", False)]
)
def test_several_labels_in_one_are_warned_of(several: str, is_told: bool, tmp_path: Path) -> None:
    rows = [["path", "label"], *([path, f'"{several}"' if i % 3 == 0 else label] for i, (path, label) in enumerate(labelled()))]
    warned = [text for text in summary_of(tmp_path, rows).warnings if "several labels in one" in text]
    assert bool(warned) == is_told
    if is_told:
        assert warned[0].startswith("12 images")


def test_two_rows_of_one_file_are_both_named(tmp_path: Path) -> None:
    message = refused_manifest(tmp_path, [["path", "label"], *labelled(), ["1.jpg", "cat"], ["2.jpg", "cat"]])
    assert "rows 2 and 38, 3 and 39 name the same file" in message


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("images/{}", "There is 1.jpg: paths count from"),
        ("C:\\Users\\me\\images\\{}", "such as C:\\Users\\me\\images\\1.jpg (the header is row 1). There is 1.jpg"),
        ("/content/drive/MyDrive/data/images/{}", "Remove /content/drive/MyDrive/data/images/ from the paths"),
        ("https://example.org/images/{}", "the path is a URL, such as https://example.org/images/1.jpg"),
        ("file:///data/images/{}", "the path is a URL, such as file:///data/images/1.jpg"),
    ],
)
def test_paths_that_do_not_match_get_a_hint_that_would_make_them_match(written: str, said: str, tmp_path: Path) -> None:
    message = refused_manifest(tmp_path, [["path", "label"], *([written.format(path), label] for path, label in labelled())])
    assert said in message


def test_images_without_class_folders_are_still_refused(tmp_path: Path) -> None:
    assert "is in no class folder" in refused(flat(tmp_path / "images", 6))


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    assert pack(classes(tmp_path / "images", {str(k): 12 for k in range(12)})).classes == [str(k) for k in range(12)]
    assert pack(classes(tmp_path / "padded", dict.fromkeys(("010", "002", "001"), 12))).classes == ["001", "002", "010"]


def test_a_file_fixes_the_order_of_the_classes_and_must_name_each_once(tmp_path: Path) -> None:
    root, listed = classes(tmp_path / "images", {"cat": 12, "dog": 12, "ant": 12}), tmp_path / "classes.txt"
    listed.write_text("dog\n\ncat\nant\n")
    store = pack(root, classes=listed)
    assert store.classes == ["dog", "cat", "ant"]
    assert store.classes[store.labels[store.ids.index("dog/000.png")]] == "dog"
    listed.write_text("ant\ncat\ndog\n")
    assert pack(root, classes=listed).classes == ["ant", "cat", "dog"], "another order is another data set"
    for content, said in (
        ("cat\ndog\n", "lacks the class 'ant'"),
        ("cat\ndog\nant\nbee\n", "'bee', which is no class"),
        ("cat\ncat\n", "twice"),
    ):
        listed.write_text(content)
        assert said in refused(root, classes=listed)
    assert "can't be read" in refused(root, classes=tmp_path / "nowhere.txt")
