"""Describe the resources that a job requests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from workers.config.strict import Shorthand, Strict

Labels = tuple[tuple[str, str], ...]  # sorted pairs of a key and its value


_ONE_WISH = {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string"}}
LABELS_SCHEMA = {"anyOf": [_ONE_WISH, {"type": "array", "items": _ONE_WISH}]}
AUTO = "auto"
LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")


def _labels(value: Any) -> Any:
    """Accept `{market: spot}`, a list of such mappings with the preferred one first, and the dumped form of both."""
    entries = value if isinstance(value, tuple | list) else (value,)
    wishes = [dict(entry) if _are_pairs(entry) else entry for entry in entries]
    for wish in wishes:
        if not (isinstance(wish, Mapping) and wish and all(_is_label(word) for pair in wish.items() for word in pair)):
            raise ValueError("expected labels of machines like {market: spot}, or a list of them, the preferred one first")
    return tuple(tuple(sorted(wish.items())) for wish in wishes)


def _are_pairs(entry: Any) -> bool:
    """Return whether a value is a list of pairs, which is how labels are dumped."""
    return isinstance(entry, tuple | list) and all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in entry)


def _is_label(word: object) -> bool:
    return isinstance(word, str) and LABEL.fullmatch(word) is not None


def _open(value: Any) -> Any:
    return None if value == AUTO else value


class Resources(Strict):
    """The resources that one job requests.

    Attributes:
        gpus: Number of GPUs, may be fractional. None (`auto` in a file) means one if the machines have GPUs. Each process of a
            group gets one.
        cpus: Number of CPU cores.
        workers: Processes that train one member together. None means one per GPU.
        labels: Labels that a machine must have: alternatives, the preferred one first. Empty means any machine.
        wait_minutes: Maximum wait for a machine that can hold the job. None means as long as one may still come.
    """

    gpus: Annotated[float | None, BeforeValidator(_open), Shorthand({"const": AUTO})] = Field(None, ge=0, le=1024)
    cpus: float = Field(1, gt=0, le=10**4)
    workers: int | None = Field(None, ge=1, le=1024)
    labels: Annotated[tuple[Labels, ...], BeforeValidator(_labels), Shorthand(LABELS_SCHEMA)] = ()
    wait_minutes: float | None = Field(None, ge=0, le=10**6)

    def preference(self, labels: Mapping[str, str]) -> int | None:
        """Return the index of the first alternative that a machine with these labels meets, or None."""
        wishes = self.labels or ((),)
        return next((i for i, wish in enumerate(wishes) if all(labels.get(k) == v for k, v in wish)), None)

    def gpus_where(self, has_gpus: bool) -> float:
        """Return the number of GPUs that a job requests, given whether the machines have GPUs."""
        return float(has_gpus) * (self.workers or 1) if self.gpus is None else self.gpus

    @property
    def processes(self) -> int:
        """The number of processes that train one member together, on one machine."""
        whole = self.gpus is not None and self.gpus.is_integer()
        return self.workers or (max(1, int(self.gpus or 0)) if whole else 1)
