"""Damage every file of a finished home in five ways, and give every command: `python -m benchmarks.damage`.

Either the result equals that of the undamaged home, or the exit code is not 0 and a sentence names the file. No command ends in a
traceback. Small networks on digits are swept in this process's own copies of one home.

    python -m benchmarks.damage [--every N]     # each N-th case alone
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, write_result
from tests.faults.place import TEAM, Place, weights

TEAM_TEXT = TEAM.replace("folds: 0", "folds: 2").replace("fusion: [vote]", "fusion: [vote, stack]")
COMMANDS = {
    "sweep": ("sweep", "team.yaml", "--inline", "--json"),
    "status": ("status", "tiny"),
    "report": ("report", "tiny", "--json"),
    "fuse": ("fuse", "tiny"),
    "export": ("export", "tiny", "--method", "vote", "--out", "x.onnx"),
    "predict": ("predict", "tiny", "photos", "--out", "p.csv"),
    "sync": ("sync",),
}
KEPT = (".lock", ".identifier", ".mlflow.db.lock", "driver.log")  # nobody's loss


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for at in range(0, len(content), max(1, len(content) // 64)):
        content[at] ^= 0x5A
    path.write_bytes(bytes(content))


def retype(path: Path) -> None:
    path.write_text('{"version": "x", "classes": 3, "files": []}')


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


Case = tuple[Path, Callable[[Path], None], str]  # a file, what is done to it, a command
DAMAGES: tuple[Callable[[Path], None], ...] = (empty, truncate, garble, retype, make_folder)


def prepare(folder: Path) -> dict[str, Any]:
    """Sweep, and predict from a few images. Return the sweep's summary."""
    import numpy as np
    from PIL import Image

    place = Place(folder, TEAM_TEXT, prepared=False)
    (folder / "photos").mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)).save(folder / "photos" / f"{i}.png")
    code = place.attempt(*COMMANDS["sweep"], "--home", "home")
    assert code == 0, place.said()
    return place.printed()


def try_case(whole: Path, case: Case, expected: dict[str, Any]) -> str:
    """Return what came of a command in a home with one damaged file: "equal", "named", or a sentence on what is wrong."""
    file, damage, name = case
    with tempfile.TemporaryDirectory(prefix="conclave-damage-") as work:
        folder = Path(work, "d")
        shutil.copytree(whole, folder, symlinks=True)
        damage(folder / file)
        place = Place(folder, TEAM_TEXT, prepared=False)
        code = place.attempt(*COMMANDS[name], "--home", "home")
        said = place.out.read_text(errors="replace") + place.err.read_text(errors="replace")
        what = f"{damage.__name__} {file}, {name}"
        if "Traceback" in said or "something unexpected" in said:
            return f"{what}: {said.splitlines()[-1][:300]}"
        if code == 0:
            if name == "sweep" and weights(place.printed()) != weights(expected):
                return f"{what}: other weights"
            return "equal"
        return "named" if file.name in said or file.parent.name in said else f"{what}: {said.splitlines()[-1][:300]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    began, outcomes, wrong = time.monotonic(), Counter[str](), list[str]()
    with tempfile.TemporaryDirectory(prefix="conclave-damage-") as work:
        whole = Path(work, "whole")
        expected = prepare(whole)
        files = sorted(p.relative_to(whole) for p in (whole / "home").rglob("*") if p.is_file() and p.name not in KEPT)
        cases = [(file, damage, name) for file in files for damage in DAMAGES for name in COMMANDS][:: options.every]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for outcome in pool.map(lambda case: try_case(whole, case, expected), cases):
                outcomes[outcome if outcome in ("equal", "named") else "wrong"] += 1
                if outcome not in ("equal", "named"):
                    wrong.append(outcome)
                    print(outcome, flush=True)
    result = {"files": len(files), "cases": len(cases), "outcomes": dict(outcomes), "wrong": wrong}
    result["minutes"] = round((time.monotonic() - began) / 60, 1)
    write_result("damage", " ".join(["python -m benchmarks.damage", *sys.argv[1:]]), result)
    print(json.dumps({**result, "machine": describe()}, indent=1))


if __name__ == "__main__":
    main()
