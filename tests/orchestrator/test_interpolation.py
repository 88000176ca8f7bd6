"""Images are resized as for the published weights: in training, in the packed data, by predict and where the model is served."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusion.serving.entries import Entry
from fusion.serving.predictor import Predictor
from orchestrator.config.team import Team
from orchestrator.home import Home
from orchestrator.planning.start_weights import locate_weights
from tests.factories import sweep_inline, team_of
from tests.inputs import NETWORK, classes, picture
from workers.data.images import decode, resize
from workers.data.packing import pack_data
from workers.models.architectures.torchvision import Torchvision
from workers.tracking.served_model import ServedModel

TEAM = """\
version: 2
name: tiny
data: {dataset: folder, root: images, image_size: 24, folds: 0, fuse_fraction: 0.25, interpolation: bicubic}
train: {epochs: 1, batch_size: 16}
defaults: {arch: "small:Small", augment: [], optimizer: {kind: sgd, lr: 0.001}}
fusion: [vote]
members: [{name: a}, {name: b}]
"""


def test_images_are_resized_by_the_library_s_own_filters() -> None:
    image = picture(0, 1, (40, 40))
    content = io.BytesIO()
    image.save(content, "PNG")
    for kind in ("bilinear", "bicubic"):
        expected = np.asarray(image.resize((24, 24), Image.Resampling[kind.upper()]))
        assert np.array_equal(decode(content.getvalue(), 24, interpolation=kind), expected)  # type: ignore[arg-type]
        assert np.array_equal(resize(np.asarray(image), 24, kind), expected)  # type: ignore[arg-type]


def test_bicubic_values_of_16_bits_do_not_wrap() -> None:
    """Beside an edge they overshoot."""
    edge = np.zeros((40, 40), np.uint16)
    edge[:, 20:] = 65535
    content = io.BytesIO()
    Image.fromarray(edge).save(content, "PNG")
    found = decode(content.getvalue(), 24, interpolation="bicubic")
    assert found[:, :8].max() == 0
    assert found[:, -8:].min() == 255


def networks(*names: str, data: str = "{image_size: 64}") -> Team:
    members = ", ".join(f"{{name: m{i}, arch: {name}, weights: imagenet}}" for i, name in enumerate(names))
    return team_of(f"version: 2\nname: t\ndata: {data}\nfusion: [vote]\nmembers: [{members}]\n")


@pytest.mark.parametrize(
    ("team", "expected"),
    [
        (networks("efficientnet_b0"), "bicubic"),
        (networks("efficientnet_b0", "efficientnet_b1"), None),  # torchvision resized for b1's newer weights bilinearly
        (networks("mobilenet_v3_small"), None),
        (networks("efficientnet_b0", data="{image_size: 64, interpolation: bilinear}"), "bilinear"),
    ],
)
def test_the_published_weights_say_how_if_they_agree(team: Team, expected: str | None, tmp_path: Path) -> None:
    kinds = {
        name: getattr(Torchvision().pretrained(name), "interpolation", None) for name in ("efficientnet_b0", "efficientnet_b1")
    }
    assert kinds == {"efficientnet_b0": "bicubic", "efficientnet_b1": "bilinear"}
    assert locate_weights(team, Home(tmp_path)).data.interpolation == expected


def test_a_model_resizes_as_its_training_did_wherever_it_runs(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(NETWORK)
    classes(tmp_path / "images", {"cat": 30, "dog": 30})
    (tmp_path / "team.yaml").write_text(TEAM)
    summary = sweep_inline(tmp_path / "team.yaml", tmp_path / "home").summary
    assert summary.model
    home = Home(tmp_path / "home")
    state = home.sweep("tiny").state()
    assert state is not None
    store = json.loads((home.path / "data" / state.store / "store.json").read_text())
    assert store["interpolation"] == "bicubic"
    path = tmp_path / "new.png"
    picture(0, 99, (50, 50)).save(path)
    predictor = Predictor(Path(summary.model))
    [predicted] = predictor.predictions([Entry("new.png", "new.png", path)])
    pixels = {kind: decode(path, 24, interpolation=kind) for kind in ("bilinear", "bicubic")}  # type: ignore[arg-type]
    assert not np.array_equal(pixels["bilinear"], pixels["bicubic"])
    expected = predictor.predict_proba(pixels["bicubic"][None])[0]
    assert np.array_equal(np.asarray(predicted.probabilities), expected)
    assert not np.allclose(expected, predictor.predict_proba(pixels["bilinear"][None])[0], atol=1e-6, rtol=0)
    served = ServedModel(summary.model)
    assert np.allclose(served.predict([path.read_bytes()])["probabilities"][0], expected, atol=1e-6)
    assert np.allclose(served.predict(np.asarray(Image.open(path))[None])["probabilities"][0], expected, atol=1e-6)


def test_another_interpolation_packs_the_images_anew(tmp_path: Path) -> None:
    classes(tmp_path / "images", {"cat": 5, "dog": 5})
    team = team_of(TEAM.replace("root: images", f"root: {tmp_path / 'images'}"))
    one = pack_data(team.data, tmp_path / "home")
    other = pack_data(team.data.model_copy(update={"interpolation": None}), tmp_path / "home")
    assert one.folder != other.folder
    assert (one.record.interpolation, other.record.interpolation) == ("bicubic", "bilinear")
