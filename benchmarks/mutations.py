"""Mutated team files for the chaos campaign: each is accepted, or rejected with a sentence."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.config import loader as config
from orchestrator.config import yaml_document as teamfile
from workers.errors import ConclaveError


class Broken(Exception):
    """A promise that did not hold."""


def check(holds: bool, seed: int, text: str) -> None:
    if not holds:
        raise Broken(f"BROKEN (seed {seed}): {text}")


def mutated(draw: random.Random, texts: list[str]) -> str:
    """A team file with a few random changes: cut, doubled, swapped, or strange characters."""
    text = draw.choice(texts)
    for _ in range(draw.randint(1, 3)):
        at, size = draw.randrange(len(text) + 1), draw.randint(0, 12)
        piece = draw.choice(
            [
                "",
                text[at : at + size] * 2,
                "".join(chr(draw.choice([draw.randrange(128), draw.randrange(0x3000), 0x1F600])) for _ in range(size)),
                draw.choice(
                    [
                        "null",
                        "-1",
                        "1e999",
                        ".nan",
                        "[]",
                        "{}",
                        "&a",
                        "*a",
                        "!!python/name:os.system",
                        "\t",
                        "\x00",
                        "'",
                        "- ",
                        ": ",
                    ]
                ),
                draw.choice(texts)[at : at + 3 * size],
            ]
        )
        text = text[:at] + piece + text[at + size :]
    return text


def validate_mutated(count: int, seed: int, more: Sequence[str]) -> Iterator[str]:
    """Send mutations of the examples and of `more` team files through `validate`; yield "accepted" or "rejected" for each.

    Raises Broken where a file is not accepted and not rejected with a sentence.
    """
    draw = random.Random(seed)
    texts = [*(path.read_text() for path in sorted(Path(__file__).parent.parent.glob("examples/*.yaml"))), *more]
    for number in range(count):
        text = mutated(draw, texts)
        try:
            config.resolve_team(teamfile.parse_document(text, Path("/somewhere/team.yaml")))
            yield "accepted"
        except ConclaveError as error:
            check(error.exit_code == 2 and bool(str(error)), seed, f"file {number}: exit {error.exit_code}")
            yield "rejected"
        except Exception as error:
            raise Broken(f"BROKEN (seed {seed}, file {number}): {type(error).__name__}: {error}\n{text!r}") from error
