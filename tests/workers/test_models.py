"""Networks: torchvision's own, their stems and heads, and the weights that they may start from."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from tests.factories import CPU, member
from workers.errors import UserInputError
from workers.models.architectures.timm import Timm
from workers.models.architectures.torchvision import KNOWN, SCALABLE
from workers.models.build import build
from workers.models.network import has_linear_head, memory_format
from workers.runtime.recipe_check import why_untrainable


def test_our_resnet18_is_torchvisions() -> None:
    network = build(member(width=64, stem="imagenet"), 10, 32).eval()
    oracle = torchvision.models.resnet18(num_classes=10)
    state = {k.removeprefix("trunk."): v for k, v in network.state_dict().items() if not k.startswith("head")}
    oracle.load_state_dict(state | {f"fc.{k}": v for k, v in network.head.state_dict().items()})
    x = torch.rand(3, 3, 32, 32)
    assert torch.allclose(network(x), oracle.eval()((x - network.mean) / network.std), atol=1e-5)


def test_the_known_networks_are_torchvisions_classifiers() -> None:
    assert set(torchvision.models.list_models(module=torchvision.models)) == KNOWN


@pytest.mark.parametrize(
    "arch", ["resnet34", "resnet50", "mobilenet_v3_small", "densenet121", "squeezenet1_1", "vit_b_32", "shufflenet_v2_x0_5"]
)
def test_any_torchvision_classifier_splits_into_features_and_head(arch: str) -> None:
    network = build(member(arch=arch, width=64), 7, 64).eval()
    x = torch.rand(2, 3, 64, 64)
    assert network(x).shape == (2, 7)
    assert torch.equal(network.head(network.features(x)), network(x))
    assert has_linear_head(network) == (arch != "squeezenet1_1")


@pytest.mark.parametrize(
    ("name", "size", "mean"), [("resnet10t", 32, 0.485), ("vit_tiny_patch16_224", 64, 0.5), ("convnext_atto", 32, 0.485)]
)
def test_timms_classifiers_are_split_normalized_and_loaded(name: str, size: int, mean: float, tmp_path: Path) -> None:
    oracle = timm.create_model(name, num_classes=11, **({"img_size": size} if name.startswith("vit") else {}))
    torch.save(oracle.state_dict(), tmp_path / "w.pt")
    network = build(member(arch=f"timm/{name}", width=64, weights=tmp_path / "w.pt"), 11, size).eval()
    x = torch.rand(2, 3, size, size)
    settings = oracle.pretrained_cfg
    mean_and_std = (torch.tensor(settings[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    assert settings["mean"][0] == mean
    assert torch.allclose(network(x), oracle.eval()((x - next(mean_and_std)) / next(mean_and_std)), atol=1e-5)
    assert has_linear_head(network)
    assert torch.equal(network.head(network.features(x)), network(x))


def test_what_timm_does_not_have_is_told() -> None:
    cases = [
        ("resnet18x", 64, "the nearest is resnet18"),
        ("resnet18.none", 64, "timm has no such tag of resnet18; it has a1_in1k"),
        ("resnet18", 8, "width and stem change torchvision's ResNets only"),
    ]
    for arch, width, expected in cases:
        with pytest.raises(UserInputError, match=expected):
            build(member(arch=f"timm/{arch}", width=width), 3, 224)
    found = Timm().pretrained("resnet18")
    assert found is not None
    assert found.url == "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors"
    assert (found.file, found.pixels) == ("timm--resnet18.a1_in1k.safetensors", 224)


def test_stem_auto_depends_on_the_image_size() -> None:
    kernels = []
    for stem, size in (("auto", 32), ("auto", 64), ("cifar", 64)):
        first = build(member(stem=stem), 3, size).trunk.conv1
        assert isinstance(first, nn.Conv2d)
        kernels.append(first.kernel_size[0])
    assert kernels == [3, 7, 3]


def test_narrow_networks_keep_out_of_reach_of_a_bug_in_onednn() -> None:
    """Its float32 1x1 strided backward pass writes past a buffer in channels_last order; there such a fit crashed."""
    narrow, wide = build(member(), 3, 8), build(member(width=16), 3, 8)
    assert memory_format(narrow, CPU, "float32") is torch.contiguous_format
    assert memory_format(narrow, CPU, "bfloat16") is torch.channels_last
    assert memory_format(narrow, torch.device("cuda"), "float32") is torch.channels_last
    assert memory_format(wide, CPU, "float32") is torch.channels_last
    assert memory_format(build(member(arch="vgg11", width=64), 3, 32), CPU, "float32") is torch.channels_last


@pytest.mark.parametrize(
    ("network", "arch", "change", "expected"),
    [
        (lambda: torchvision.models.mobilenet_v3_small(num_classes=3), "resnet18", {}, "it lacks conv1.weight 64x3x7x7"),
        (lambda: torchvision.models.resnet34(), "resnet18", {}, "it has layer1.2.conv1.weight 64x64x3x3, "),
        (lambda: torchvision.models.resnet18(), "resnet18", {"stem": "cifar"}, "conv1.weight is 64x3x7x7, and 64x3x3x3 in the"),
    ],
)
def test_weights_of_another_network_are_refused(
    network: Callable[[], nn.Module], arch: str, change: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    """Also those that have all layers of this one, and more."""
    torch.save(network().state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserInputError, match=rf"are of another network than {arch}: .*{re.escape(expected)}") as error:
        build(member(arch=arch, width=64, weights=tmp_path / "w.pt", **({"stem": "imagenet"} | change)), 3, 8)
    assert ("Set `stem: imagenet`" in str(error.value)) == ("stem" in change)


def test_of_all_linear_layers_only_the_classifier_is_a_head(tmp_path: Path) -> None:
    """A vision transformer is full of them: a file without its MLPs is not its file."""
    state = torchvision.models.vit_b_32(num_classes=1000).state_dict()
    torch.save({name: value for name, value in state.items() if ".mlp." not in name}, tmp_path / "w.pt")
    spec = member(arch="vit_b_32", width=64, weights=tmp_path / "w.pt")
    with pytest.raises(UserInputError, match=r"it lacks encoder\.layers\.encoder_layer_0\.mlp\.0\.weight 3072x768, .* more"):
        build(spec, 3, 224)
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "w.pt")
    network = build(spec, 3, 224)
    assert torch.equal(network.state_dict()["trunk.encoder.ln.weight"], state["encoder.ln.weight"])
    assert network.head.out_features == 3


def test_a_members_own_file_is_started_from(tmp_path: Path) -> None:
    """Its head too, where it is for as many classes."""
    save_file(build(member(seed=1), 3, 8).state_dict(), tmp_path / "w.safetensors")
    saved = build(member(seed=1), 3, 8).state_dict()
    for classes, shares_head in ((3, True), (5, False)):
        network = build(member(seed=2, weights=tmp_path / "w.safetensors"), classes, 8)
        loaded = network.state_dict()
        assert all(torch.equal(loaded[name], saved[name]) for name in saved if name.startswith("trunk."))
        assert shares_head == (
            loaded["head.bias"].shape == saved["head.bias"].shape and torch.equal(loaded["head.bias"], saved["head.bias"])
        )


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("pwned", "w")


def test_malicious_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Evil()}, tmp_path / "w.pt")
    with pytest.raises(UserInputError, match="plain state dict"):
        build(member(weights=tmp_path / "w.pt"), 3, 8)
    assert not (tmp_path / "pwned").exists()


def test_weights_are_started_from_and_another_head_is_left_out(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(num_classes=1000).state_dict(), tmp_path / "w.pt")
    spec = member(width=64, stem="imagenet", weights=tmp_path / "w.pt")
    network = build(spec, 3, 64)
    saved = torch.load(tmp_path / "w.pt", weights_only=True)
    assert torch.equal(network.trunk.layer4[1].conv2.weight, saved["layer4.1.conv2.weight"])  # type: ignore[index,union-attr]
    assert network.head.out_features == 3


@pytest.mark.parametrize(("arch", "size", "why"), [("alexnet", 16, "Output size is too small"), ("resnet18", 16, None)])
def test_a_network_that_does_not_fit_the_images_is_noticed_without_training(arch: str, size: int, why: str | None) -> None:
    recipe = member(arch=arch, width=64, stem="auto")
    found = why_untrainable(lambda: build(recipe, 5, size), size, 5)
    assert found is None if why is None else why in str(found)


@pytest.mark.parametrize("stem", ["auto", "imagenet", "cifar"])
@pytest.mark.parametrize("arch", sorted(SCALABLE))
def test_what_nobody_tries_works_whatever_the_recipe_and_the_images(arch: str, stem: str) -> None:
    for width, size in ((4, 8), (64, 8), (4, 33), (20, 64)):
        recipe = member(arch=arch, width=width, stem=stem)
        assert why_untrainable(partial(build, recipe, 5, size), size, 5) is None
        assert has_linear_head(build(recipe, 5, size))


def test_a_network_that_needs_real_numbers_is_tried_with_them() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3 * 8 * 8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1)) * float(x.sum() + 1)  # no number comes of a tensor that has none

    assert why_untrainable(Counts, 8, 5) is None
    assert why_untrainable(Counts, 8, 4) == "it answers (2, 5) for 2 images, and not (2, 4)"


def test_multiply_adds_are_those_of_the_literature_whatever_form_a_convolution_has() -> None:
    import torchvision
    from torch import nn

    from workers.models.multiply_adds import multiply_adds
    from workers.models.small_conv import SmallConv2d, use_small_conv

    network = torchvision.models.resnet18().eval()
    assert multiply_adds(network, 224) == 1_814_073_344
    before = multiply_adds(network, 32)
    use_small_conv(network)
    assert multiply_adds(network, 32) == before
    assert any(isinstance(module, SmallConv2d) for module in network.modules()), "it is fast again"

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(2).repeat(1, 4, 1).transpose(1, 2))

    tokens, width = 16, 12
    products = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * 24
    assert multiply_adds(Attending().eval(), 4) == products
