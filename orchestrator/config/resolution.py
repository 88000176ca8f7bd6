"""Resolve a `TeamFile` to a `Team`: merge defaults, expand `count`, derive seeds, make paths absolute."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusion.interface import DEFAULT, FUSIONS, asks_for_student
from orchestrator.config.settings import OwnServer
from orchestrator.config.team import Team, TeamSettings
from orchestrator.config.team_file import MemberEntry, TeamFile
from orchestrator.config.yaml_document import KeyPath
from workers.config.job import derive_seed
from workers.config.recipe import OPTIMIZER
from workers.config.specs import PUBLISHED, DataSpec, MemberSpec, StudentSpec
from workers.config.strict import Strict

NOT_OF_A_RECIPE = ("name", "count", "snapshots", "cycles", "average", "search")  # keys that a student doesn't have

Values = dict[str, Any]  # the keys set in an entry


class Resolution:
    """Resolves one team file.

    Args:
        file: The team file.
        folder: Base folder of relative paths.
        data: Folder or archive to use instead of data.root.
    """

    def __init__(self, file: TeamFile, folder: Path, data: Path | None = None) -> None:
        self.file, self.folder, self.data = file, folder, data
        self.defaults = _written(file.defaults)

    def team(self) -> Team:
        """Return the resolved team.

        Raises:
            pydantic.ValidationError: If a member's settings conflict with the defaults.
        """
        file = self.file
        trainings = tuple(recipe for place in self.places() for recipe in self.trainings(place))
        members = sum(len(recipe.members) for recipe in trainings)
        has_features = not file.data.is_out_of_fold or all(recipe.freeze for recipe in trainings)
        fusion = file.fusion or tuple(name for name in DEFAULT if has_features or not FUSIONS[name].uses_features)
        settings = {key: value for key, value in file if key in TeamSettings.model_fields}
        settings |= {
            "data": self._data(),
            "trainings": trainings,
            "fusion": fusion,
            "student": self._student() if file.student or asks_for_student(fusion) else None,
            "tracking": file.tracking.model_copy(update={"experiment": file.tracking.experiment or file.name}),
            "quorum": min(file.quorum, members),
            "prices": {name: p.trainer_hour_price if isinstance(p, OwnServer) else p for name, p in file.prices.items()},
            "environment": file.environment or "auto",
        }
        return Team.model_validate(settings)

    def _data(self) -> DataSpec:
        """Return the data set with absolute paths and the file version's default for its val part."""
        data = self.file.data
        root = self.data.resolve() if self.data else self._path(data.root)
        validation = data.validation or ("fuse" if self.file.version > 1 else None)
        paths = {
            "root": root,
            "manifest": self._path(data.manifest),
            "classes": self._path(data.classes),
            "split": self._path(data.split),
        }
        return data.model_copy(update={**paths, "validation": validation})

    def _weights(self, written: Path) -> Path | None:
        """Return the absolute path of a file of weights, or SWEEP/MEMBER as it is."""
        path = self._path(written)
        names_member = len(written.parts) == 2 and not written.suffix and not written.is_absolute() and "$" not in str(written)
        return written if names_member and path and not path.exists() else path

    def _path(self, path: Path | None) -> Path | None:
        """Return an absolute path: expand `~` and environment variables, and resolve against the file's folder."""
        return path and (self.folder / Path(os.path.expandvars(path)).expanduser()).resolve()

    def places(self) -> list[KeyPath]:
        """Return the key paths of the members' entries."""
        return [("members", index) for index in range(len(self.file.members))]

    def number_of_members(self) -> int:
        """Return the number of members after expansion."""
        return sum(self._copies_of(_merge(self.defaults, _written(entry))) for entry in self.file.members)

    @staticmethod
    def _copies_of(values: Values) -> int:
        kept = (values.get("search") or {}).get("keep", 1)
        return int((values.get("count") or 1) * values.get("snapshots", 1) * kept * (2 if values.get("average") else 1))

    def trainings(self, place: KeyPath) -> list[MemberSpec]:
        """Return the recipes of an entry's trainings. Raises pydantic.ValidationError as `team` does."""
        entry = self.file.members[int(place[1])]
        return [MemberSpec.model_validate(self._complete(values)) for values in self._copies(entry)]

    def _copies(self, entry: MemberEntry) -> Iterator[Values]:
        """Expand `{name: seeds, count: 3}` to seeds-1, seeds-2 and seeds-3."""
        values = _merge(self.defaults, _written(entry))
        count = values.pop("count", None)
        names = [entry.name] if count is None else [f"{entry.name}-{i + 1}" for i in range(count)]
        for i, name in enumerate(names):
            yield from _found({**values, "name": name, "seed": self._seed(values, name, i)})

    def _seed(self, values: Values, name: str, copy: int) -> int:
        """Return the seed of a copy: counted up from the entry's seed, or derived from the name if no seed is set."""
        seed = values.get("seed")
        return derive_seed(self.file.seed, name) if seed is None else int(seed) + copy

    def _student(self) -> StudentSpec:
        """Return the student's recipe: the defaults, overridden by `student:`."""
        defaults = {key: value for key, value in self.defaults.items() if key not in NOT_OF_A_RECIPE}
        values = _merge(defaults, _written(self.file.student))
        values |= {"name": "student", "seed": self._seed(values, "student", 0)}
        if values.get("epochs") is None:
            values["epochs"] = self.file.train.epochs
        return StudentSpec.model_validate(self._complete(values))

    def _complete(self, values: Values) -> Values:
        """Add the resources of the team, and make the path of the weights absolute."""
        values = {key: value for key, value in values.items() if value is not None}
        if "weights" in values and values["weights"] not in PUBLISHED:
            values["weights"] = self._weights(Path(values["weights"]))
        if "optimizer" in values:  # settings without a kind change the default optimizer
            values["optimizer"] = {"kind": OPTIMIZER, **values["optimizer"]}
        return {**values, "resources": _merge(_written(self.file.resources), values.get("resources", {}))}


def _found(values: Values) -> list[Values]:
    """Expand a search to one training per kept recipe: `{name: tuned, search: {keep: 2}}` to tuned-1 and tuned-2."""
    keep = (values.get("search") or {}).get("keep", 1)
    if keep == 1:
        return [values]
    name, seed = values["name"], values["seed"]
    return [{**values, "name": f"{name}-{pick}", "pick": pick, "seed": seed + pick - 1} for pick in range(1, keep + 1)]


def _written(entry: Strict | None) -> Values:
    """Return the keys of an entry that are set in the file."""
    return entry.model_dump(exclude_unset=True) if entry else {}


def _merge(base: Any, over: Any) -> Any:
    """Merge mappings deeply. If the `kind` differs, `over` replaces `base`, because its keys mean something else."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    if over.get("kind", base.get("kind")) != base.get("kind"):
        return over
    return base | {key: _merge(base.get(key), value) for key, value in over.items()}
