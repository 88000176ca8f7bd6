"""Match the ids of a table with images: by their path, or by what tells them apart of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from workers.data.tables import Table
from workers.errors import UserInputError, first_few


def find_images(ids: Iterable[str], names: Iterable[str], what: str) -> dict[str, str]:
    """Return the image of each id that has one. An id may be an image's path or file name, with or without the extension.

    Args:
        ids: The ids.
        names: The images' paths within the given folders or archives.
        what: The table, for messages.

    Raises:
        UserInputError: If an id fits several images.
    """
    levels: list[dict[str, list[str]]] = [{}, {}, {}, {}]  # the closest match first
    for name in names:
        path = PurePosixPath(name)
        for level, key in zip(levels, (name, path.with_suffix("").as_posix(), path.name, path.stem), strict=True):
            level.setdefault(key, []).append(name)
    images = {}
    for one in ids:
        fitting = next((level[key] for key in (one, PurePosixPath(one).name) for level in levels if key in level), [])
        if len(fitting) > 1:
            raise UserInputError(f"{what}: the id {one} fits {fitting[0]} and {fitting[1]}.")
        if fitting:
            images[one] = fitting[0]
    return images


def match_ids(ids: Sequence[str], names: Sequence[str], what: str) -> dict[str, str]:
    """Return the image of each id, as `find_images` does. Raises UserInputError if an id has none."""
    images = find_images(ids, names, what)
    if missing := [one for one in ids if one not in images]:
        raise UserInputError(
            f"{what}: {len(missing):,} of {len(ids):,} ids have no image, such as {first_few(missing)}. The images are called "
            f"{names[0] if names else 'nothing'}, for example."
        )
    return images


def column_of_ids(table: Table, classes: Sequence[str]) -> str | None:
    """Return the first column whose values are all different, and no classes of the model; None without one."""
    for name in table.header:
        values = [row[name] for _, row in table.rows]
        if all(values) and len(set(values)) == len(values) and not all(value in classes for value in values):
            return name
    return None


def labels_of_table(table: Table, classes: Sequence[str], names: Sequence[str], what: str) -> Mapping[str, str]:
    """Return the label of each image that a table names.

    Args:
        table: A column of paths or ids, and a column of labels.
        classes: The model's classes.
        names: The images' paths within the given folders or archives.
        what: The table, for messages.

    Raises:
        UserInputError: If the columns aren't clear, or a label is no class of the model.
    """
    ids = "path" if "path" in table.header else column_of_ids(table, classes)
    others = [name for name in table.header if name != ids]
    known = [name for name in others if all(row[name] in classes for _, row in table.rows)]
    labels = "label" if "label" in table.header else known[0] if len(known) == 1 else others[0] if len(others) == 1 else None
    if ids is None or labels is None:
        raise UserInputError(
            f"{what}: the columns path and label are needed; there are {first_few(table.header, 10)}. Rename the column of the "
            f"{'labels' if ids else 'paths'}."
        )
    if unknown := [row[labels] for _, row in table.rows if row[labels] not in classes]:
        twin = next((name for name in classes if name.casefold() == unknown[0].casefold()), None)
        hint = f", where it is spelled {twin!r}" if twin else f", which knows {first_few(list(classes), 10)}"
        raise UserInputError(f"{what}: {unknown[0]!r} in the column {labels} is no class of the model{hint}.")
    given = {row[ids]: row[labels] for _, row in table.rows}
    images = find_images(given, names, what)  # a table may name more images than are predicted
    if not images:
        match_ids(list(given), names, what)
    return {images[one]: label for one, label in given.items() if one in images}
