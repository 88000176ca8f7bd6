"""A folder or an archive of images, in one folder per class."""

from __future__ import annotations

from collections.abc import Iterator

from workers.config.extensions import LAYOUTS
from workers.data.class_folders import class_folders, count_images
from workers.data.layout import Item, Layout


@LAYOUTS.register
class Folder(Layout):
    """CLASS/IMAGE, or train/CLASS/IMAGE and test/CLASS/IMAGE, in a folder or an archive."""

    def expected(self) -> int | None:
        """Return the number of images in a folder."""
        return count_images(self.root())

    def items(self) -> Iterator[Item]:
        """Yield every image."""
        yield from class_folders(self.root(), self._count_skipped)
