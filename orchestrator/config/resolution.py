"""Resolve a team file: defaults merged, `count` expanded, seeds derived, paths made absolute. `TeamFile` in, `Team` out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusion.interface import DEFAULT, asks_for_student
from orchestrator.config.settings import OwnServer
from orchestrator.config.team import Team
from orchestrator.config.team_file import MemberEntry, TeamFile
from orchestrator.config.yaml_document import KeyPath
from workers.config.job import derive_seed
from workers.config.recipe import OPTIMIZER
from workers.config.specs import DataSpec, MemberSpec, StudentSpec
from workers.config.strict import Strict

NOT_OF_A_RECIPE = ("name", "count", "snapshots", "cycles", "average", "search")  # keys that a student has none of

Values = dict[str, Any]  # the keys of an entry that are written


class Resolution:
    """Resolves one team file.

    Args:
        file: The team file.
        folder: Folder from which relative paths count.
        data: Folder or archive to use instead of data.root.
    """

    def __init__(self, file: TeamFile, folder: Path, data: Path | None = None) -> None:
        self.file, self.folder, self.data = file, folder, data
        self.defaults = _written(file.defaults)

    def team(self) -> Team:
        """Return the resolved team.

        Raises:
            pydantic.ValidationError: If a member's settings do not fit together with those of the defaults.
        """
        file = self.file
        trainings = tuple(recipe for place in self.places() for recipe in self.trainings(place))
        members = sum(len(recipe.members) for recipe in trainings)
        fusion = file.fusion or DEFAULT
        prices = {name: p.trainer_hour_price if isinstance(p, OwnServer) else p for name, p in file.prices.items()}
        return Team(
            name=file.name,
            seed=file.seed,
            data=self._data(),
            train=file.train,
            trainings=trainings,
            fusion=fusion,
            student=self._student() if file.student or asks_for_student(fusion) else None,
            tracking=file.tracking.model_copy(update={"experiment": file.tracking.experiment or file.name}),
            metric=file.metric,
            quorum=min(file.quorum, members),
            prices=prices,
            budget=file.budget,
            retries=file.retries,
            checkpoint=file.checkpoint,
            heartbeat=file.heartbeat,
            environment=file.environment or "auto",
        )

    def _data(self) -> DataSpec:
        """Return the data set with absolute paths, and with what the file's version says of its val part."""
        data = self.file.data
        root = self.data.resolve() if self.data else self._path(data.root)
        validation = data.validation or ("fuse" if self.file.version > 1 else None)
        return data.model_copy(update={"root": root, "manifest": self._path(data.manifest), "validation": validation})

    def _path(self, path: Path | None) -> Path | None:
        """Return a path of the file in full: `~` and environment variables count, and the rest from the file's folder."""
        return path and (self.folder / Path(os.path.expandvars(path)).expanduser()).resolve()

    def places(self) -> list[KeyPath]:
        """Return the places of the members' entries in the file."""
        return [("members", index) for index in range(len(self.file.members))]

    def number_of_members(self) -> int:
        """Return how many members the entries ask for."""
        return sum(self._copies_of(_merge(self.defaults, _written(entry))) for entry in self.file.members)

    @staticmethod
    def _copies_of(values: Values) -> int:
        kept = (values.get("search") or {}).get("keep", 1)
        return int((values.get("count") or 1) * values.get("snapshots", 1) * kept * (2 if values.get("average") else 1))

    def trainings(self, place: KeyPath) -> list[MemberSpec]:
        """Return the recipes of the trainings that an entry asks for. Raises pydantic.ValidationError as `team` does."""
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
        """Return the seed of a copy: those that are written follow one another, others derive from the names."""
        seed = values.get("seed")
        return derive_seed(self.file.seed, name) if seed is None else int(seed) + copy

    def _student(self) -> StudentSpec:
        """Return the student's recipe: that of the defaults, with what the file says under `student:`."""
        defaults = {key: value for key, value in self.defaults.items() if key not in NOT_OF_A_RECIPE}
        values = _merge(defaults, _written(self.file.student))
        values |= {"name": "student", "seed": self._seed(values, "student", 0)}
        if values.get("epochs") is None:
            values["epochs"] = self.file.train.epochs
        return StudentSpec.model_validate(self._complete(values))

    def _complete(self, values: Values) -> Values:
        """Add the resources of the team, and make the path of the weights absolute."""
        values = {key: value for key, value in values.items() if value is not None}
        if "weights" in values:
            values["weights"] = self._path(values["weights"])
        if "optimizer" in values:  # changes of settings alone are those of the optimizer that is taken where none is named
            values["optimizer"] = {"kind": OPTIMIZER, **values["optimizer"]}
        return {**values, "resources": _merge(_written(self.file.resources), values.get("resources", {}))}


def _found(values: Values) -> list[Values]:
    """Return one training for each recipe that a search keeps: `{name: tuned, search: {keep: 2}}` makes tuned-1 and tuned-2."""
    keep = (values.get("search") or {}).get("keep", 1)
    if keep == 1:
        return [values]
    name, seed = values["name"], values["seed"]
    return [{**values, "name": f"{name}-{pick}", "pick": pick, "seed": seed + pick - 1} for pick in range(1, keep + 1)]


def _written(entry: Strict | None) -> Values:
    """Return the keys of an entry that are written in the file."""
    return entry.model_dump(exclude_unset=True) if entry else {}


def _merge(base: Any, over: Any) -> Any:
    """Merge mappings deeply. One whose `kind` differs replaces the other, because its keys mean other things."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    if over.get("kind", base.get("kind")) != base.get("kind"):
        return over
    return base | {key: _merge(base.get(key), value) for key, value in over.items()}
