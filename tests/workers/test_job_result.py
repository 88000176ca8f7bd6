"""What a failed job means: whether another try may end otherwise."""

from __future__ import annotations

import pytest
import torch

from orchestrator.execution.job_outcomes import outcome_of_result
from tests.factories import job
from workers.errors import CorruptFileError, IncompleteTransferError, StoreUnavailableError
from workers.runtime.job_result import Failure, JobResult


def shapes_that_do_not_fit() -> None:
    torch.zeros(2, 3) @ torch.zeros(4, 5)


def a_class_that_is_not_there() -> None:
    torch.nn.functional.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 7]))


def a_typing_mistake() -> None:
    torch.nn.Linear(3, 4).no_such_thing  # noqa: B018


def a_module_that_is_not_there() -> None:
    import nowhere_at_all  # type: ignore[import-not-found]  # noqa: F401


def failing(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("fails", "cause"),
    [
        (shapes_that_do_not_fit, None),
        (a_class_that_is_not_there, None),
        (a_typing_mistake, None),
        (a_module_that_is_not_there, None),
        (lambda: failing(ConnectionResetError("by peer")), "errors"),
        (lambda: failing(StoreUnavailableError("tracking http://t: it does not answer.")), "errors"),
        (lambda: failing(IncompleteTransferError("the data came over with another digest.")), "errors"),
        (lambda: failing(CorruptFileError("checkpoint/1: it was changed.")), None),
        (lambda: failing(OSError(28, "No space left on device")), "errors"),
        (lambda: failing(RuntimeError("CUDA error: an illegal memory access was encountered")), "errors"),
        (lambda: failing(torch.OutOfMemoryError("CUDA out of memory")), "errors"),
    ],
)
def test_only_what_may_end_otherwise_is_tried_again(fails: object, cause: str | None) -> None:
    try:
        fails()  # type: ignore[operator]
    except Exception as error:  # whatever it is
        outcome = outcome_of_result(job("m"), JobResult(Failure.of(error)))
    assert outcome.kind == "failed"
    assert outcome.cause == cause
