"""The fusion step: finished trainings in, fitted fusions and one model out; and refits of it.

`fuse` may run in another process, which imports MODULES while the last members train. This package imports none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusion.results import FusionDetails
    from orchestrator.fusing.request import FusionRequest

# The step, and what it would import on its way: to fit, to count multiply-adds and to export. All take seconds together.
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
    """Run the fusion step."""
    from orchestrator.fusing import step

    return step.fuse(request)
