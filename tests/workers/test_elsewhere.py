"""A machine with another disk: what it borrows, verifies, keeps and throws away."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.factories import job
from workers.config.job import Job
from workers.config.specs import DataSpec
from workers.data import packing as data
from workers.data.splits import get_split, keep_split, read_split
from workers.data.store import Store, content_digest
from workers.errors import ConclaveError
from workers.runtime import localize as elsewhere
from workers.runtime.localize import DriverDisk


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    home = tmp_path_factory.mktemp("driver")
    store = data.pack_data(DataSpec(), home)
    keep_split(store, DataSpec(), 0, home)
    return store


def trained_on(packed: Store) -> Job:
    return job("a").model_copy(update={"store": packed.folder, "split": get_split(packed, DataSpec(), 0).key})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONCLAVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def borrowing(packed: Store) -> tuple[Job, list[str], elsewhere.Read]:
    asked: list[str] = []
    one = trained_on(packed)

    def read(name: str, offset: int) -> bytes:
        asked.append(name)
        return elsewhere.read_chunk(one, name, offset)

    return one, asked, read


def test_the_data_comes_once_and_is_the_same(packed: Store, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "CHUNK_BYTES", 10_000)
    one, asked, read = borrowing(packed)
    there = elsewhere.localize_job(one, read)
    assert (there.home, there.store) == (cache / "home", cache / "data" / packed.digest)
    assert content_digest(Store(there.store)) == packed.digest
    for name in Store.FILES:
        assert (there.store / name).read_bytes() == (packed.folder / name).read_bytes()
    assert read_split(Store(there.store), one.split).key == one.split
    assert asked.count("images.npy") > 10, "in pieces"
    asked.clear()
    assert elsewhere.localize_job(one, read) == there
    assert asked == ["store.json"], "nothing comes over twice"


def test_what_was_changed_on_the_way_is_not_taken(packed: Store, cache: Path) -> None:
    one, _, read = borrowing(packed)

    def spoiled(name: str, offset: int) -> bytes:
        chunk = read(name, offset)
        return chunk[:-1] + bytes([chunk[-1] ^ 1]) if name == "images.npy" and chunk else chunk

    with pytest.raises(ConclaveError, match="came over with digest"):
        elsewhere.localize_job(one, spoiled)
    assert list((cache / "data").glob("[!.]*")) == []
    assert elsewhere.localize_job(one, read).store.is_dir()


def test_no_other_file_is_lent(packed: Store) -> None:
    (packed.folder.parent / "secret").write_text("secret")
    for name in ("../secret", "/etc/passwd", "secret"):
        with pytest.raises(ConclaveError, match="not a file of a packed store"):
            elsewhere.read_chunk(job("a").model_copy(update={"store": packed.folder}), name, 0)


def test_the_weights_to_start_from_come_too_and_are_checked(packed: Store, cache: Path, tmp_path: Path) -> None:
    content = os.urandom(50_000)
    (tmp_path / "w.safetensors").write_bytes(content)
    one, asked = trained_on(packed), list[str]()
    recipe = one.recipe.model_copy(update={"weights": tmp_path / "w.safetensors"})
    one = one.model_copy(update={"recipe": recipe, "weights_sha256": hashlib.sha256(content).hexdigest()})

    def read(name: str, offset: int) -> bytes:
        asked.append(name)
        return elsewhere.read_chunk(one, name, offset)

    there = elsewhere.localize_job(one, read).recipe.weights
    assert there is not None
    assert (there.parent, there.read_bytes()) == (cache / "weights", content)
    asked.clear()
    elsewhere.localize_job(one, read)
    assert "weights" not in asked
    with pytest.raises(ConclaveError, match="didn't arrive complete"):
        elsewhere.localize_job(one.model_copy(update={"weights_sha256": "0" * 64}), read)


def test_a_digest_that_is_none_never_becomes_a_path(packed: Store, cache: Path) -> None:
    one, _, _ = borrowing(packed)
    with pytest.raises(ConclaveError, match="no digest"):
        elsewhere.localize_job(one, lambda name, offset: b'{"digest": "../../outside"}')
    assert not cache.exists()


def test_the_longest_unused_goes_first_and_what_is_in_use_stays(cache: Path) -> None:
    places = [
        cache / "data" / "old",
        cache / "home/jobs/middle",
        cache / "data/new",
        cache / "home/jobs/busy",
        cache / "data/own",
    ]
    for age, place in zip((50, 40, 30, 60, 70), places, strict=True):
        place.mkdir(parents=True)
        (place / "content").write_bytes(bytes(1000))
        os.utime(place, (1e9 - age, 1e9 - age))
    with FileLock(cache / "home/jobs/busy/.lock"):
        elsewhere.evict_cache(cache, 3500, {cache / "data/own"})
    assert [place.name for place in places if place.exists()] == ["new", "busy", "own"]


def test_what_goes_while_it_is_counted_is_no_trouble(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer at work removes its older checkpoints, and another one makes room too."""
    place = cache / "home/jobs/busy/checkpoint"
    place.mkdir(parents=True)
    (place / "a").write_bytes(bytes(1000))
    walk = os.walk

    def removed(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for found in walk(top):
            yield found[0], found[1], [*found[2], "gone"]

    monkeypatch.setattr(os, "walk", removed)
    assert elsewhere._folder_bytes(cache / "home/jobs/busy") == 1000
    assert elsewhere._last_used(cache / "home/jobs/gone") == 0


def test_a_disk_is_known_by_what_its_marker_says(tmp_path: Path) -> None:
    marker = tmp_path / ".holder"
    assert not DriverDisk(marker, "process 1 on here").is_visible()
    marker.write_text("process 2 on there")
    assert not DriverDisk(marker, "process 1 on here").is_visible(), "a home of the same name on another machine"
    marker.write_text("process 1 on here")
    assert DriverDisk(marker, "process 1 on here").is_visible()
