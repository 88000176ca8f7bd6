"""Find extensions by name: modules of a package with one registered class each, or entry points of a distribution.

Names are module names, so listing them imports nothing. A module is imported when its name is first looked up. Modules whose
names begin with an underscore are helpers.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from workers.errors import UserInputError

LONGEST_NAME = 60  # characters of a name in a message
T = TypeVar("T")


class UnknownNameError(ValueError):
    """An unknown extension name. The message lists the known ones."""


class Registry(Generic[T]):
    """The extensions of one kind. In pydantic models, `Annotated[str, REGISTRY]` accepts known names only.

    Args:
        kind: Name of the kind in messages, like "augmentation".
        package: Name of the package of built-in extensions.
        group: Entry point group for other distributions.
    """

    def __init__(self, kind: str, package: str, group: str) -> None:
        self.kind, self.package, self.group = kind, package, group
        self._classes: dict[str, type[T]] = {}
        self._own_names: tuple[str, ...] | None = None
        self._foreign_names: tuple[str, ...] | None = None

    def register(self, extension: type[T]) -> type[T]:
        """Register a class under the name of its module. Use it as a decorator."""
        self._classes[extension.__module__.rpartition(".")[2]] = extension
        return extension

    def names(self) -> tuple[str, ...]:
        """Return all names, the built-in ones first."""
        if self._foreign_names is None:
            self._foreign_names = tuple(point.name for point in entry_points(group=self.group))
        return tuple(dict.fromkeys((*self.own_names(), *self._foreign_names)))

    def own_names(self) -> tuple[str, ...]:
        """Return the names of the built-in extensions, sorted."""
        if self._own_names is None:
            folder = importlib.import_module(self.package).__path__
            modules = sorted(module.name for module in pkgutil.iter_modules(folder))
            self._own_names = tuple(name for name in modules if not name.startswith("_"))
        return self._own_names

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._classes or name in self.names())

    def __getitem__(self, name: str) -> type[T]:
        """Return the class of a name. Raises UnknownNameError."""
        if name not in self._classes:
            self._load(name)
        return self._classes[name]

    def __iter__(self) -> Iterator[tuple[str, type[T]]]:
        """Yield each name with its class."""
        return ((name, self[name]) for name in self.names())

    def check(self, name: str) -> str:
        """Return the name if it is known. Raises UnknownNameError otherwise."""
        if name not in self.own_names() and name not in self:
            raise UnknownNameError(self.answer(name))
        return name

    def answer(self, name: str, more: Sequence[str] = ()) -> str:
        """Return the message for an unknown name, which lists the known names and those in `more`."""
        names = (*self.names(), *more)
        if len(name) > LONGEST_NAME:
            name = f"{name[:LONGEST_NAME]}..."
        nearest = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {nearest[0]}?" if nearest else "."
        return f"unknown {self.kind} {name!r}{hint} Known are {', '.join(names)}"

    def _load(self, name: str) -> None:
        if name in self.own_names():
            self._import(name, f"{self.package}.{name}", lambda: importlib.import_module(f"{self.package}.{name}"))
            if name not in self._classes:
                place = f"{self.package.replace('.', '/')}/{name}.py"
                raise UserInputError(f"{self.kind} {name}: {place} registers no class. Put the decorator `register` above it.")
            return
        if name not in self.names():  # scans all installed distributions, which is slow
            raise UnknownNameError(self.answer(name))
        for point in entry_points(group=self.group, name=name):
            self._classes[name] = self._import(name, point.value, point.load)
            return

    def _import(self, name: str, place: str, load: Callable[[], Any]) -> Any:
        """Import an extension. Raises UserInputError if its module cannot be imported."""
        try:
            return load()
        except Exception as error:  # an extension's module can raise anything
            raise UserInputError(f"{self.kind} {name}: {place} can't be imported ({type(error).__name__}: {error}).") from error

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check pydantic fields with this annotation."""
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """List the names in a JSON Schema."""
        return {"type": "string", "enum": list(self.names())}
