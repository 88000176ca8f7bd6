"""All exceptions that a user can see, each with its exit code, and with its failure kind if it fails a job.

Exit codes: 1 failed, 2 rejected before anything was written, 130 stopped and resumable.
"""

import re
from enum import StrEnum


class FailureKind(StrEnum):
    """Why a job failed. `Outcome` (orchestrator/execution/job_outcomes.py) says which kinds are worth a retry."""

    UNEXPECTED = "unexpected"  # an unforeseen exception: a retry may succeed
    PERMANENT = "permanent"  # a retry would fail again: a damaged file, a bug in a user's network
    DIVERGED = "diverged"  # a loss or a weight is not finite
    ENVIRONMENT = "environment"  # the machine's versions differ from the head's
    PREEMPTED = "preempted"  # the machine went away
    STOPPED = "stopped"  # stopped on request; a checkpoint is written


class ConclaveError(Exception):
    """Base class. The message says what is wrong, where, and what to do."""

    exit_code = 1
    kind = FailureKind.PERMANENT


def first_few(texts: list[str], most: int = 3) -> str:
    """Join the first texts with commas, and count the others."""
    return ", ".join(texts[:most]) + (f" and {len(texts) - most:,} more" if len(texts) > most else "")


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type's name if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def last_line(error: BaseException) -> str:
    """Return the last line of a message that holds a traceback, which says what went wrong; "" if the message is empty."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()]
    return next((line for line in reversed(lines) if line.strip("^~ ")), "")


class UserInputError(ConclaveError):
    """Bad input, noticed before anything started and before anything was written."""

    exit_code = 2


class DivergedError(ConclaveError):
    """A member's loss or weights became NaN or infinite. Training it again would do the same."""

    kind = FailureKind.DIVERGED


class EnvironmentMismatchError(ConclaveError):
    """A machine's versions differ from the head's, and the team does not allow that."""

    kind = FailureKind.ENVIRONMENT


class DeviceMemoryError(ConclaveError):
    """Not even two images at a time fit into the device's memory."""


class RayLostError(ConclaveError):
    """Ray ended, and all trainers with it. Finished work is kept."""


class StoreUnavailableError(ConclaveError):
    """The tracking store does not answer. A later retry may succeed."""

    kind = FailureKind.UNEXPECTED


class IncompleteTransferError(ConclaveError):
    """Data from another machine has not arrived, or is incomplete. A retry may succeed."""

    kind = FailureKind.UNEXPECTED


class CorruptFileError(ConclaveError):
    """A file does not match its checksum, or cannot be read."""


class TrainingStopped(ConclaveError):  # noqa: N818  # a requested stop is not an error
    """The training stopped on request. Its checkpoint is written."""

    exit_code = 130
    kind = FailureKind.STOPPED
