"""The registered model, as MLflow serves it: in a process that has no Conclave."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from fusion.export.fused_model import Combiner, FusedModel
from fusion.export.onnx_export import ModelCard, export_model
from fusion.methods.vote import Vote
from fusion.serving.entries import list_entries
from fusion.serving.predictor import Predictor
from tests.factories import member, run_one
from tests.inputs import picture
from tests.workers.test_inputs import FILES, spec
from workers.config.specs import TrainSpec
from workers.data.packing import pack_data
from workers.data.store import Store
from workers.models.build import build
from workers.tracking.served_model import ServedModel
from workers.tracking.served_package import save_served_model
from workers.training.augmentation import to_float
from workers.training.task import TrainingData

SIZE = 16
SERVE = """
import json, sys
import mlflow.pyfunc
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import scoring_server

model = mlflow.pyfunc.load_model(sys.argv[1])

def answer(body):  # what MLflow's server does with a request
    try:
        done = scoring_server.invocations(json.dumps(body), "application/json", model, model.metadata.get_input_schema())
        return done.status, json.loads(done.response)
    except MlflowException as error:
        return error.get_http_status_code(), json.loads(error.serialize_as_json())

answers = [answer(body) for body in json.load(sys.stdin)]
assert not {"workers", "torch", "conclave"} & set(sys.modules)
print(json.dumps(answers))
"""


class Served:
    """Images of every format, what was made of them, and the model that was trained on them."""

    def __init__(self, place: Path) -> None:
        self.place, self.root = place, place / "images"
        for number, (suffix, encode) in enumerate(FILES.items()):
            for hue, name in enumerate(("cat", "dog")):
                (self.root / name).mkdir(parents=True, exist_ok=True)
                (self.root / name / f"{number}{suffix}").write_bytes(encode(picture(hue, number, (20, 30))))
        self.store: Store = pack_data(spec(self.root, image_size=SIZE), place / "home")
        images, labels = torch.from_numpy(np.array(self.store.images)), torch.from_numpy(np.array(self.store.labels))
        rows, recipe = torch.arange(len(labels)), member()
        trained = run_one(
            lambda: build(recipe, 2, SIZE),
            TrainingData(images, labels, rows, None),
            recipe,
            TrainSpec(epochs=1, batch_size=8),
        )
        network = trained.network.eval()
        fused = FusedModel([network], Combiner(Vote, {"weights": torch.ones(1)}), 1.0).eval()
        with torch.inference_mode():
            self.probabilities = network(to_float(images)).softmax(1).numpy()
            exported = fused(images).double().numpy()
        self.onnx = place / "fused.onnx"
        card = ModelCard([recipe], self.store.classes, {}, image_bits=self.store.record.bits)
        export_model(fused, card, self.onnx, np.asarray(self.store.images), exported)
        save_served_model(self.onnx, place / "model")

    def ask(self, *bodies: object) -> list[tuple[int, Any]]:
        """Return status and answer of MLflow's server to each request."""
        command = [sys.executable, "-P", "-c", SERVE, str(self.place / "model")]
        done = subprocess.run(command, input=json.dumps(bodies), capture_output=True, text=True, cwd=self.place, check=False)
        assert done.returncode == 0, done.stderr
        return [tuple(answer) for answer in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("served"))


def test_an_image_of_each_format_gets_the_same_probabilities_everywhere(served: Served) -> None:
    """By the network that was trained on it, by `predict`, and by the served model, as a file and as pixels."""
    files = [base64.b64encode((served.root / name).read_bytes()).decode() for name in served.store.ids]
    pixels = np.asarray(served.store.images)
    answers = served.ask(
        {"inputs": files},
        {"instances": [{"image": file} for file in files]},
        {"dataframe_split": {"columns": ["image"], "data": [[file] for file in files]}},
        {"inputs": {"images": [f"data:image/jpeg;base64,{file}" for file in files]}},
        {"inputs": pixels.tolist()},
        {"inputs": {"images": pixels.astype(float).tolist()}},
    )
    assert {status for status, _ in answers} == {200}, answers
    for _, answer in answers:
        assert np.abs(np.array(answer["predictions"]["probabilities"]) - served.probabilities).max() < 1e-4
        assert answer["predictions"]["labels"] == [served.store.classes[best] for best in served.probabilities.argmax(1)]
    assert served.probabilities.std(0).max() > 1e-3, "the images differ for the model"
    predicted = {
        one.name: one.probabilities for one in Predictor(served.onnx).predictions(list_entries([served.root], ExitStack(), print))
    }
    assert np.abs(np.stack([predicted[name] for name in served.store.ids]) - served.probabilities).max() < 1e-4
    assert len({Path(name).suffix for name in predicted}) == len(FILES)


def test_the_model_page_names_the_class_of_each_probability(served: Served) -> None:
    described = Model.load(str(served.place / "model"))
    assert described.metadata == {"classes": served.store.classes}
    assert [output.name for output in described.signature.outputs.inputs] == ["probabilities", "labels"]


def test_what_the_model_cannot_mean_is_refused_in_a_sentence(served: Served) -> None:
    scaled = np.asarray(served.store.images[:1]) / 255
    answers = served.ask({"inputs": scaled.tolist()}, {"inputs": ["no image"]}, {"inputs": [base64.b64encode(b"no").decode()]})
    assert [status for status, _ in answers] == [400] * 3
    for (_, answer), why in zip(answers, ("the images seem to be scaled to 1", "is not base64", "Image 0 can't be"), strict=True):
        assert why in answer["message"]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), "scaled to 1"),
        (np.full((1, 8, 8, 3), 0.5), "scaled to 1"),
        (np.full((1, 8, 8, 3), 256), "from 256 to 256"),
        (np.full((1, 8, 8, 3), -1.0), "scaled to 1|from -1"),
        (np.full((1, 8, 8, 3), np.nan), "from nan"),
        (np.zeros((1, 3, 8, 8), np.uint8), r"\(1, 3, 8, 8\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"\(0, 8, 8, 3\)"),
        ([np.zeros((8, 8, 3)), np.zeros((9, 9, 3))], "differ in shape"),
        ({"a": np.zeros((1, 8, 8, 3)), "b": 1}, "2 inputs were sent"),
        ([None], "neither numbers nor image files"),
        ([b"GIF89a"], "Image 0 can't be decoded"),
    ],
)
def test_each_kind_of_array_that_is_refused(given: object, why: str, served: Served) -> None:
    with pytest.raises(MlflowException, match=why):
        ServedModel(str(served.onnx)).predict(given)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16])
def test_whole_numbers_are_never_taken_for_scaled_ones(dtype: type, served: Served) -> None:
    dark: np.ndarray[Any, Any] = np.ones((2, SIZE, SIZE, 3), dtype)
    found = ServedModel(str(served.onnx)).predict(dark)["probabilities"]
    assert np.abs(found - Predictor(served.onnx).predict_proba(dark.astype(np.uint8))).max() < 1e-6


def test_images_of_other_sizes_are_cut_as_for_training(served: Served) -> None:
    model = ServedModel(str(served.onnx))
    large = np.asarray(picture(1, 5, (40, 60)))
    content = (served.root / "dog" / "0.png").read_bytes()
    assert model.predict(large)["probabilities"].shape == (1, 2)
    assert np.array_equal(model.predict([content])["probabilities"], model.predict(content)["probabilities"])
