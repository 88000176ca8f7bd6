"""The result of a job: success, or a failure with its traceback."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from workers.errors import ConclaveError, FailureKind

DETERMINISTIC_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(NameError, SyntaxError, TypeError, ValueError),
)
DEVICE_ERROR_WORDS = ("CUDA", "cuDNN", "CUDNN", "CUBLAS", "NCCL", "HIP", "memory", "onnection", "imeout", "timed out")


@dataclass(frozen=True)
class Failure:
    """Why a job did not succeed.

    Attributes:
        kind: Kind of failure.
        sentence: What happened, for the user.
        trace: The traceback, for the job's log; may be empty.
    """

    kind: FailureKind
    sentence: str
    trace: str = ""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Convert an exception to a failure. Call this in an `except` clause."""
        if isinstance(error, ConclaveError):
            return cls(error.kind, str(error), traceback.format_exc())
        kind = FailureKind.PERMANENT if _is_deterministic(error) else FailureKind.UNEXPECTED
        return cls(kind, f"{type(error).__name__}: {error}", traceback.format_exc())


def _is_deterministic(error: Exception) -> bool:
    """Return whether a retry would fail the same way: the code has a bug, or its shapes do not match."""
    if type(error) is RuntimeError:  # torch raises it for mismatched shapes; device and network errors name their source
        return not any(name in str(error) for name in DEVICE_ERROR_WORDS)
    return isinstance(error, DETERMINISTIC_ERRORS)


@dataclass(frozen=True)
class JobResult:
    """The result of a job.

    Attributes:
        failure: Why it failed; None if all of its artifacts are published.
    """

    failure: Failure | None = None
