"""What comes back from a job: nothing where its artifacts are published, else a failure with its traceback."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from workers.errors import ConclaveError, FailureKind

MISTAKES = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(NameError, SyntaxError, TypeError, ValueError),
)
OF_DEVICES = ("CUDA", "cuDNN", "CUDNN", "CUBLAS", "NCCL", "HIP", "memory", "onnection", "imeout", "timed out")


@dataclass(frozen=True)
class Failure:
    """Why a job did not succeed.

    Attributes:
        kind: What kind of failure it is.
        sentence: What happened, for people.
        trace: The traceback, for the job's log; empty where there is none.
    """

    kind: FailureKind
    sentence: str
    trace: str = ""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Return the failure that an exception is, in an `except` clause."""
        if isinstance(error, ConclaveError):
            return cls(error.kind, str(error), traceback.format_exc())
        kind = FailureKind.PERMANENT if _is_deterministic(error) else FailureKind.UNEXPECTED
        return cls(kind, f"{type(error).__name__}: {error}", traceback.format_exc())


def _is_deterministic(error: Exception) -> bool:
    """Return whether a program would fail in the same way the next time: it contains a mistake, or its shapes do not fit."""
    if type(error) is RuntimeError:  # torch's own for shapes that do not fit; what a device or a network reports has other types
        return not any(name in str(error) for name in OF_DEVICES)
    return isinstance(error, MISTAKES)


@dataclass(frozen=True)
class JobResult:
    """The result of a job.

    Attributes:
        failure: Why it failed; None where all of its artifacts are published.
        version: Version of this form. A driver and its trainers run the same one, which the environment check sees to.
    """

    failure: Failure | None = None
    version: int = 1
