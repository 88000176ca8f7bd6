"""Write pixels to a .npy file without knowing the number of rows in advance."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES = 128  # NumPy leaves room in a header for a first axis of any length


def write_header(file: BinaryIO, rows: int, size: int) -> None:
    """Write the header of an array of (rows, size, size, 3) uint8 at the start of a file."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (rows, size, size, 3)})
    assert file.tell() == HEADER_BYTES


def keep_rows(path: Path, kept: NDArray[np.int64], rows_at_once: int) -> None:
    """Remove all but these rows, which are in ascending order, from a .npy file of pixels."""
    pixels = np.load(path, mmap_mode="r+")
    for start in range(0, len(kept), rows_at_once):
        rows = kept[start : start + rows_at_once]
        pixels[start : start + len(rows)] = pixels[rows]
    pixels.flush()
    with path.open("r+b") as file:
        write_header(file, len(kept), pixels.shape[1])
        file.truncate(HEADER_BYTES + len(kept) * pixels[0].nbytes)
