"""A folder or an archive of images, in one folder per class."""

from __future__ import annotations

from collections.abc import Iterator

from workers.config.extensions import LAYOUTS
from workers.data.class_folders import items_of_classes
from workers.data.layout import Item, Layout


@LAYOUTS.register
class Folder(Layout):
    """A folder or an archive of CLASS/IMAGE files, or of train/CLASS/IMAGE files with optional val/ and test/."""

    def items(self) -> Iterator[Item]:
        """Yield every image."""
        yield from items_of_classes(self)
