"""Find extensions by name: each is one module of a package, with one registered class; or an entry point of a distribution.

Names are the modules' own, so they can be listed without importing any of them. A module is imported once its name is asked
for. Modules whose names begin with an underscore are helpers.
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

LONGEST_NAME = 60  # characters of a name that is shown
T = TypeVar("T")


class UnknownNameError(ValueError):
    """A name that no extension has. The text says which names there are."""


class Registry(Generic[T]):
    """The extensions of one kind. As a pydantic annotation, `Annotated[str, REGISTRY]` is a name that is known.

    Args:
        kind: What an extension of this kind is called, like "augmentation".
        package: Name of the package of our own extensions.
        group: Group of the entry points of other distributions.
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
        """Return all names, our own first."""
        if self._foreign_names is None:
            self._foreign_names = tuple(point.name for point in entry_points(group=self.group))
        return tuple(dict.fromkeys((*self.own_names(), *self._foreign_names)))

    def own_names(self) -> tuple[str, ...]:
        """Return the names of our own extensions, in the order of the alphabet."""
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
        """Return a name that is known. Raises UnknownNameError for any other."""
        if name not in self.own_names() and name not in self:
            raise UnknownNameError(self.answer(name))
        return name

    def answer(self, name: str, more: Sequence[str] = ()) -> str:
        """Return a sentence that answers an unknown name with the known ones; `more` are names of another source."""
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
        if name not in self.names():  # looking through all that is installed takes long
            raise UnknownNameError(self.answer(name))
        for point in entry_points(group=self.group, name=name):
            self._classes[name] = self._import(name, point.value, point.load)
            return

    def _import(self, name: str, place: str, load: Callable[[], Any]) -> Any:
        """Import an extension. Raises UserInputError where its module cannot be imported."""
        try:
            return load()
        except Exception as error:  # whatever a module that is being written can raise
            raise UserInputError(f"{self.kind} {name}: {place} can't be imported ({type(error).__name__}: {error}).") from error

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check names where a pydantic model has one."""
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """List the names in a JSON Schema."""
        return {"type": "string", "enum": list(self.names())}
