"""One exported model, several ways to run it: the same answers, within what is stated."""

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from fusion.export import quantization as quantize
from fusion.export.fused_model import Combiner, FusedModel
from fusion.export.onnx_export import ModelCard, export_model
from fusion.export.onnx_session import Images
from fusion.methods.vote import Vote
from fusion.serving import predictor as predict
from fusion.serving import runtimes
from fusion.serving.predictor import BATCH, Predictor
from fusion.serving.runtimes import TOLERANCES, Probabilities
from workers.config.specs import MemberSpec
from workers.errors import UserInputError
from workers.models.build import build

SIZE = 16
SPECS = [MemberSpec(name=f"m{seed}", seed=seed, width=8) for seed in (1, 2)]


@pytest.fixture(scope="module")
def images() -> Images:
    return np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture
def model(tmp_path: Path, images: Images) -> Path:
    return exported(tmp_path, images)


def exported(folder: Path, images: Images, flips: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    networks = [build(spec, 3, SIZE).eval() for spec in SPECS]
    fused = FusedModel(networks, Combiner(Vote, {"weights": torch.full((2,), 0.5)}), 1.3, flips).eval()
    with torch.inference_mode():
        expected = fused(torch.from_numpy(images)).double().numpy()
    export_model(fused, ModelCard(SPECS, ["x", "y", "z"], {}), folder / "fused.onnx", images, expected)
    return folder / "fused.onnx"


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_a_model_that_flips_answers_a_mirror_image_as_the_image(runtime: str, images: Images, tmp_path: Path) -> None:
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    flipping, plain = (Predictor(exported(tmp_path / str(flips), images, flips), runtime) for flips in (True, False))
    assert np.abs(flipping.predict_proba(images) - flipping.predict_proba(mirrored)).max() <= TOLERANCES["torch"]
    assert np.abs(plain.predict_proba(images) - plain.predict_proba(mirrored)).max() > TOLERANCES["torch"]


@pytest.mark.parametrize("runtime", ["torch", "torch-bfloat16"])
def test_torch_answers_as_onnx_runtime_does(runtime: str, model: Path, images: Images) -> None:
    expected = Predictor(model, "onnx").predict_proba(images)
    found = Predictor(model, runtime).predict_proba(images)
    assert 0 < np.abs(found - expected).max() <= TOLERANCES[runtime], "another way, and the same answers"


def slow(self: Predictor, images: Images) -> Probabilities:
    time.sleep(0.2)
    return self.session.run(None, {"images": images})[0]  # type: ignore[no-any-return]


def test_the_faster_one_is_taken_where_there_is_much_to_do(model: Path, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Predictor, "_run_onnx", slow)
    few = Predictor(model)
    first = few.predict_proba(images)
    assert few.run is None, "too little to load torch for"
    monkeypatch.setattr(predict, "PATIENCE_SECONDS", 0.1)
    second = few.predict_proba(images)
    assert few.runtime == "torch"
    assert np.abs(first - second).max() <= TOLERANCES["torch"]


def test_what_is_slower_or_answers_otherwise_is_not_taken(model: Path, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "PATIENCE_SECONDS", -1.0)
    monkeypatch.setattr(runtimes, "_seconds", lambda run, images: float("onnx" not in run.__qualname__))
    slower = Predictor(model)
    slower.predict_proba(images)
    assert slower.runtime == "onnx"
    monkeypatch.setattr(Predictor, "_run_onnx", lambda self, images: np.full((len(images), 3), 1 / 3, np.float32))
    other = Predictor(model)
    other.predict_proba(images)
    assert other.runtime == "onnx"
    with pytest.raises(UserInputError, match="differs by"):
        Predictor(model, "torch").predict_proba(images)


def test_a_model_without_its_torch_form_is_run_by_onnx_runtime(
    model: Path, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.with_suffix(".safetensors").unlink()
    monkeypatch.setattr(predict, "PATIENCE_SECONDS", -1.0)
    alone = Predictor(model)
    alone.predict_proba(images)
    assert alone.runtime == "onnx"
    with pytest.raises(UserInputError, match="safetensors beside the model"):
        Predictor(model, "torch").predict_proba(images)


def test_a_torch_form_of_another_export_is_not_run(
    model: Path, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a killed export leaves them: the weights of the new one, of other sizes, beside the record of the one before."""
    other = build(SPECS[0].model_copy(update={"width": 4}), 3, SIZE).eval()
    save_file(
        FusedModel([other], Combiner(Vote, {"weights": torch.ones(1)}), 1.0).state_dict(), model.with_suffix(".safetensors")
    )
    monkeypatch.setattr(predict, "PATIENCE_SECONDS", -1.0)
    one = Predictor(model)
    one.predict_proba(images)
    assert one.runtime == "onnx"
    with pytest.raises(UserInputError, match="does not belong to its"):
        Predictor(model, "torch").predict_proba(images)
    model.with_suffix(".json").write_text("{")
    with pytest.raises(UserInputError, match="can't run this model"):
        Predictor(model, "torch").predict_proba(images)


def test_convolutions_become_integers_however_many_classes_there_are(model: Path) -> None:
    """Three classes, and kernels of three by three."""
    kinds = {node.name: node.op_type for node in onnx.load(str(model)).graph.node}
    assert "Conv" in kinds.values()
    light = quantize._last_layers(model)
    assert light
    assert {kinds[name] for name in light} <= {"Gemm", "MatMul"}


@pytest.mark.parametrize("change", ["another input", "floats", "channels first", "more classes", "no classes"])
def test_a_foreign_model_is_refused_in_a_sentence(change: str, model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    [given] = proto.graph.input
    if change == "another input":
        for node in proto.graph.node:
            node.input[:] = ["pixels" if name == given.name else name for name in node.input]
        given.name = "pixels"
    elif change == "floats":
        given.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    elif change == "channels first":
        given.type.tensor_type.shape.dim[1].dim_value, given.type.tensor_type.shape.dim[3].dim_value = 3, SIZE
    else:
        values = {"more classes": '["x", "y", "z", "w"]', "no classes": "3"}
        for entry in proto.metadata_props:
            entry.value = values[change] if entry.key == "classes" else entry.value
    foreign = tmp_path / "foreign.onnx"
    onnx.save(proto, foreign)
    with pytest.raises(UserInputError, match="not a model that Conclave exported"):
        Predictor(foreign)
