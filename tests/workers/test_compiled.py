"""torch.compile: the same training up to rounding, the same bits each time, cut off and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.factories import CPU, Cut, data, digest, member, run_one
from workers.config.specs import TrainSpec
from workers.diagnostics.callback import TrainingCallback
from workers.errors import ConclaveError, TrainingStopped
from workers.models.network import Network
from workers.storage.checkpoints import Checkpoints
from workers.training.compilation import compile_network
from workers.training.task import TrainingResult

SETTINGS = {"epochs": 2, "batch_size": 16, "precision": "float32"}


def small_network() -> Network:
    """A network with a convolution and a batch norm: compiling a ResNet takes two minutes."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return Network(nn.Sequential(*layers), nn.Linear(16, 3))


def test_a_compiled_training_is_the_plain_one_up_to_rounding_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    spec = member(optimizer={"kind": "sgd", "lr": 0.01}, augment=("flip", "crop"))

    def run(folder: Path, callback: TrainingCallback, compiles: bool = True) -> TrainingResult:
        settings = TrainSpec.model_validate({**SETTINGS, "compile": compiles})
        return run_one(small_network, data(), spec, settings, Checkpoints(folder, "me"), callback)

    whole = run(tmp_path / "whole", TrainingCallback())
    plain = run(tmp_path / "plain", TrainingCallback(), compiles=False)
    for name, value in plain.network.state_dict().items():
        assert torch.allclose(whole.network.state_dict()[name], value, atol=1e-4), name
    assert digest(whole) != digest(plain), "it was not compiled at all"
    with pytest.raises(TrainingStopped):
        run(tmp_path / "cut", Cut(7))
    assert digest(run(tmp_path / "cut", TrainingCallback())) == digest(whole)


def test_a_machine_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConclaveError, match="needs a C\\+\\+ compiler"):
        compile_network(torch.nn.Linear(2, 2), "default", CPU)


@pytest.mark.parametrize(("several", "mode"), [(False, "max-autotune"), (True, "max-autotune-no-cudagraphs")])
def test_gradients_of_several_passes_are_kept_out_of_cuda_graphs(
    several: bool, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def compiled(model: torch.nn.Module, **options: Any) -> torch.nn.Module:
        asked.append(options["mode"])
        return model

    monkeypatch.setattr(torch, "compile", compiled)
    compile_network(torch.nn.Linear(2, 2), "max-autotune", torch.device("cuda"), several)
    assert asked == [mode]
