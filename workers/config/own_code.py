"""Import users' own modules from the team file's folder, apart from ours.

A team's `workers.py`, `fusion/` or `random.py` means itself in the team's modules, and nothing to anybody else: the modules are
imported below a private package whose path is the folder, and the `import` statements in them look there first, as Python does
for a script's folder.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

PREFIX = "_conclave_team_"  # of the private packages, one for each list of folders

_package = ""


def import_from(folders: Sequence[str]) -> None:
    """Look for users' modules in these folders from now on, and after them where Python finds others."""
    global _package  # a process works for one team at a time
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    importlib.invalidate_caches()  # a module may be younger than the last look into its folder
    _package = PREFIX + hashlib.sha256("\0".join(folders).encode()).hexdigest()[:12]
    package = ModuleType(_package)
    package.__path__ = list(folders)
    sys.modules.setdefault(_package, package)


def import_own(name: str) -> ModuleType:
    """Import a user's module, or one that is installed."""
    return importlib.import_module(f"{_package}.{name}" if _is_in_folders(_package, name) else name)


def _is_in_folders(package: str, name: str) -> bool:
    """Return whether the folders of a private package come first for a name, by Python's own order."""
    top = name.partition(".")[0]
    if not package or BuiltinImporter.find_spec(top) or FrozenImporter.find_spec(top):
        return False
    found = PathFinder.find_spec(f"{package}.{top}", sys.modules[package].__path__)
    if found is None or found.origin:
        return found is not None
    return top not in sys.modules and importlib.util.find_spec(top) is None  # a folder without __init__.py comes last


class _Finder:
    """Finds the modules of the private packages."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find a module, to be run with `import` statements that look into its team's folders first."""
        spec = PathFinder.find_spec(name, path, target) if name.startswith(PREFIX) else None
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Runs a user's module."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code with an `import` of its own."""
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import}
        super().exec_module(module)

    def get_code(self, fullname: str) -> CodeType | None:
        """Compile the module anew: a cached file may be that of a changed file of the same second and size."""
        return self.source_to_code(self.get_data(self.path), self.path)


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,  # the names of the function that it stands for
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] = (),
    level: int = 0,
) -> ModuleType:
    """Do what an `import` statement in a user's module says."""
    package = str((globals or {}).get("__name__", "")).partition(".")[0]
    if level or not (package.startswith(PREFIX) and _is_in_folders(package, name)):
        return builtins.__import__(name, globals, locals, fromlist, level)
    module = builtins.__import__(f"{package}.{name}", globals, locals, fromlist or ("",), 0)
    return module if fromlist else sys.modules[f"{package}.{name.partition('.')[0]}"]
