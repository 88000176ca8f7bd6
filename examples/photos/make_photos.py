"""Write a folder of small photographs, taken from the archive of CIFAR-10's JPEG files: DIR/train/CLASS/ and DIR/test/CLASS/.

    python examples/photos/make_photos.py ARCHIVE DIR [COUNT] [CLASS ...]

COUNT photographs (240) are for training and two thirds as many for testing, of five classes in equal parts. They have 32 x 32
pixels: what a network sees of them at 224 is enlarged, and shows less than real photographs would.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
from pathlib import Path

CLASSES = ("bird", "cat", "deer", "dog", "horse")


def main(archive: str, folder: str, count: str = "240", *classes: str) -> None:
    """Take the first photographs of each class."""
    names = classes or CLASSES
    left = {("train", name): int(count) // len(names) for name in names}
    left |= {("test", name): int(count) * 2 // 3 // len(names) for name in names}
    with tarfile.open(archive) as tar:
        for entry in tar:
            path = Path(entry.name)
            part = (path.parent.parent.name, path.parent.name)
            if entry.isfile() and (content := tar.extractfile(entry)) and left.get(part, 0):
                left[part] -= 1
                target = Path(folder, *part, path.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "wb") as file:
                    shutil.copyfileobj(content, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
