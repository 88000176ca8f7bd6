"""Read images in one folder per class, telling parts, classes and wrapper folders apart by their names.

Ambiguous layouts are rejected. Nothing is guessed from a single file.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path, PurePosixPath

from workers.data.archives import list_files
from workers.data.images import is_image
from workers.data.known_formats import items_of_known_format
from workers.data.layout import PARTS, Item, Layout
from workers.data.leftovers import SkippedFiles, is_leftover
from workers.errors import UserInputError, first_few

EXPECTED = "Expected CLASS/IMAGE or train/CLASS/IMAGE."
FEWEST_REPEATED = 2  # if all top folders share this many subfolders, either level could be the classes


@dataclass
class _Folder:
    """A folder of the tree built from the file names.

    Attributes:
        path: Its path; "." at the top.
        folders: Its subfolders by name.
        images: The images directly in it.
        others: The other files directly in it.
    """

    path: PurePosixPath
    folders: dict[str, _Folder] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def all_images(self) -> list[str]:
        return [*self.images, *(name for folder in self.folders.values() for name in folder.all_images())]

    def all_others(self) -> list[str]:
        return [*self.others, *(name for folder in self.folders.values() for name in folder.all_others())]

    @cached_property
    def has_images(self) -> bool:
        return bool(self.images) or any(folder.has_images for folder in self.folders.values())

    @cached_property
    def with_images(self) -> dict[str, _Folder]:
        return {name: folder for name, folder in self.folders.items() if folder.has_images}

    @cached_property
    def parts(self) -> dict[str, str]:
        """The part of each subfolder whose name says that it is a part."""
        return _named_parts(list(self.folders))


def items_of_classes(layout: Layout) -> Iterator[Item]:
    """Yield the images in one folder per class, and set the layout's notes, origins and skipped files.

    Raises:
        UserInputError: If the layout of the folders is unknown or ambiguous.
    """
    root = layout.root()
    files = list_files(root, layout.open_files, layout.scratch, layout.spec.encoding)
    if (known := items_of_known_format(root, files)) is not None:
        parts = sorted({item.part for item in known if item.part})
        yield from layout.placed(known, {part: f"{root.name}'s part {part}" for part in parts})
        return
    base, origins = _unwrapped(_tree([name for name, _ in files], layout.skipped)), dict[str, str]()
    labels = _labels_of_parts(base, root, layout, origins) if base.parts else _labels_of_classes(base, "", root, layout)
    start = len(base.path.parts) and len(f"{base.path}/")
    items = [Item(name[start:], *labels[name], content) for name, content in files if name in labels]
    yield from layout.placed(sorted(items, key=lambda item: item.part == "val"), origins)  # val/ last, as in earlier versions


def _tree(names: Sequence[str], skipped: SkippedFiles) -> _Folder:
    """Return the tree of these files, with forward slashes in their names. Counts those that are not images."""
    top = _Folder(PurePosixPath())

    @cache
    def place(path: str) -> _Folder:
        """Return the folder of this path, or the nearest one above it that is no leftover."""
        if not path:
            return top
        above, _, name = path.rpartition("/")
        return place(above) if is_leftover(path) else place(above).folders.setdefault(name, _Folder(PurePosixPath(path)))

    for name in names:
        folder, _, file = name.rpartition("/")
        if is_image(file) and not is_leftover(name):
            place(folder).images.append(name)
        else:
            place(folder).others.append(name)
            skipped.add(name)
    return top


def _unwrapped(folder: _Folder) -> _Folder:
    """Skip wrapper folders, which hold nothing but one subfolder without images directly in it."""
    while not folder.images and not folder.parts and len(inside := folder.with_images) == 1:
        [only] = inside.values()
        if only.images:
            return folder
        folder = only
    return folder


def _named_parts(names: Sequence[str]) -> dict[str, str]:
    """Map folder names to parts: `train` always, `training_set` only next to a folder such as `test_set`."""
    exact = {name: PARTS[name.casefold()] for name in names if name.casefold() in PARTS}
    if exact:
        return exact
    words = {name: re.split(r"[\W_]+", name.casefold()) for name in names}
    within = {name: [word for word in of_name if word in PARTS] for name, of_name in words.items()}
    parts = {name: PARTS[found[0]] for name, found in within.items() if len(found) == 1}
    others = {tuple(word for word in words[name] if word not in PARTS) for name in parts}
    is_split = "train" in parts.values() and len(set(parts.values())) > 1 and len(others) == 1  # training_set and test_set
    return parts if is_split else {}


def _labels_of_parts(base: _Folder, root: Path, layout: Layout, origins: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Map each image name to its class and part, reading the folders of `base` as parts. Adds the parts' origins."""
    parts, labels, paths = {name: base.folders[name] for name in base.parts}, dict[str, tuple[str, str]](), dict[str, str]()
    _refuse_strangers(base, parts, root)
    for name, folder in parts.items():
        part = base.parts[name]
        if part in paths:
            raise UserInputError(f"{root}: {folder.path} and {paths[part]} are both the part {part}. Keep one of them.")
        classes = _folder_of_classes(folder, [other for other in parts.values() if other is not folder])
        _check_part(folder, classes, root)
        paths[part] = folder.path.as_posix()
        if classes.images and part != "train":
            layout.notes.append(
                f"{folder.path} holds {len(classes.images):,} images in no class folders: they are left out; `conclave predict` "
                "takes them"
            )
        else:
            labels |= _labels_of_classes(classes, part, root, layout)
            origins[part] = f"the folder {folder.path}"
    if "train" not in paths:
        raise UserInputError(f"{root}: there is {', '.join(paths.values())}, but no train/ to train on. {EXPECTED}")
    return labels


def _refuse_strangers(base: _Folder, parts: Mapping[str, _Folder], root: Path) -> None:
    """Raise UserInputError for images outside the parts."""
    for name, folder in base.with_images.items():
        if name not in parts:
            raise UserInputError(
                f"{root}: the folder {folder.path} lies beside {next(iter(parts.values())).path}, which is a part of the data. "
                f"{name} is not the name of a part (train, val or test). Move it elsewhere, or rename it."
            )
    if base.images:
        raise UserInputError(f"{root}: {base.images[0]} is in no class folder. {EXPECTED}")


def _folder_of_classes(part: _Folder, others: Sequence[_Folder]) -> _Folder:
    """Return the folder of a part that holds its classes, not skipping folders that are classes in other parts."""
    known = {name for other in others for name in _unwrapped(other).with_images}
    return part if known & set(part.with_images) else _unwrapped(part)


def _check_part(folder: _Folder, classes: _Folder, root: Path) -> None:
    if not folder.has_images:
        files = folder.all_others()
        example = f", such as {files[0]}" if files else ""
        raise UserInputError(f"{root}: {folder.path} holds no image by its name{example}. Fill it, or remove it.")
    if classes.with_images and classes.images:
        raise UserInputError(f"{root}: {classes.images[0]} is in no class folder, while other images of {classes.path} are.")


def _labels_of_classes(base: _Folder, part: str, root: Path, layout: Layout) -> dict[str, tuple[str, str]]:
    """Map each image name to its class and part, reading each folder of `base`, at any depth, as a class."""
    if base.images:
        raise UserInputError(f"{root}: {base.images[0]} is in no class folder. {EXPECTED}")
    for name, folder in base.folders.items():
        if not folder.has_images and (others := folder.all_others()):
            raise UserInputError(
                f"{root}: none of the {len(others)} files in the folder {folder.path} is an image by its name ({others[0]}). "
                f"If {name} is a class, save its images in a known format; else move the folder elsewhere."
            )
    _refuse_two_meanings(base.with_images, root)
    for path in sorted((root / base.path).iterdir()) if root.is_dir() else ():
        if path.is_dir() and not is_leftover(path.name) and not any(inside.is_file() for inside in path.rglob("*")):
            layout.notes.append(f"{path.relative_to(root)} is empty, and therefore no class")
    return {
        image: (unicodedata.normalize("NFC", name), part)
        for name, folder in base.with_images.items()
        for image in folder.all_images()
    }


def _refuse_two_meanings(classes: Mapping[str, _Folder], root: Path) -> None:
    """Raise UserInputError if the subfolders could be the classes as well.

    That is the case if all top folders share subfolders, or if a subfolder has the name of a part.
    """
    for name, folder in classes.items():
        if named := _named_parts(list(_unwrapped(folder).with_images)):
            part = next(iter(named))
            raise UserInputError(
                f"{root}: is {name} a class? It holds {part}, which is the name of a part. Put the folders of the parts side by "
                "side, or rename it."
            )
    inner = [set(_unwrapped(folder).with_images) for folder in classes.values() if not folder.images]
    if len(inner) == len(classes) > 1 and len(common := set.intersection(*inner)) >= FEWEST_REPEATED:
        raise UserInputError(
            f"{root}: are {first_few(sorted(classes))} the classes, or {first_few(sorted(common))}, which each of them holds? "
            "Name the outer folders train, val and test if they are parts, or say the class of each file in a manifest."
        )
