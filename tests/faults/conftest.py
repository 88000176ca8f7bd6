"""Places for the fault tests, and the undisturbed sweep to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.place import Place


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of the same sweep without a fault."""
    return Place(tmp_path_factory.mktemp("undisturbed") / "p").sweep("--inline")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The manifest of `a`, trained without a fault."""
    return Place(tmp_path_factory.mktemp("whole") / "p").fit()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "p")
    yield made
    made.end()


@pytest.fixture
def place_of(tmp_path: Path) -> Iterator[Callable[[str], Place]]:
    """Places with a team file of their own."""
    made: list[Place] = []

    def make(text: str) -> Place:
        made.append(Place(tmp_path / f"p{len(made)}", text))
        return made[-1]

    yield make
    for one in made:
        one.end()
