"""Images that are added, removed or renamed leave all others in their part and fold."""

import csv
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from workers.config.specs import DataSpec
from workers.data.split_draw import NEW, place_new_rows
from workers.data.split_history import write_table
from workers.data.splits import Split, get_split, keep_split
from workers.data.store import Store
from workers.errors import UserInputError

SPEC = DataSpec(folds=4, fuse_fraction=0.2, test_fraction=0.25)
Row = tuple[str, int, int, int]  # id, content, class, group


class RowStore(Store):
    """A store of rows without images. A group of -1 is the row alone."""

    classes = property(lambda self: ["x", "y", "z"][: max(row[2] for row in self.rows) + 1])  # type: ignore[assignment]

    def __init__(self, folder: Path, rows: list[Row]) -> None:
        super().__init__(folder)
        object.__setattr__(self, "rows", rows)

    digest = property(lambda self: str(self.rows))  # type: ignore[assignment]
    tested = property(lambda self: np.zeros(len(self.rows), bool))  # type: ignore[assignment]

    @cached_property
    def ids(self) -> list[str]:
        return [row[0] for row in self.rows]  # type: ignore[attr-defined]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        return np.array([row[2] for row in self.rows])  # type: ignore[attr-defined]

    @cached_property
    def row_arrays(self) -> dict[str, Any]:
        rows: list[Row] = self.rows  # type: ignore[attr-defined]
        found: dict[str, Any] = {"digests": np.array([[row[1], 0] for row in rows], dtype=np.uint64)}
        if any(row[3] >= 0 for row in rows):
            found["groups"] = np.unique(
                [row[3] if row[3] >= 0 else f"row {i}" for i, row in enumerate(rows)], return_inverse=True
            )[1]
        return found


def rows(count: int, first: int = 0, label: int | None = None) -> list[Row]:
    return [(f"{i:04}.jpg", i, i % 3 if label is None else label, -1) for i in range(first, first + count)]


def parts_of(store: Store, split: Split) -> dict[str, str]:
    folds = {store.ids[row]: f"fit {fold}" for row, fold in zip(split.fit.tolist(), split.folds.tolist(), strict=True)}
    return folds | {store.ids[row]: part for part in ("fuse", "test") for row in getattr(split, part).tolist()}


class Home:
    """A home whose data change."""

    def __init__(self, folder: Path, spec: DataSpec = SPEC) -> None:
        self.folder, self.spec, self.said = folder, spec, list[str]()

    def split(self, given: list[Row]) -> dict[str, str]:
        store = RowStore(self.folder / "data" / str(len(given)), given)
        store.folder.mkdir(parents=True, exist_ok=True)
        return parts_of(store, keep_split(store, self.spec, 0, self.folder, self.said.append))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def moved(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before.keys() & after.keys() if before[name] != after[name]}


def test_an_added_image_moves_none(home: Home) -> None:
    before = home.split(rows(120))
    after = home.split([("0000-new.jpg", 999, 1, -1), *rows(120)])
    assert moved(before, after) == set()
    assert set(after) - set(before) == {"0000-new.jpg"}
    part = after["0000-new.jpg"].split()[0]
    assert home.said == [f"1 image is new ({part} 1); all others stay in their part"]


def test_added_images_get_their_shares_by_class(home: Home) -> None:
    before = home.split(rows(120))
    after = home.split(rows(360))
    assert moved(before, after) == set()
    counts = {part: sum(found == part for found in after.values()) for part in sorted(set(after.values()))}
    assert counts["test"] == 90
    assert counts["fuse"] == 54
    assert all(abs(counts[f"fit {fold}"] - 54) <= 1 for fold in range(4))
    by_class = [sum(after[name] == "test" for name, _, label, _ in rows(360) if label == wanted) for wanted in range(3)]
    assert by_class == [30, 30, 30]


def test_a_removed_image_moves_none_and_comes_back_where_it_was(home: Home) -> None:
    before = home.split(rows(120))
    assert moved(before, home.split(rows(120)[5:])) == set()
    assert home.split(rows(120)) == before


def test_a_renamed_image_stays_by_its_content(home: Home) -> None:
    before = home.split(rows(120))
    renamed = [(f"cats/{name}", *rest) for name, *rest in rows(120)]
    assert {name.removeprefix("cats/"): part for name, part in home.split(renamed).items()} == before  # type: ignore[arg-type]


def test_images_that_swap_their_names_stay_by_their_content(home: Home) -> None:
    """As where one of them is removed, and all behind it are numbered anew."""
    before = home.split(rows(120))
    test, fit = (next(name for name, part in before.items() if part.startswith(wanted)) for wanted in ("test", "fit"))
    other = {test: fit, fit: test}
    after = home.split([(other.get(name, name), *rest) for name, *rest in rows(120)])  # type: ignore[misc]
    assert {other.get(name, name): part for name, part in after.items()} == before


def test_a_copy_of_an_image_is_new(home: Home) -> None:
    before = home.split(rows(120))
    after = home.split([*rows(120), ("copy.jpg", 7, 1, -1)])
    assert moved(before, after) == set()
    assert home.said[-1].startswith("1 image is new")


def test_an_edited_image_stays_by_its_name(home: Home) -> None:
    before = home.split(rows(120))
    assert home.split([(name, content + 5000, *rest) for name, content, *rest in rows(120)]) == before  # type: ignore[misc]


def test_a_new_class_is_divided(home: Home) -> None:
    before = home.split(rows(120, label=0) + rows(120, first=120, label=1))
    after = home.split(rows(120, label=0) + rows(120, first=120, label=1) + rows(20, first=240, label=2))
    assert moved(before, after) == set()
    of_class = [after[name] for name, *_ in rows(20, first=240)]
    assert of_class.count("test") == 5
    assert of_class.count("fuse") == 3


def test_other_folds_or_another_fuse_part_leave_the_test_rows(home: Home) -> None:
    before = home.split(rows(120))
    for update in ({"folds": 3}, {"fuse": "out_of_fold"}, {"fuse_fraction": 0.1}, {"image_size": 32}):
        home.spec = SPEC.model_copy(update=update)
        after = home.split([*rows(119), ("new.jpg", 999, 1, -1)])
        assert {n for n in before if before[n] == "test"} - {"0119.jpg"} == {n for n in after if after[n] == "test"} - {"new.jpg"}


def test_without_a_fuse_part_all_the_rest_is_fit(home: Home) -> None:
    home.spec = SPEC.model_copy(update={"fuse": "out_of_fold"})
    found = home.split(rows(120))
    assert "fuse" not in found.values()
    assert sum(part.startswith("fit") for part in found.values()) == 90


def grouped(count: int, groups: int) -> list[Row]:
    return [(f"{i:04}.jpg", i, (i % groups) % 3, i % groups) for i in range(count)]


def test_a_new_image_follows_its_group(home: Home) -> None:
    before = home.split(grouped(240, 60))
    after = home.split(grouped(480, 60))
    assert moved(before, after) == set()
    by_group: dict[int, set[str]] = {}
    for name, _, _, group in grouped(480, 60):
        by_group.setdefault(group, set()).add(after[name])
    assert all(len(found) == 1 for found in by_group.values())


def test_groups_that_become_one_go_where_most_of_them_are() -> None:
    parts = np.array([0, 0, 1, NEW, 1])
    placed = place_new_rows(parts, np.zeros(5, np.int64), np.array([7, 7, 7, 7, 8]), (0.5, 0.5), 0)
    assert placed.tolist() == [0, 0, 0, 0, 1]


@settings(max_examples=60, deadline=None)
@given(
    known=st.lists(st.sampled_from([NEW, 0, 1, 2]), min_size=1, max_size=60),
    groups=st.booleans(),
    seed=st.integers(0, 100),
)
def test_rows_that_have_a_part_keep_it_and_groups_are_whole(known: list[int], groups: bool, seed: int) -> None:
    draw = np.random.default_rng(seed)
    group = draw.integers(0, 12, len(known)) if groups else None
    labels = draw.integers(0, 3, len(known))
    placed = place_new_rows(np.array(known), labels, group, (0.2, 0.3, 0.5), seed)
    assert set(placed.tolist()) <= {0, 1, 2}
    if group is None:
        assert all(now == before for before, now in zip(known, placed.tolist(), strict=True) if before != NEW)
    else:
        assert all(len(np.unique(placed[group == one])) == 1 for one in np.unique(group))


@pytest.fixture
def shared(home: Home) -> tuple[Path, list[Row], dict[str, str]]:
    """The table of a split that was drawn elsewhere, with its rows and their parts."""
    given = rows(120)
    store = RowStore(home.folder, given)
    split = get_split(store, SPEC, 7)
    path = home.folder / "split.csv"
    path.write_text(write_table(store, {"fit": split.fit, "fuse": split.fuse, "test": split.test}, split.folds))
    return path, given, parts_of(store, split)


def test_a_table_is_the_split_on_another_computer(home: Home, shared: tuple[Path, list[Row], dict[str, str]]) -> None:
    path, given, expected = shared
    assert home.split(given) != expected
    home.spec = SPEC.model_copy(update={"split": path})
    assert home.split(given) == expected
    more = home.split([("0000-new.jpg", 999, 1, -1), *given[5:]])
    assert moved(expected, more) == set()
    assert "0000-new.jpg" in more


def test_a_table_without_folds_lets_them_be_drawn(home: Home, shared: tuple[Path, list[Row], dict[str, str]]) -> None:
    path, given, expected = shared
    lines = list(csv.reader(path.read_text().splitlines()))
    path.write_text("\n".join(",".join([line[0], line[2]]) for line in lines))
    home.spec = SPEC.model_copy(update={"split": path, "folds": 3})
    found = home.split(given)
    assert {name: part.split()[0] for name, part in found.items()} == {n: part.split()[0] for n, part in expected.items()}
    assert set(found.values()) == {"test", "fuse", "fit 0", "fit 1", "fit 2"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace(",fit,", ",train,"), "split is 'train'. Use fit, fuse, test"),
        (lambda text: text.replace("split", "part"), "needs the columns path and split"),
        (lambda text: "", "needs the columns path and split"),
        (lambda text: text.replace(".jpg", ".png").replace(",0000", ",ffff"), "lists none of the images"),
        (lambda text: text.replace(",fuse,", ",fit,"), "has no fuse rows"),
        (lambda text: text.replace(",fit,3", ",fit,9"), "fold is '9', and with data.folds 4 they are 0 to 3"),
    ],
)
def test_a_table_that_can_t_be_used_is_a_sentence(
    change: Any, says: str, home: Home, shared: tuple[Path, list[Row], dict[str, str]]
) -> None:
    path, given, _ = shared
    path.write_text(change(path.read_text()))
    home.spec = SPEC.model_copy(update={"split": path})
    with pytest.raises(UserInputError) as found:
        home.split(given)
    assert says in str(found.value)
    assert "\n" not in str(found.value)


def test_a_table_that_is_missing_is_a_sentence(home: Home) -> None:
    home.spec = SPEC.model_copy(update={"split": home.folder / "none.csv"})
    with pytest.raises(UserInputError, match=r"data.split: .*none.csv can't be read \(.*`conclave split"):
        home.split(rows(120))


def test_splits_of_equal_rows_have_equal_keys(home: Home) -> None:
    one = get_split(RowStore(home.folder, rows(120)), SPEC, 0)
    assert one.key == get_split(RowStore(home.folder, rows(120)), SPEC, 0).key
    assert one.key != replace(one, fuse=one.fuse[::-1]).key
