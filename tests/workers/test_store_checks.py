"""A packed store whose bytes changed is found out when a sweep begins, and packed again where it can be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.inputs import classes
from workers.config.specs import DataSpec
from workers.data import store_checks
from workers.data.packing import pack_data
from workers.data.splits import keep_split, read_split
from workers.data.store import Store, find_store
from workers.data.store_checks import damaged_file
from workers.errors import CorruptFileError
from workers.storage.files import write_bytes


@pytest.fixture
def packed(tmp_path: Path) -> tuple[DataSpec, Store]:
    spec = DataSpec(dataset="folder", root=classes(tmp_path / "images", {"cat": 24, "dog": 24}), image_size=16, folds=2)
    return spec, pack_data(spec, tmp_path / "home")


def flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a pixel": lambda store: flip(store / "images.npy", 0.7),
    "the last pixel": lambda store: flip(store / "images.npy", 1.0),
    "a label": lambda store: flip(store / "labels.npy", 0.9),
    "which rows are tested": lambda store: flip(store / "tested.npy", 0.9),
    "an id": lambda store: flip(store / "ids.json", 0.5),
    "the rest of the rows": lambda store: flip(store / "rows.npz", 0.5),
    "a class name": lambda store: (store / "store.json").write_text((store / "store.json").read_text().replace("cat", "cow")),
    "cut short": lambda store: (store / "images.npy").write_bytes((store / "images.npy").read_bytes()[:-1]),
    "emptied": lambda store: (store / "labels.npy").write_bytes(b""),
    "removed": lambda store: (store / "labels.npy").unlink(),
    "no checksums": lambda store: (store / "checks.json").unlink(),
    "no store.json": lambda store: (store / "store.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_store_is_packed_again(
    damage: Callable[[Path], object], packed: tuple[DataSpec, Store], tmp_path: Path
) -> None:
    spec, store = packed
    keep_split(store, spec, 0, tmp_path)
    before, said = [path.name for path in store.folder.glob("splits/*")], list[str]()
    digest, pixels = store.digest, np.array(store.images)
    damage(store.folder)
    again = pack_data(spec, tmp_path / "home", say=said.append)
    assert (again.folder, again.digest) == (store.folder, digest)
    assert np.array_equal(again.images, pixels)
    assert damaged_file(Store(store.folder)) is None
    assert len(said) == ((store.folder / "store.json").exists() and damage is not DAMAGES["no store.json"])
    assert [path.name for path in store.folder.glob("splits/*")] == before
    assert [path.name for path in (tmp_path / "home" / "data").iterdir()] == [store.folder.name]


def test_of_a_large_store_what_did_not_change_is_read_in_part(
    packed: tuple[DataSpec, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store = packed
    monkeypatch.setattr(store_checks, "READ_IN_FULL_BYTES", 0)
    monkeypatch.setattr(store_checks, "PIECE_BYTES", 512)
    store_checks.keep_checks(store.folder)
    read: list[int] = []
    real = store_checks._read_pieces

    def counting(path: Path, numbers: Sequence[int]) -> Iterator[int]:
        read.extend(numbers)
        return real(path, numbers)

    monkeypatch.setattr(store_checks, "_read_pieces", counting)
    assert damaged_file(store) is None
    pieces = sum(-(-path.stat().st_size // 512) for path in store.folder.glob("*.n*"))
    assert 0 < len(read) < pieces / 4
    read.clear()
    flip(store.folder / "images.npy", 0.5)
    assert damaged_file(store) == "images.npy", "it has another time, and is read in full"


def test_a_split_that_was_changed_by_hand_is_not_taken(packed: tuple[DataSpec, Store], tmp_path: Path) -> None:
    spec, store = packed
    right = keep_split(store, spec, 0, tmp_path)
    [path] = store.folder.glob("splits/*.json")
    changed = json.loads(path.read_text())
    path.write_text(json.dumps({**changed, "fit": changed["fit"][::-1]}))
    with pytest.raises(CorruptFileError, match="damaged"):
        read_split(store, right.key)
    keep_split(store, spec, 0, tmp_path)
    assert json.loads(path.read_text())["fit"] == right.fit.tolist()


def test_a_full_disk_while_packing_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    classes(tmp_path / "images", {"cat": 60, "dog": 60})
    code = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    code += "from orchestrator.cli.entry import main\n"
    code += "sys.argv = ['conclave', 'data', 'team.yaml', '--home', 'home']\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); main()"
    (tmp_path / "team.yaml").write_text(
        "version: 1\nname: t\ndata: {dataset: folder, root: images, image_size: 32}\nmembers: [{name: a}]\n"
    )
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "conclave: home: no room to pack the data (File too large). Make room and run again."
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"{}", b"\x93NUMPY garbage", b"PK\x03\x04 cut", None], ids=str)
@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "tested.npy", "ids.json", "rows.npz", "store.json"])
def test_a_file_that_is_something_else_is_named(name: str, content: bytes | None, packed: tuple[DataSpec, Store]) -> None:
    path = packed[1].folder / name
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    store = Store(path.parent)
    with pytest.raises(CorruptFileError, match=f"{name}: damaged"):
        _ = [store.record, store.images, store.labels, store.tested, store.ids, store.validation]


@pytest.mark.parametrize("moved", range(7))
def test_a_kill_while_a_damaged_store_is_replaced_loses_no_split(
    moved: int, packed: tuple[DataSpec, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, store = packed
    keep_split(store, spec, 0, tmp_path)
    kept, digest = sorted(path.name for path in store.folder.glob("splits/*.json")), store.digest
    (store.folder / "ids.json").unlink()
    (store.folder / "ids.json").mkdir()
    renamed: list[Path] = []
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if target.parent == store.folder and len(renamed) == moved:
            raise KeyboardInterrupt
        renamed.append(path)
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        pack_data(spec, tmp_path / "home")
    monkeypatch.undo()
    assert find_store(spec, tmp_path / "home") is None
    again = pack_data(spec, tmp_path / "home")
    assert (again.digest, damaged_file(again)) == (digest, None)
    assert sorted(path.name for path in again.folder.glob("splits/*.json")) == kept


def test_a_folder_in_the_place_of_a_file_is_named_and_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "checks.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder in the place of this file: '.*/checks\.json'"):
        write_bytes(tmp_path / "checks.json", b"{}")
    assert [path.name for path in tmp_path.iterdir()] == ["checks.json"]
