"""Kill random processes of random sweeps, and see that nothing is lost: `make chaos`.

Each round draws a team of small networks on digits, sweeps it from an empty folder while SIGKILL hits it from the first
second on, and then sweeps it again undisturbed, to compare. What is hit: the driver, trainers, the fusion actor, Ray's own
processes, all of them at once, or two. The command is given again whenever the driver fell. In a third of the rounds two
sweeps share the home; in another third the tracking server is away half of the time. Each broken promise is named with the seed
that shows it again, and its round's folder stays. Mutated team files go through `validate`, in process.

    python -m benchmarks.chaos --kills 200 --seed 1 --files 10000
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
import threading
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil

from benchmarks.machine import describe, write_result
from benchmarks.mutations import Broken, check, validate_mutated
from tests.faults.mlflow_server import Server
from tests.faults.place import Place, begun, left, points, weights
from workers.diagnostics.waiting import wait_until
from workers.storage.manifest import Manifest, read_manifest
from workers.storage.tensor_folder import load_tensors
from workers.tracking.client import TrackingClient

LONGEST = 900.0  # seconds that one command may take
KINDS = ("driver", "driver", "trainer", "trainer", "trainer", "fusion", "gcs", "raylet", "agent", "group", "pair")
ACTORS = {"trainer": "ray::TrainerActor", "fusion": "ray::FusionActor", "gcs": "gcs_server", "agent": "Agent", "raylet": "raylet"}
DELAYS = {"trainer": 4.0, "fusion": 3.0}  # seconds after there is one, for which is waited; of all others, at once or after:
PATIENCE = 40.0  # seconds
OTHERS_DELAY = 25.0  # a start takes ten seconds and more
KILLS_A_ROUND = 12
ROUNDS_AT_ONCE = 2
AWAY = (2.0, 6.0)  # seconds that a failing tracking server is away, and there, at most
# What is said before exit 1 where the same command is to be given again.
SAID = (
    "Ray ended on this machine",
    "the fusion actor died",
    "Ray doesn't start on this machine",
    "ended from outside, or by Ray",
)


@dataclass
class Tally:
    """What was seen."""

    kills: Counter[str] = field(default_factory=Counter)
    sweeps: int = 0
    commands: int = 0
    fits: int = 0
    points: int = 0
    broken: list[str] = field(default_factory=list)


def team_text(draw: random.Random, name: str = "tiny", seed: int = 0, uri: str = "") -> str:
    """A random small team: plain members, and one that is a search, or makes several members; a student at times."""
    folds = draw.choice([0, 0, 2])
    fusion = draw.choice(["vote", "vote, weighted", "vote, stack" if folds else "vote_logits"])
    more = draw.choice(
        [
            "",
            "snapshots: 2",
            "average: ema",
            "count: 2",
            "search: {trials: 3, epochs: 2, lr: [0.01, 0.3]}",
        ]
    )
    with_student = draw.choice([True, False, False]) and not more.startswith("search")
    members = f"  - {{name: m0, seed: {draw.randrange(1000)}, optimizer: {{kind: sgd, lr: 0.05}}}}\n"
    members += f"  - {{name: m1, seed: {draw.randrange(1000)}, optimizer: {{kind: adamw, lr: 0.002}}}}\n"
    if more:
        members += f"  - {{name: m2, seed: {draw.randrange(1000)}, optimizer: {{kind: sgd, lr: 0.05}}, {more}}}\n"
    student = f"student: {{epochs: 3, seed: 4}}\nfusion: [{fusion}, student]\n" if with_student else f"fusion: [{fusion}]\n"
    return (
        f"version: 1\nname: {name}\nseed: {seed}\ndata: {{dataset: digits, folds: {folds}}}\n"
        f"train: {{epochs: {draw.randint(4, 12)}, batch_size: 32, schedule: {draw.choice(['one_cycle', 'cosine'])}}}\n"
        f'defaults: {{arch: "small:Small", augment: [crop]}}\n{student}'
        # a kill of a trainer is an error of its own, and no campaign may run out of them
        f"retries: {{errors: 1000}}\ncheckpoint: {{minutes: {draw.choice([0.001, 0.01, 5])}}}\n"
        + (f"tracking: {{uri: '{uri}', required: false}}\n" if uri else "")
        + f"members:\n{members}"
    )


def campaign(first: int, kills: int, tally: Tally, at_once: int = ROUNDS_AT_ONCE) -> list[int]:
    """Rounds, so many side by side, until so many kills were made; gives their seeds. A broken promise ends its round."""
    seeds: list[int] = []
    with ThreadPoolExecutor(at_once) as pool:
        running: set[Future[None]] = set()
        while sum(tally.kills.values()) < kills or running:
            while len(running) < at_once and sum(tally.kills.values()) < kills:
                seeds.append(first + len(seeds))
                print(f"seed {seeds[-1]}", flush=True)
                wanted = min(KILLS_A_ROUND, kills - sum(tally.kills.values()))
                running.add(pool.submit(run_round, seeds[-1], wanted, tally))
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for round_ in ended:
                try:
                    round_.result()
                except Broken as broken:
                    print(broken, flush=True)
                    tally.broken.append(str(broken))
    return seeds


def run_round(seed: int, wanted: int, tally: Tally) -> None:
    """One team, or two in one home: undisturbed, then under `wanted` kills, then compared."""
    draw = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="conclave-chaos-"))
    text, other = team_text(draw), team_text(draw, "other")
    server = FailingServer(folder / "server", seed) if seed % 3 == 2 else None
    tracked = f"tracking: {{uri: '{server.server.uri}', required: false}}\n" if server else ""
    places = [Place(folder / "killed", text + tracked, prepared=False)]
    if seed % 3 == 1:
        places.append(Place(folder / "killed", other, prepared=False, label="other-"))
    try:
        summaries = disturbed(places, seed, draw, wanted, tally)
        if server:
            server.stay()
            places[0].command("sync", "--home", "home")
            check(statuses(summaries[0]) <= {"FINISHED"}, seed, f"runs are {statuses(summaries[0])}")
    finally:
        for place in places:
            place.end()
        if server:
            server.stay()
            server.server.down()
    home = places[0].home
    for summary, undisturbed in zip(summaries, (text, other), strict=False):
        reference = Place(folder / f"undisturbed-{summary['sweep']}", undisturbed)
        compare(summary, reference.sweep(), seed, tally)  # on Ray, for a search needs it
    check(not begun(home), seed, f"left behind: {begun(home)}")
    whole(home)
    tally.fits += len(list(home.glob("jobs/*/fit/manifest.json")))
    shutil.rmtree(folder)


def compare(summary: dict[str, Any], expected: dict[str, Any], seed: int, tally: Tally) -> None:
    """Compare a sweep with the same one, undisturbed."""
    check(weights(summary) == weights(expected), seed, "the weights differ")
    if str(summary["tracking_uri"]).startswith("sqlite"):
        actual, wanted = points(summary), points(expected)
        check(actual == wanted, seed, "the metric points differ")
        tally.points += sum(map(len, actual.values()))
        check(statuses(summary) <= {"FINISHED"}, seed, f"runs are {statuses(summary)}")
    tally.sweeps += 1


def statuses(summary: dict[str, Any]) -> set[str]:
    """The statuses of all runs of a sweep."""
    tracking = TrackingClient(summary["tracking_uri"])
    parent = tracking.client.get_run(summary["parent_run_id"])
    children = tracking.children(parent.info.experiment_id, summary["parent_run_id"])
    check(len({child.signature for child in children}) == len(children), 0, "a run is there twice")
    return {parent.info.status, *(child.status for child in children)}


class FailingServer:
    """A tracking server that comes and goes, until it is told to stay."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.server, self.draw, self.over = Server(folder), random.Random(seed), threading.Event()
        self.server.up()
        self.thread = threading.Thread(target=self._trouble)
        self.thread.start()

    def _trouble(self) -> None:
        while not self.over.wait(self.draw.uniform(0.5, AWAY[1])):
            self.server.down()
            self.over.wait(self.draw.uniform(0.5, AWAY[0]))
            self.server.up()

    def stay(self) -> None:
        """Be there from now on."""
        self.over.set()
        self.thread.join()


def disturbed(places: list[Place], seed: int, draw: random.Random, wanted: int, tally: Tally) -> list[dict[str, Any]]:
    """Sweep until all are done, killing `wanted` times on the way (fewer where the sweeps are done before)."""
    done, summaries = 0, dict[str, dict[str, Any]]()
    everybody: dict[str, list[psutil.Process]] = {}
    began: dict[str, float] = {}
    while len(summaries) < len(places):
        for place in places:
            if place.label in summaries:
                continue
            if place.process is None:
                place.start()
                began[place.label], everybody[place.label] = time.monotonic(), []
                tally.commands += 1
            code = place.process.poll() if place.process else None
            if code is None:
                check(time.monotonic() - began[place.label] < LONGEST, seed, "a sweep hangs")
                continue
            remaining = left(everybody[place.label])
            check(not remaining, seed, f"alive 10 s after the driver: {remaining}")
            check("Traceback" not in place.said(), seed, place.said()[-2000:])
            place.process = None
            if code == 0:
                summaries[place.label] = place.printed()
                continue
            gave_up = code == 1 and any(text in place.said() for text in SAID)
            waits = code == 1 and "another sweep is running this search" in place.said()
            check(code == -signal.SIGKILL or gave_up or waits, seed, f"exit code {code}: {place.said()[-2000:]}")
        running = [place for place in places if place.process is not None]
        if done < wanted and running and hit(draw.choice(running), draw, everybody, tally):
            done += 1
        time.sleep(0.05)
    return [summaries[place.label] for place in places]


def hit(place: Place, draw: random.Random, everybody: dict[str, list[psutil.Process]], tally: Tally) -> bool:
    """Kill a process of a random kind, at a random moment. False where there is none by then."""
    kind = draw.choice(KINDS)
    if kind in DELAYS:
        wait_until(lambda: _named(place, kind) and _has_work(place, kind), PATIENCE, give_up=lambda: _has_ended(place))
    time.sleep(draw.uniform(0.0, DELAYS.get(kind, OTHERS_DELAY if draw.random() < 0.3 else 3.0)))
    if _has_ended(place):
        return False
    everybody[place.label] = place.watch()
    targets = _targets(place, kind, draw)
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if targets:
        tally.kills[kind] += 1
        print(f"  {sum(tally.kills.values())}: {kind} of {place.folder.parent.name}", flush=True)
    return bool(targets)


def _has_work(place: Place, kind: str) -> bool:
    """Whether processes of a kind do something: the fusion actor begins long before it does."""
    return kind != "fusion" or "fusing" in place.said()


def _targets(place: Place, kind: str, draw: random.Random) -> list[int]:
    """The processes that a kill hits; none where there is none of the kind."""
    assert place.process
    if kind == "driver":
        return [place.process.pid]
    processes = place.watch()
    if kind == "group":  # of the driver, as when a terminal is closed by force
        return [process.pid for process in processes if _group(process) == place.process.pid]
    if kind == "pair":
        return [process.pid for process in draw.sample(processes, 2)] if len(processes) > 1 else []
    named = _named(place, kind)
    return [draw.choice(named)] if named else []


def _has_ended(place: Place) -> bool:
    return place.process is None or place.process.poll() is not None


def _named(place: Place, kind: str) -> list[int]:
    return [process.pid for process in place.watch() if _is_called(process, ACTORS[kind])]


def _group(process: psutil.Process) -> int:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return 0


def _is_called(process: psutil.Process, name: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return name in process.name() or name in " ".join(process.cmdline()[:1])
    return False


def whole(home: Path) -> None:
    """Read everything that is there. Raises where a file is half-written."""
    for manifest in home.rglob("manifest.json"):
        for name in read_manifest(manifest.parent, Manifest).files:
            load_tensors(manifest.parent, name)
    for path in home.rglob("*.json"):
        json.loads(path.read_text())
    for path in home.rglob("*.onnx"):
        onnx.checker.check_model(onnx.load(path))
    for path in home.rglob("*.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays:
                arrays[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--files", type=int, default=10_000)
    options = parser.parse_args()
    tally, began = Tally(), time.monotonic()
    draw = random.Random(options.seed)
    outcomes = Counter(validate_mutated(options.files, options.seed, [team_text(draw) for _ in range(20)]))
    print(f"{options.files} mutated team files: {dict(outcomes)}, no traceback", flush=True)
    seeds = campaign(options.seed, options.kills, tally)
    result = {
        "kills": dict(tally.kills),
        "sweeps": tally.sweeps,
        "commands": tally.commands,
        "fits_compared": tally.fits,
        "metric_points_compared": tally.points,
        "team_files": {"mutated": options.files, **outcomes},
        "seeds": seeds,
        "broken": [text[:300] for text in tally.broken],
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    write_result("chaos", " ".join(["python -m benchmarks.chaos", *sys.argv[1:]]), result)
    print(json.dumps({**result, "machine": describe()}, indent=1))
    if tally.broken:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
