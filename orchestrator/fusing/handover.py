"""Hand the fusion step to another process, which imports early what the step needs. The driver imports nothing of it."""

from __future__ import annotations

from fusion.results import FusionDetails
from orchestrator.fusing.request import FusionRequest

# The step, and what it would import only on its way: to fit, to count multiply-adds and to export. All take seconds together.
MODULES = (
    "orchestrator.fusing.step",
    "sklearn.model_selection",
    "torch._dynamo",
    "torchvision",
    "torch._functorch.aot_autograd",
    "torch.onnx._internal.exporter._core",
    "onnxscript.function_libs.torch_lib.ops",
    "onnx.reference",
    "onnxruntime",
)


def fuse(request: FusionRequest) -> FusionDetails:
    """Call the fusion step, wherever this is."""
    from orchestrator.fusing import step

    return step.fuse(request)
