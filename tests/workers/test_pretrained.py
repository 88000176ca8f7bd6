"""Published weights, from a server on loopback in the place of the library's: what is downloaded, checked and told."""

from __future__ import annotations

import errno
import hashlib
import http.server
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torchvision

from orchestrator.config.loader import load_team
from orchestrator.home import Home
from orchestrator.planning.start_weights import fetch_weights, published_weights
from tests.factories import sweep_inline
from workers.errors import UserInputError
from workers.models import pretrained
from workers.models.architectures.torchvision import KNOWN, OWN_INPUT, Torchvision
from workers.models.pretrained import cached_file, download
from workers.models.source import PretrainedWeights

CONTENT = bytes(range(256)) * 5000


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `contents` by path; a path in `cut` loses its connection halfway."""

    contents: ClassVar[dict[str, bytes]]
    cut: ClassVar[set[str]]
    asked: ClassVar[list[str]]

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.asked.append(name)
        if name not in self.contents:
            self.send_error(404)
            return
        content = self.contents[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if name in self.cut else content)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Handler]]:
    """A server that a mirror's address leads to, and an empty cache."""
    kind = type("Own", (Handler,), {"contents": {}, "cut": set(), "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setenv(pretrained.MIRROR, f"http://127.0.0.1:{running.server_address[1]}")
        monkeypatch.setenv("CONCLAVE_CACHE", str(tmp_path / "cache"))
        yield kind
        running.shutdown()


def weights(content: bytes = CONTENT) -> PretrainedWeights:
    digest = hashlib.sha256(content).hexdigest()[:8]
    return PretrainedWeights(f"https://nowhere.invalid/net-{digest}.pth", f"net-{digest}.pth", digest, len(content))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_is_downloaded_once_and_again_if_it_is_damaged(server: type[Handler], tmp_path: Path) -> None:
    one, said = weights(), list[str]()
    server.contents[one.file] = CONTENT
    path = download(one, said.append)
    assert path == cached_file(one)
    assert path.read_bytes() == CONTENT
    assert re.fullmatch(rf"downloading {one.file} \(1 MB\) from http://127\.0\.0\.1:\d+/{one.file}", said[0])
    assert download(one, said.append) == path
    assert server.asked == [one.file]
    path.write_bytes(CONTENT[:-1])
    assert download(one, said.append).read_bytes() == CONTENT
    assert files(tmp_path / "cache") == [one.file]


def test_a_file_whose_source_names_no_hash_is_checked_against_its_first_download(server: type[Handler], tmp_path: Path) -> None:
    one = weights()._replace(sha256="")
    server.contents[one.file] = CONTENT
    path = download(one, lambda _: None)
    path.write_bytes(CONTENT[:-1] + b"x")
    assert download(one, lambda _: None).read_bytes() == CONTENT
    assert len(server.asked) == 2
    for file in (tmp_path / "cache" / "weights").iterdir():
        file.unlink()
    path.write_bytes(b"put there by hand")
    assert download(one, lambda _: None).read_bytes() == b"put there by hand"


@pytest.mark.parametrize("fault", ["missing", "cut", "other", "offline", "full"])
def test_what_cannot_be_downloaded_is_told_with_the_place_to_put_it(
    fault: str, server: type[Handler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = weights()
    if fault != "missing":
        server.contents[one.file] = CONTENT[::-1] if fault == "other" else CONTENT
    if fault == "cut":
        server.cut.add(one.file)
    if fault == "offline":
        monkeypatch.delenv(pretrained.MIRROR)
    if fault == "full":
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    expected = {
        "missing": r"can't be downloaded \(Not Found\)",
        "cut": r"can't be downloaded \(the connection ended after [\d,]+ of 1,280,000 bytes\)",
        "other": rf"can't be downloaded \(it is another file, whose SHA-256 begins with \w{{8}} and not with {one.sha256}\)",
        "offline": rf"https://nowhere.invalid/{one.file}: can't be downloaded \(",
        "full": rf"there is no room for {one.file} \(1 MB\) in .*Free some, or set CONCLAVE_CACHE to a folder on another disk",
    }
    with pytest.raises(UserInputError, match=expected[fault]) as error:
        download(one, lambda _: None)
    assert fault == "full" or f"Put the file at {cached_file(one)}, and run again." in str(error.value)
    assert files(tmp_path / "cache") == []
    if fault == "offline":
        cached_file(one).write_bytes(CONTENT)
        assert download(one, lambda _: None) == cached_file(one)


def test_every_network_of_torchvision_has_a_checked_file_or_is_refused() -> None:
    """The name of each of its files tells the beginning of its hash."""
    none = {name for name in KNOWN if Torchvision().pretrained(name) is None}
    assert none == {*OWN_INPUT, "efficientnet_v2_l"}
    for name in KNOWN - none:
        found = Torchvision().pretrained(name)
        assert found is not None
        assert len(found.sha256) >= 8
        assert found.size > 1e6
        assert found.pixels >= 192


TEAM = """\
version: 1
name: tiny
data: {dataset: digits, image_size: 64, folds: 0}
train: {epochs: 1, batch_size: 64}
fusion: [vote]
quorum: 1
members:
  - {name: a, arch: squeezenet1_1, weights: imagenet, freeze: backbone}
"""


def test_a_sweep_starts_from_published_weights(server: type[Handler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fresh weights in the library's file; its hash is not the library's, so that is taken from the file."""
    torch.manual_seed(3)
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:8]
    published = PretrainedWeights("https://nowhere.invalid/w.pth", f"w-{digest}.pth", digest, len(content), 224)
    monkeypatch.setattr(Torchvision, "pretrained", lambda self, name: published)
    server.contents[published.file] = content
    team_file = tmp_path / "team.yaml"
    team_file.write_text(TEAM.replace("squeezenet1_1", "mobilenet_v3_small"))
    said: list[str] = []
    summary = sweep_inline(team_file, tmp_path / "home", say=said.append).summary
    assert summary.state == "done"
    assert "the weights of mobilenet_v3_small were trained on images of 224 pixels; here data.image_size is 64" in said
    again = sweep_inline(team_file, tmp_path / "home").summary
    assert (again.trained, server.asked) == (0, [published.file])
    team = fetch_weights(load_team(team_file), Home(tmp_path / "home"), said.append)
    assert [recipe.weights for recipe in team.recipes] == [cached_file(published)]


def test_an_architecture_without_usable_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text(TEAM.replace("squeezenet1_1", "googlenet"))
    with pytest.raises(UserInputError, match="member a: googlenet has no published weights that take images"):
        published_weights(load_team(tmp_path / "team.yaml"))
    (tmp_path / "team.yaml").write_text(TEAM.replace("squeezenet1_1", '"own:Net"'))
    with pytest.raises(UserInputError, match="a network of your own loads its weights itself"):
        load_team(tmp_path / "team.yaml")
