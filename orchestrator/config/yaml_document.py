"""Parse YAML text to plain values with line numbers. Knows YAML, not the meaning of the keys."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from workers.errors import UserInputError

MAX_BYTES = 1 << 20
MAX_NODES = 100_000  # stops nested aliases that expand exponentially
MAX_PARTS = 20_000  # lines, and entries of inline lists and mappings: parsing more takes many seconds
MAX_DEPTH = 200  # nested brackets
MAX_LINE = 100_000  # characters: parsing a longer tag or key takes many seconds
SHOWN = 100  # characters of a parser's message

KeyPath = tuple[str | int, ...]


def dotted(where: KeyPath) -> str:
    """Format a key path for messages: members[1].optimizer.lr."""
    text = ""
    for key in where:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


@dataclass(frozen=True)
class Document:
    """A parsed file.

    Attributes:
        path: The file.
        values: Plain dictionaries, tuples and scalars.
        root: The parsed tree, which knows the lines.
    """

    path: Path
    values: dict[str, Any]
    root: CommentedMap

    def line(self, where: KeyPath) -> int:
        """Return the line, from 1, of the innermost key of `where` that is in the file."""
        return [1, *self._lines(where)][-1]

    def has(self, where: KeyPath) -> bool:
        """Return whether the file has this key."""
        return len(list(self._lines(where))) == len(where)

    def _lines(self, where: KeyPath) -> Iterator[int]:
        """Yield the line of each key of `where`, as far as the file has them."""
        node: Any = self.root
        line = 1
        for key in where:
            try:
                parent, node = node, node[key]
            except (KeyError, IndexError, TypeError):
                return
            with contextlib.suppress(KeyError):  # a merged key (<<) has no line of its own
                line = (parent.lc.item if isinstance(parent, CommentedSeq) else parent.lc.key)(key)[0] + 1
            yield line


def read_document(path: Path, hint: str = "") -> Document:
    """Read and parse a YAML file.

    Args:
        path: The file.
        hint: Advice for a missing file, as a sentence.

    Raises:
        UserInputError: If the file is not a single plain mapping; the message names the line.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserInputError(f"{path}: larger than 1 MiB, too large for a YAML file here. Check the path.")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserInputError(f"{path}: no such file. {hint}".strip()) from None
    except UnicodeDecodeError as error:
        raise UserInputError(f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise UserInputError(f"{path}: can't be read ({error.strerror}).") from None
    return parse_document(text, path)


def parse_document(text: str, path: Path) -> Document:
    """Parse YAML text; `path` is for the messages. Raises UserInputError."""
    if sum(map(text.count, "\n,[{")) > MAX_PARTS or _depth(text) > MAX_DEPTH:
        raise UserInputError(
            f"{path}: more than {MAX_PARTS} lines and entries, or more than {MAX_DEPTH} nested brackets: "
            "too large for a YAML file here. Check the path. `count: N` makes many members that differ in their seed."
        )
    if (longest := max(map(len, text.split("\n")))) > MAX_LINE:
        raise UserInputError(f"{path}: a line of {longest:,} characters, too long for a YAML file here. Check the path.")
    try:
        root = YAML(typ="rt", pure=True).load(text)
        if not isinstance(root, CommentedMap):
            raise UserInputError(f"{path}:1: not a team file, which is a mapping of keys (version, name, members, ...).")
        values = _plain(root, [0])
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = (error.problem or "not valid YAML").split("\n")[0]
        if "duplicate key" in problem:
            problem += "; each key may appear only once"
        raise UserInputError(f"{path}:{line}: {problem}.") from None
    except (YAMLError, RecursionError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
        first = (str(error) or type(error).__name__).split("\n")[0][:SHOWN]
        raise UserInputError(f"{path}: not valid YAML ({first}).") from None
    return Document(path, values, root)


def _depth(text: str) -> int:
    """Return the maximum nesting depth of brackets, including those in quotes."""
    steps = (1 if letter in "[{" else -1 for letter in text if letter in "[]{}")
    return max(accumulate(steps), default=0)


def _plain(node: Any, count: list[int]) -> Any:
    """Convert ruamel's types to dict, tuple, int, float, str, bool and None.

    Raises ValueError for tags and for too many values.
    """
    count[0] += 1
    if count[0] > MAX_NODES:
        raise ValueError(f"more than {MAX_NODES} values")
    tag = node.tag.value if isinstance(node, TaggedScalar | CommentedMap | CommentedSeq) else None
    if tag not in (None, "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
        raise ValueError(f"the tag {tag} is not allowed")
    if isinstance(node, Mapping):
        return {str(k): _plain(v, count) for k, v in node.items()}
    if isinstance(node, CommentedSeq | list | tuple):
        return tuple(_plain(v, count) for v in node)
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    if node is None:
        return None
    return str(node)  # dates and the like become text
