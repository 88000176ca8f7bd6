"""Every exception that a user can meet, on one screen. Each one carries its exit code, and its kind where it fails a job.

Exit codes: 1 failed, 2 rejected before anything was written, 130 stopped and resumable.
"""

from enum import StrEnum


class FailureKind(StrEnum):
    """Why a job failed. `Outcome` (orchestrator/execution/job_outcomes.py) says which kinds are worth another try."""

    UNEXPECTED = "unexpected"  # an exception that is none of ours: another try may succeed
    PERMANENT = "permanent"  # the same the next time: a damaged file, a mistake in a user's network
    DIVERGED = "diverged"  # a loss or a weight is not finite
    ENVIRONMENT = "environment"  # the machine computes with other versions
    PREEMPTED = "preempted"  # the machine went away
    STOPPED = "stopped"  # somebody asked for it; a checkpoint is written


class ConclaveError(Exception):
    """Base class: a sentence that says what is wrong, where it is, and what to do."""

    exit_code = 1
    kind = FailureKind.PERMANENT


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception of a library says, or its type's name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class UserInputError(ConclaveError):
    """Bad input, noticed before anything started and before anything was written."""

    exit_code = 2


class DivergedError(ConclaveError):
    """A member's loss or weights became NaN or infinite. Training it again would do the same."""

    kind = FailureKind.DIVERGED


class EnvironmentMismatchError(ConclaveError):
    """A machine computes with other versions than the head, and the team allows no such machine."""

    kind = FailureKind.ENVIRONMENT


class DeviceMemoryError(ConclaveError):
    """Not even two images at a time fit into the device's memory."""


class PreemptedError(ConclaveError):
    """The machine that ran a training's processes went away."""

    kind = FailureKind.PREEMPTED


class RayLostError(ConclaveError):
    """Ray itself is gone, and with it all trainers. What they made so far is kept."""


class StoreAwayError(ConclaveError):
    """The tracking store does not answer. Asked again later, it may."""

    kind = FailureKind.UNEXPECTED


class NotArrivedError(ConclaveError):
    """What another machine sends has not arrived, or not whole. It may do so the next time."""

    kind = FailureKind.UNEXPECTED


class CorruptFileError(ConclaveError):
    """A file does not hold what its checksum promises, or cannot be read at all."""


class TrainingStopped(ConclaveError):  # noqa: N818  # a stop that somebody asked for is not an error
    """Somebody asked the training to stop. Its checkpoint is written."""

    exit_code = 130
    kind = FailureKind.STOPPED
