"""Write the pixels of a data set to one .npy file, row after row, without knowing how many rows there will be."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES = 128  # NumPy leaves room in a header for a first axis of any length


class PixelFile:
    """A .npy file of (N, size, size, 3) uint8 that grows. Use it as a context manager; its header is written at the end.

    Attributes:
        rows: Number of rows so far.
        hasher: SHA-256 of the pixels so far.

    Args:
        path: The file, which is written anew.
        size: Side of the images in pixels.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.size, self.rows, self.hasher = size, 0, hashlib.sha256()
        self.file = path.open("wb")
        self.file.write(bytes(HEADER_BYTES))

    def append(self, pixels: NDArray[np.uint8]) -> None:
        """Write rows (n, size, size, 3) uint8. Raises OSError where the disk is full."""
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
