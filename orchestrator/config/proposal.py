"""Propose a team file for a folder, an archive or a table of images, with the reason for each line."""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from workers.config.extensions import LAYOUTS
from workers.config.specs import Column, DataSpec
from workers.data.archives import is_archive, read
from workers.data.class_folders import EXPECTED
from workers.data.images import is_image
from workers.data.layout import Item, Layout
from workers.data.tables import PARQUET, read_table
from workers.errors import UserInputError

TABLES = (".csv", ".tsv", ".txt", *PARQUET)
FEW_IMAGES = 2000  # below, no *fuse* part is set apart
FEW_FOR_FOLDS = 500  # below, more folds, each of which trains on more of the images
USUAL_FOLDS, MANY_FOLDS = 5, 10
SMALL = 64  # pixels up to which networks are trained from scratch, if there are enough images
ENOUGH_FROM_SCRATCH = 5000
PHOTO_SIZE = 224  # that the published weights were trained at
IMBALANCED = 10
NOT_THERE = "the file is not there"
SAMPLED = 60  # images whose sizes are looked at
COLUMN_NAMES: dict[Column, tuple[str, ...]] = {  # names that tables give the columns, the likeliest first
    "path": ("path", "file", "filename", "file_name", "filepath", "image_path", "image", "img", "image_id", "id"),
    "label": ("label", "class", "category", "target", "species", "breed", "diagnosis", "labels", "class_name", "y"),
    "split": ("split", "part", "subset", "set"),
    "group": ("group", "patient", "patient_id", "subject", "subject_id", "lesion_id", "burst", "scene"),
    "fold": ("fold",),
    "weight": ("weight",),
}


@dataclass(frozen=True)
class Facts:
    """What is known of a data set without decoding its images.

    Attributes:
        spec: How it is read.
        counts: Number of images of each class that are trained on or split.
        parts: The parts that the data set has itself.
        side: Median of the shorter sides of the images in pixels; None if unknown.
        groups: Number of groups of the class that has the fewest; 0 if images belong to no groups.
        folds: Number of folds that the data set gives; 0 if it gives none.
    """

    spec: DataSpec
    counts: dict[str, int]
    parts: frozenset[str]
    side: int | None
    groups: int = 0
    folds: int = 0

    @property
    def source(self) -> Path:
        """The folder, the archive or the table."""
        return self.spec.manifest or self.spec.root or Path()

    @property
    def images(self) -> int:
        """Number of images that are trained on or split."""
        return sum(self.counts.values())


def examine(source: Path) -> Facts:
    """Look at a data set: names, labels, and the sizes of a few images.

    Args:
        source: A folder, an archive, or a table of images.

    Raises:
        UserInputError: If it can't be read as images with labels.
    """
    if not source.exists():
        raise UserInputError(f"{source}: there is no such folder or file. Give a folder, an archive or a table of images.")
    errors = []
    for spec in _ways_to_read(source.resolve()):
        try:
            return _examined(spec)
        except UserInputError as error:
            errors.append(error)
    nearest = (error for error in errors if NOT_THERE not in str(error))  # the other tables' images are somewhere else
    raise next(nearest, errors[0])


def _ways_to_read(source: Path) -> Iterator[DataSpec]:
    """Yield data specifications for a source, the likeliest first."""
    if source.is_file() and source.suffix.lower() in TABLES:
        yield from _ways_to_read_table(source)
        return
    yield DataSpec(dataset="folder", root=source, validation="fuse")
    for path in sorted(source.iterdir()) if source.is_dir() else ():
        if path.is_file() and path.suffix.lower() in TABLES:
            yield from _ways_to_read_table(path)
        elif path.is_file() and is_archive(path):
            yield DataSpec(dataset="folder", root=path, validation="fuse")


def _ways_to_read_table(table: Path) -> Iterator[DataSpec]:
    """Yield data specifications for a table: its images beside it, or in a folder there, with or without an extension."""
    try:
        columns = _columns(table)
    except UserInputError:  # reading it says why
        columns = {}
    spec = DataSpec(dataset="manifest", manifest=table, columns=columns, validation="fuse")
    yield spec
    for folder in (None, *(path for path in sorted(table.parent.iterdir()) if path.is_dir())):
        inside = spec.model_copy(update={"root": folder})
        if folder:
            yield inside
        suffixes = Counter(path.suffix for path in (folder or table.parent).iterdir() if is_image(path.name))
        for suffix, _ in suffixes.most_common(1):
            yield inside.model_copy(update={"extension": suffix})


def _examined(spec: DataSpec) -> Facts:
    """Return the facts of a data set that is read this way. Raises UserInputError if it can't be."""
    layout: Layout = LAYOUTS[spec.dataset](spec)
    with tempfile.TemporaryDirectory() as scratch, layout.open_files:
        layout.scratch = Path(scratch)
        items = list(layout.items())
        side = _median_side(items)
    used = [item for item in items if item.part in ("", "train")]
    if len({item.label for item in used}) < 2:
        raise UserInputError(f"{spec.manifest or spec.root}: a classifier needs images of at least two classes. {EXPECTED}")
    return Facts(
        spec=spec,
        counts=dict(sorted(Counter(item.label for item in used).items())),
        parts=frozenset(item.part for item in items if item.part),
        side=side,
        groups=_fewest_groups(used),
        folds=len({item.fold for item in used if item.fold is not None}),
    )


def _fewest_groups(items: Sequence[Item]) -> int:
    """Return the number of groups of the class that has the fewest, an image without one counting as one; 0 without groups."""
    if not any(item.group for item in items):
        return 0
    units = {(item.label, item.group or item.id) for item in items}
    return min(Counter(label for label, _ in units).values())


def _columns(table: Path) -> dict[Column, str]:
    """Return the names of a table's columns by role, where they differ from the role."""
    header = read_table(table).header
    lower = {name.lower(): name for name in reversed(header)}
    found = {role: next((lower[name] for name in names if name in lower), None) for role, names in COLUMN_NAMES.items()}
    return {role: name for role, name in found.items() if name is not None and name != role}


def _median_side(items: Sequence[Item]) -> int | None:
    """Return the median of the shorter sides of a few images, or None if none can be opened."""
    from PIL import Image

    sides = []
    for item in items[:: max(1, len(items) // SAMPLED)][:SAMPLED]:
        if not isinstance(item.content, bytes | Path) and hasattr(item.content, "shape"):
            sides.append(min(item.content.shape[:2]))
            continue
        try:
            content = read(item.content)
            with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
                sides.append(min(image.size))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # packing names the ones that can't be read
            continue
    return round(median(sides)) if sides else None


@dataclass(frozen=True)
class Setting:
    """A line of a team file, and the reason for it, which becomes a comment above."""

    text: str
    reason: str = ""

    def lines(self) -> Iterator[str]:
        """Yield the comment and the line."""
        if self.reason:
            indent = len(self.text) - len(self.text.lstrip(" "))
            yield f"{' ' * indent}# {self.reason}"
        yield self.text


def propose(facts: Facts, target: Path, from_scratch: bool = False) -> str:
    """Return a commented team file for a data set.

    Args:
        facts: What is known of the data set.
        target: The file that it is for, which paths are relative to.
        from_scratch: True to propose networks without published weights.
    """
    photos = not from_scratch and ((facts.side or PHOTO_SIZE) > SMALL or facts.images < ENOUGH_FROM_SCRATCH)
    settings = [
        Setting("version: 2"),
        Setting(f"name: {_name(facts)}"),
        Setting("data:"),
        *_data(facts, target, photos),
        *(_frozen(facts) if photos else _from_scratch(facts)),
        *_balance(facts),
        Setting("quorum: 2", "Fuse what is done if a member fails."),
    ]
    head = [
        "# yaml-language-server: $schema=conclave.schema.json",
        f"# Proposed by `conclave init` for {facts.images:,} images of {len(facts.counts):,} classes{_sides(facts)}.",
        f"# `conclave sweep {target.name} --smoke` tries it in a minute. docs/reference/team-file.md explains every key.",
    ]
    return "\n".join([*head, *(line for setting in settings for line in setting.lines())]) + "\n"


def _sides(facts: Facts) -> str:
    return f", {facts.side:,} pixels at the shorter side" if facts.side else ""


def _name(facts: Facts) -> str:
    """Return a team's name made of that of the images' folder or archive."""
    source = facts.spec.manifest.parent if facts.spec.manifest else facts.source
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.name.split(".")[0]).strip("-._")
    return name[:64] or "team"


def _data(facts: Facts, target: Path, photos: bool) -> Iterator[Setting]:
    folder, spec = target.resolve().parent, facts.spec

    def shown(path: Path) -> str:
        return json.dumps(str(path.relative_to(folder) if path.is_relative_to(folder) else path), ensure_ascii=False)

    if spec.manifest:
        yield Setting("  dataset: manifest", "A table of images and labels.")
        yield Setting(f"  manifest: {shown(spec.manifest)}")
        if spec.columns:
            columns = ", ".join(f"{role}: {json.dumps(name, ensure_ascii=False)}" for role, name in spec.columns.items())
            yield Setting(f"  columns: {{{columns}}}", "The table's own names of its columns.")
        if spec.extension:
            yield Setting(f"  extension: {spec.extension}", "The table's paths lack it.")
    else:
        yield Setting("  dataset: folder", "Images in one folder per class.")
    if spec.root:
        yield Setting(f"  root: {shown(spec.root)}")
    size, reason = _size(facts, photos)
    yield Setting(f"  image_size: {size}", reason)
    yield from _split(facts, photos)


def _size(facts: Facts, photos: bool) -> tuple[int, str]:
    if photos:
        return PHOTO_SIZE, "The published weights were trained at this size."
    side = facts.side or SMALL
    size = next((step for step in (16, 32, 64, 96, 128) if step >= side * 0.8), 128)
    return size, f"The images have about {side:,} pixels." if facts.side else "A usual size."


def _split(facts: Facts, photos: bool) -> Iterator[Setting]:
    rest = float(facts.images)
    if not facts.parts & {"test", "val"}:
        share = _share(0.2, facts)
        yield Setting(f"  test_fraction: {share:g}", "Set apart for the last score; nothing is chosen by it.")
        rest *= 1 - share
    if rest < FEW_IMAGES:
        yield Setting("  fuse: out_of_fold", f"{rest:,.0f} images are too few to set some apart for choosing a fusion.")
    elif not facts.parts >= {"test", "val"}:
        yield Setting("  fuse_fraction: 0.1", f"About {rest / 10:,.0f} images, by which a fusion is chosen.")
    folds = facts.folds or _folds(rest, (facts.groups or median(facts.counts.values())) * rest / facts.images, photos)
    why = "given by the data" if facts.folds else f"each leaves {1 - 1 / folds:.0%} of the images to train on"
    groups = ". Images of a group stay together" if facts.groups else ""
    yield Setting(f"  folds: {folds}", f"Trainings of each member for the stack; {why}{groups}.")


def _folds(images: float, of_a_class: float, photos: bool) -> int:
    """Return a number of folds: more for few images with frozen backbones, but no more than a class has images or groups."""
    wanted = MANY_FOLDS if photos and images < FEW_FOR_FOLDS else USUAL_FOLDS
    return next((folds for folds in (MANY_FOLDS, USUAL_FOLDS, 3) if folds <= min(wanted, of_a_class)), 2)


def _share(wanted: float, facts: Facts) -> float:
    """Return a share of the images that has room for one of each class, near the wanted one."""
    return max(wanted, -(-1000 * len(facts.counts) // facts.images) / 1000)


def _frozen(facts: Facts) -> Iterator[Setting]:
    yield Setting("train: {epochs: 40, batch_size: 32, schedule: one_cycle}", "Of the last layers alone, which takes seconds.")
    yield Setting("defaults:")
    yield Setting("  weights: imagenet", "Published weights, downloaded once. Photos are hardly ever trained from scratch.")
    yield Setting("  freeze: backbone", "Features are computed once for each image, and all folds use them.")
    yield Setting("  optimizer: {kind: adamw, lr: 0.001, weight_decay: 0.05}")
    if _is_imbalanced(facts):
        yield Setting("  class_weights: balanced", "Rare classes weigh as much in the loss as frequent ones.")
    yield Setting("members:", "Different networks err differently, and that is what an ensemble gains by.")
    yield Setting("  - {name: efficientnet, arch: efficientnet_b0}")
    yield Setting("  - {name: mobilenet, arch: mobilenet_v3_large}")
    yield Setting("  - {name: resnet, arch: resnet18}")
    yield Setting("fusion: [vote, concat, stack]", "concat learns from all features, stack from all answers.")


def _from_scratch(facts: Facts) -> Iterator[Setting]:
    batch = next((size for size in (16, 32, 64) if facts.images < 30 * size), 128)
    epochs = 60 if facts.images < FEW_IMAGES else 30
    yield Setting(
        f"train: {{epochs: {epochs}, batch_size: {batch}, schedule: one_cycle}}", "Small batches give few images more steps."
    )
    width = 16 if facts.images < ENOUGH_FROM_SCRATCH else 64
    weights = ", class_weights: balanced" if _is_imbalanced(facts) else ""
    keys = f"arch: resnet18, width: {width}, augment: [flip, crop]{weights}"
    yield Setting(f"defaults: {{{keys}}}", "Leave flip out if left and right differ in your images.")
    yield Setting("members:", "Different optimizers and augmentations: members that err differently.")
    yield Setting("  - {name: plain, optimizer: {kind: sgd, lr: 0.05}}")
    yield Setting("  - {name: adamw, optimizer: {kind: adamw, lr: 0.002, weight_decay: 0.05}}")
    yield Setting("  - {name: rotated, augment: [flip, crop, {rotate: 15}, cutout], optimizer: {kind: sgd, lr: 0.05}}")
    yield Setting("fusion: [vote, weighted, stack]", "The stack learns from the folds' predictions.")


def _balance(facts: Facts) -> Iterator[Setting]:
    if _is_imbalanced(facts):
        largest, smallest = (pick(facts.counts, key=facts.counts.__getitem__) for pick in (max, min))
        what = f"{largest} has {facts.counts[largest]:,} images, and {smallest} {facts.counts[smallest]:,}"
        yield Setting("metric: balanced_accuracy", f"Every class counts alike: {what}.")


def _is_imbalanced(facts: Facts) -> bool:
    return max(facts.counts.values()) >= IMBALANCED * min(facts.counts.values())
