"""Write pixels to a .npy file row by row, without knowing the number of rows in advance."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES = 128  # NumPy leaves room in a header for a first axis of any length


class PixelFile:
    """A growing .npy file of (N, size, size, 3) uint8. Use it as a context manager; the header is written on exit.

    Attributes:
        rows: Number of rows so far.
        hasher: SHA-256 of the pixels so far.

    Args:
        path: The file, overwritten if it exists.
        size: Side of the images in pixels.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.size, self.rows, self.hasher = size, 0, hashlib.sha256()
        self.file = path.open("wb")
        self.file.write(bytes(HEADER_BYTES))

    def append(self, pixels: NDArray[np.uint8]) -> None:
        """Append rows (n, size, size, 3) uint8. Raises OSError if the disk is full."""
        content = np.ascontiguousarray(pixels)
        self.file.write(content.data)
        self.hasher.update(content.data)
        self.rows += len(content)

    def __enter__(self) -> PixelFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self.file:
            if error is None:
                self.file.seek(0)
                np.lib.format.write_array_header_1_0(
                    self.file, {"descr": "|u1", "fortran_order": False, "shape": (self.rows, self.size, self.size, 3)}
                )
                assert self.file.tell() == HEADER_BYTES
