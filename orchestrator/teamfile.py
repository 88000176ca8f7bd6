"""team.yaml as text -> plain values that remember their lines. Knows YAML, not what the keys mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from workers.errors import Rejected

MAX_BYTES = 1 << 20
MAX_NODES = 100_000  # aliases of aliases of aliases end here

Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A parsed file: `values` are plain dicts, tuples and scalars; `line` finds where a key stands."""

    path: Path
    values: dict[str, Any]
    root: CommentedMap

    def line(self, where: Path_) -> int:
        """Line (from 1) of the innermost key of `where` that is in the file."""
        node: Any = self.root
        line = 1
        for key in where:
            try:
                if isinstance(node, CommentedMap):
                    line = node.lc.key(key)[0] + 1
                elif isinstance(node, CommentedSeq):
                    line = node.lc.item(key)[0] + 1
                node = node[key]
            except (KeyError, IndexError, TypeError, AttributeError):
                break
        return line

    def has(self, where: Path_) -> bool:
        node: Any = self.root
        for key in where:
            try:
                node = node[key]
            except (KeyError, IndexError, TypeError):
                return False
        return True


def read(path: Path) -> Document:
    """Parse `path`. Raises Rejected with the line for anything that is not one plain mapping."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Rejected(f"{path}: larger than 1 MiB, which no team file is. Give the path of a team file.")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Rejected(f"{path}: there is no such file. `conclave init` writes one to start from.") from None
    except UnicodeDecodeError as error:
        raise Rejected(f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise Rejected(f"{path}: can't be read ({error.strerror}).") from None
    return parse(text, path)


def parse(text: str, path: Path) -> Document:
    """Parse YAML text; `path` is for the messages."""
    try:
        root = YAML(typ="rt", pure=True).load(text)
        if not isinstance(root, CommentedMap):
            raise Rejected(f"{path}:1: a team file is a mapping of keys (version, name, members, ...), this is not.")
        values = _plain(root, [0])
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = (error.problem or "not valid YAML").split("\n")[0]
        if "duplicate key" in problem:
            problem += "; each key may stand once"
        raise Rejected(f"{path}:{line}: {problem}.") from None
    except (YAMLError, RecursionError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
        first = (str(error) or type(error).__name__).split("\n")[0]
        raise Rejected(f"{path}: not valid YAML ({first}).") from None
    return Document(path, values, root)


def _plain(node: Any, count: list[int]) -> Any:
    """ruamel's round-trip types -> dict, tuple, int, float, str, bool, None. Tags are refused."""
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
    return str(node)  # dates and the like: they are text to us
