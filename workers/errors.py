"""Every exception that a user can meet, on one screen. Each one carries its exit code.

Exit codes: 1 failed, 2 rejected before anything was written, 130 stopped and resumable.
"""


class ConclaveError(Exception):
    """Base class: a sentence that says what is wrong, where it is, and what to do."""

    exit_code = 1


class UserInputError(ConclaveError):
    """Bad input, noticed before anything started and before anything was written."""

    exit_code = 2


class DivergedError(ConclaveError):
    """A member's loss or weights became NaN or infinite. Training it again would do the same."""


class EnvironmentMismatchError(ConclaveError):
    """A machine computes with other versions than the head, and the team allows no such machine."""


class DeviceMemoryError(ConclaveError):
    """Not even two images at a time fit into the device's memory."""


class PreemptedError(ConclaveError):
    """The machine that ran a training's processes went away."""


class CorruptFileError(ConclaveError):
    """A file does not hold what its checksum promises, or cannot be read at all."""


class TrainingStopped(ConclaveError):  # noqa: N818  # a stop that somebody asked for is not an error
    """Somebody asked the training to stop. Its checkpoint is written."""

    exit_code = 130
