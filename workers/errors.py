"""Every exception a user can meet, on one screen. The exit code belongs to the exception."""


class ConclaveError(Exception):
    """Base: a sentence that says what is wrong, where, and what to do."""

    exit_code = 1


class Rejected(ConclaveError):
    """Bad input, found before anything started and before anything was written."""

    exit_code = 2


class Diverged(ConclaveError):
    """A member's loss or weights became NaN or infinite; training it again would do the same."""


class OtherEnvironment(ConclaveError):
    """A machine computes with other versions than the head, and the team wants none such."""


class OutOfDeviceMemory(ConclaveError):
    """Not even two images at a time fit on the device."""


class Preempted(ConclaveError):
    """The machine of a fit's processes went away."""


class Corrupt(ConclaveError):
    """A file's content does not match the checksum in its manifest."""


class Stopped(ConclaveError):
    """Somebody asked the fit to stop; its checkpoint is written."""

    exit_code = 130
