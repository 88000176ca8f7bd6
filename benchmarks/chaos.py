"""Kill random processes of random sweeps, and see that nothing is lost: `make chaos`.

Each round draws a team (ResNets of width 4 on digits), sweeps it undisturbed, then sweeps it again in another home while
SIGKILL hits the driver, a trainer or the fusion actor at random moments, the command being given again whenever the driver
fell. Ends with an error at the first broken promise, which it names with the seed that shows it again. Then mutated team
files go through `validate`, in process.

    python -m benchmarks.chaos --kills 100 --seed 1 --files 10000
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil

from benchmarks.machine import describe, write_result
from orchestrator.config import loader as config
from orchestrator.config import yaml_document as teamfile
from tests.faults.place import Place, begun, left, points, weights
from workers.errors import ConclaveError
from workers.storage.manifest import read_manifest
from workers.storage.tensor_folder import load_tensors

LONGEST = 600.0  # seconds that one command may take
KINDS = ("driver", "trainer", "trainer", "trainer", "fusion")
KILLS_A_ROUND = 15
ROUNDS_AT_ONCE = 2


class Broken(Exception):
    """A promise that did not hold."""


@dataclass
class Tally:
    """What was seen."""

    kills: Counter[str] = field(default_factory=Counter)
    sweeps: int = 0
    commands: int = 0
    fits: int = 0
    points: int = 0
    files: int = 0


def team_text(draw: random.Random) -> str:
    """A random small team."""
    folds = draw.choice([0, 0, 2])
    members = "".join(
        f"  - {{name: m{i}, seed: {draw.randrange(1000)}, optimizer: {draw.choice(['sgd', 'adamw'])}}}\n"
        for i in range(draw.choice([2, 2, 3]))
    )
    ema = draw.choice(["", ", ema: 0.9"])
    return (
        f"version: 1\nname: tiny\nseed: {draw.randrange(100)}\ndata: {{dataset: digits, folds: {folds}}}\n"
        f"train: {{epochs: {draw.randint(4, 12)}, batch_size: 32, schedule: {draw.choice(['one_cycle', 'cosine'])}{ema}}}\n"
        "defaults: {width: 4, augment: [crop]}\n"
        f"fusion: [{draw.choice(['vote', 'vote, weighted', 'vote, stack'])}]\n"
        # a kill of a trainer is an error of its own, and no campaign may run out of them
        f"retries: {{errors: 1000}}\ncheckpoint: {{minutes: {draw.choice([0.001, 0.01, 5])}}}\nmembers:\n{members}"
    )


def campaign(first: int, kills: int, tally: Tally) -> list[int]:
    """Rounds side by side until so many kills were made; gives their seeds. The first broken promise ends it."""
    seeds: list[int] = []
    with ThreadPoolExecutor(ROUNDS_AT_ONCE) as pool:
        running: set[Future[None]] = set()
        while sum(tally.kills.values()) < kills or running:
            while len(running) < ROUNDS_AT_ONCE and sum(tally.kills.values()) < kills:
                seeds.append(first + len(seeds))
                print(f"seed {seeds[-1]}", flush=True)
                running.add(pool.submit(run_round, seeds[-1], KILLS_A_ROUND, tally))
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for round_ in ended:
                round_.result()
    return seeds


def run_round(seed: int, wanted: int, tally: Tally) -> None:
    """One team: undisturbed, then under `wanted` kills, then compared."""
    draw = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="conclave-chaos-"))
    text = team_text(draw)
    reference = Place(folder / "undisturbed", text)
    expected = reference.sweep("--inline")
    place = Place(folder / "killed", text)
    try:
        summary = disturbed(place, seed, draw, wanted, tally)
    finally:
        place.end()
    check(weights(summary) == weights(expected), seed, "the weights differ")
    actual_points, wanted_points = points(summary), points(expected)
    check(actual_points == wanted_points, seed, "the metric points differ")
    check(not begun(place.home), seed, f"left behind: {begun(place.home)}")
    whole(place.home)
    tally.sweeps += 1
    tally.fits += len(list(place.home.glob("jobs/*/fit/manifest.json")))
    tally.points += sum(map(len, actual_points.values()))
    shutil.rmtree(folder)


def disturbed(place: Place, seed: int, draw: random.Random, wanted: int, tally: Tally) -> dict[str, Any]:
    """Sweep until done, killing `wanted` times on the way (fewer where the sweep is done before)."""
    done = 0
    while True:
        place.start()
        tally.commands += 1
        everybody: list[psutil.Process] = []
        until = time.monotonic() + LONGEST
        while place.process and place.process.poll() is None:
            check(time.monotonic() < until, seed, "a sweep hangs")
            if done < wanted and hit(place, draw, everybody, tally):
                done += 1
            time.sleep(0.05)
        assert place.process
        code = place.process.poll()
        remaining = left(everybody)
        check(not remaining, seed, f"alive 10 s after the driver: {remaining}")
        if code == 0:
            return place.printed()
        gave_up = code == 1 and "the fusion actor died" in place.said()  # it is tried three times; the next command goes on
        check(code == -signal.SIGKILL or gave_up, seed, f"exit code {code}: {place.said()[-2000:]}")


def hit(place: Place, draw: random.Random, everybody: list[psutil.Process], tally: Tally) -> bool:
    """Kill a process of a random kind, a random moment after there is one. False where the sweep ended before."""
    kind = draw.choice(KINDS)
    if not _wait_for(place, kind):
        return False
    time.sleep(draw.uniform(0.0, DELAYS[kind]))
    targets = _targets(place, kind)
    if not targets:
        return False
    everybody[:] = place.watch() if place.process and place.process.poll() is None else []
    with contextlib.suppress(ProcessLookupError):
        os.kill(draw.choice(targets), signal.SIGKILL)
        tally.kills[kind] += 1
        print(f"  {sum(tally.kills.values())}: {kind} of {place.folder.parent.name}", flush=True)
        return True
    return False


def _wait_for(place: Place, kind: str) -> bool:
    """Until there is such a process; trainers are waited for no longer than there is something to train."""
    while not _targets(place, kind):
        ended = place.process is None or place.process.poll() is not None
        if ended or (kind == "trainer" and _targets(place, "fusion")):
            return False
        time.sleep(0.05)
    return True


def _targets(place: Place, kind: str) -> list[int]:
    if place.process is None or place.process.poll() is not None:
        return []
    return [place.process.pid] if kind == "driver" else list(place.actors(ACTORS[kind]))


ACTORS = {"trainer": "TrainerActor", "fusion": "FusionActor"}
DELAYS = {"driver": 25.0, "trainer": 4.0, "fusion": 8.0}  # a start takes the driver ten seconds and more


def whole(home: Path) -> None:
    """Read everything that is there. Raises where a file is half-written."""
    for manifest in home.rglob("manifest.json"):
        for name in read_manifest(manifest.parent).files:
            load_tensors(manifest.parent, name)
    for path in home.rglob("*.json"):
        json.loads(path.read_text())
    for path in home.rglob("*.onnx"):
        onnx.checker.check_model(onnx.load(path))
    for path in home.rglob("*.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays:
                arrays[name]


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


def fuzz(count: int, seed: int, tally: Tally) -> Iterator[str]:
    """Mutated files through `validate`: accepted, or Rejected with a sentence; anything else is a broken promise."""
    draw = random.Random(seed)
    texts = [path.read_text() for path in Path(__file__).parent.parent.glob("examples/*.yaml")] + [
        team_text(draw) for _ in range(20)
    ]
    for number in range(count):
        text = mutated(draw, texts)
        tally.files += 1
        try:
            config.resolve_team(teamfile.parse_document(text, Path("/somewhere/team.yaml")))
            yield "accepted"
        except ConclaveError as error:
            check(error.exit_code == 2 and bool(str(error)), seed, f"file {number}: exit {error.exit_code}")
            yield "rejected"
        except Exception as error:
            raise Broken(f"BROKEN (seed {seed}, file {number}): {type(error).__name__}: {error}\n{text!r}") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--files", type=int, default=10_000)
    options = parser.parse_args()
    tally, began = Tally(), time.monotonic()
    outcomes = Counter(fuzz(options.files, options.seed, tally))
    print(f"{tally.files} mutated team files: {dict(outcomes)}, no traceback", flush=True)
    seeds = campaign(options.seed, options.kills, tally)
    result = {
        "kills": dict(tally.kills),
        "sweeps": tally.sweeps,
        "commands": tally.commands,
        "fits_compared": tally.fits,
        "metric_points_compared": tally.points,
        "team_files": {"mutated": tally.files, **outcomes},
        "seeds": seeds,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    write_result("chaos", " ".join(["python -m benchmarks.chaos", *sys.argv[1:]]), result)
    print(json.dumps({**result, "machine": describe()}, indent=1))


if __name__ == "__main__":
    main()
