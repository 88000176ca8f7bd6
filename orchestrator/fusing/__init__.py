"""The fusion step and its refits: finished trainings in, fitted fusions and one exported model out.

`fuse` may run in another process, which imports MODULES while the last members train. This package imports none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusion.results import FusionDetails
    from orchestrator.fusing.request import FusionRequest

# The step and its lazy imports, for fitting, counting multiply-adds and exporting. Together they take seconds.
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
