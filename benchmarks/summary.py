"""Print the table of docs/explanation/speed.md from what the other files here measured. `make bench` ends with it.

Prints Markdown; a file that is missing is a row that is missing. A goal that is missed says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from benchmarks.machine import RESULTS

Row = tuple[str, str, str, str, str]
NAMES = {"compiled": "the same with train.compile", "packed": "the same, two members a process, packed"}
STEMS = {"imagenet": "torchvision's stem", "cifar": "3x3 stem"}


def result(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return None
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {**kept["result"], "machine": kept["machine"]}


def at_least(value: float, goal: float) -> str:
    return f"{goal:g}" + ("" if value >= goal else ": missed")


def at_most(value: float, goal: float) -> str:
    return f"{goal:g}" + ("" if value <= goal else ": missed")


def training(stem: str, found: dict[str, Any]) -> Iterator[Row]:
    rates, where = found["images_per_second"], STEMS[stem]
    names = {"common": "usual script (DataLoader, 2 workers)", "torchensemble": "TorchEnsemble's own fit"}
    for peer, ratio in found["ours_over"].items():
        goal = at_least(ratio, found["goals"]["common"]) if peer == "common" else ""
        what = f"training, all members at once, images/s, {where}"
        yield what, f"{rates[peer]:,.0f}: {names[peer]}", f"{rates['ours']:,.0f}", f"{ratio:.1f}x", goal
    for way, ratio in found.get("over_ours", {}).items():
        yield f"{NAMES[way]}, {where}", f"{rates['ours']:,.0f}: ours", f"{rates[way]:,.0f}", f"{ratio:.2f}x", ""
    share, efficiency = found["roof_fraction"], found["pipeline_efficiency"]
    yield (
        f"share of what a large matrix product reaches, {where}",
        "1",
        f"{share:.2f}",
        "",
        at_least(share, found["goals"]["roof"]),
    )
    goal = at_least(efficiency, found["goals"]["pipeline_efficiency"])
    yield f"over forward, backward and step alone, {where}", "1", f"{efficiency:.3f}", "", goal
    ratio, one = found["outputs_over_training"], found["one_core"]
    of_training = f"{rates['ours'] / found['machine']['cores']:,.0f}"
    yield (
        f"outputs over training, images/s a core, {where}",
        of_training,
        f"{one['outputs']:,.0f}",
        f"{ratio:.1f}x",
        at_least(ratio, 3),
    )
    if stem == "imagenet":
        for key, what, goal_rate in (("flip_crop", "flip and crop", 30_000), ("every_augmentation", "every kind", 10_000)):
            yield f"augmentation, {what}, images/s a core", "", f"{one[key]:,.0f}", "", at_least(one[key], goal_rate)


def orchestration(found: dict[str, Any]) -> Iterator[Row]:
    ours, pool = found["no_op_jobs_a_second"], found["pool_of_two_actors_a_second"]
    goal = at_least(ours, found["goals"]["no_op_jobs_a_second"])
    yield (
        "jobs that do nothing, supervised, a second",
        f"{pool:,.0f}: bare pool of two actors",
        f"{ours:,.0f}",
        f"{ours / pool:.2f}x",
        goal,
    )
    for key, what in (
        ("a_job_at_1000_over_100", "a job among 1,000 over one among 100"),
        ("plan_of_10000_seconds", "plan of 10,000 jobs, s"),
        ("status_of_1000_seconds", "status over 1,000 members, s"),
        ("help_over_imports", "`conclave --help` over importing its libraries"),
        ("validate_seconds", "`conclave validate`, s"),
        ("plan_seconds", "`conclave plan`, s"),
        ("start_existing_home_seconds", "until the first step, home there, s"),
        ("start_new_home_seconds", "until the first step, new home, s"),
        ("nothing_to_do_seconds", "sweep with nothing to do, s"),
    ):
        yield what, "", f"{found[key]:.2f}", "", at_most(found[key], found["goals"][key])


def overhead(found: dict[str, Any]) -> Iterator[Row]:
    best, ours = found["bare_packed_seconds"], found["sweep_seconds"]
    what = f"sweep of {found['fits']} fits, s, first step to last fit's end"
    yield (
        what,
        f"{best:.0f}: the bare fits, packed",
        f"{ours:.0f}",
        f"{ours / best:.3f}x",
        at_most(ours / best, 1 + found["goal"]),
    )


def tracking(found: dict[str, Any]) -> Iterator[Row]:
    what = f"an epoch's metrics, {found['members']} members at once, ms of processor time each"
    cost = found["processor_milliseconds"]  # all threads', that of training among them
    yield what, "", f"{cost:.1f} (training held for {found['held_milliseconds']:.1f})", "", at_most(cost, found["goal"])


def packing(found: dict[str, Any]) -> Iterator[Row]:
    seconds, again = found["seconds"], found["second_use_seconds"]
    what, peer = f"packing {found['images']:,} JPEGs, s", f"{seconds['decoding']:.1f}: decoding them in threads"
    yield what, peer, f"{seconds['packing']:.1f}", f"{found['over_decoding']:.2f}x", ""
    yield "its second use, s", "", f"{again:.3f}", "", at_most(again, found["goals"]["second_use_seconds"])


def inference(found: dict[str, Any]) -> Iterator[Row]:
    for batch, goals in (("1", found["goals"]["1"]), ("256", found["goals"]["256"])):
        times, best = found["milliseconds"][batch], found["fastest"][batch]
        ratio = found["over_eager"][batch][best]
        eager = f"{times['eager']:.1f}: three networks in turn"
        goal = at_least(ratio, goals["fused_over_eager"])
        yield f"answers for {batch} images, ms ({best})", eager, f"{times[best]:.1f}", f"{ratio:.1f}x", goal
        asked = times["torch"] / times["cascade"]
        peer = f"{times['torch']:.1f}: all members, torch"
        yield f"cascade for {batch} images, ms", peer, f"{times['cascade']:.1f}", f"{asked:.1f}x", ""
        of_student, fastest = found["student_over_fused"][batch], found["fastest_student"][batch]
        goal = at_least(of_student, found["goals"]["student_over_fused"])
        yield (
            f"student for {batch} images, ms",
            f"{times[best]:.1f}: fused",
            f"{times[fastest]:.1f}",
            f"{of_student:.1f}x",
            goal,
        )


def predicting(found: dict[str, Any]) -> Iterator[Row]:
    seconds, ratio = found["seconds"], found["over_the_slower"]
    slower = max(seconds["decoding"], seconds["running"])
    halves = f"{slower:.1f}: the slower of decoding and running"
    yield "predict on 10,000 files, s", halves, f"{seconds['predict']:.1f}", f"{ratio:.2f}x", at_most(ratio, found["goal"])


def fusing(found: dict[str, Any]) -> Iterator[Row]:
    seconds, gib = found["total"], found["peak_gib"]
    yield "all fusions of ten members, 50,000 rows, nested, s", "", f"{seconds:.0f} ({gib:.1f} GiB)", "", at_most(seconds, 60)


OTHERS = {
    "sweep": orchestration,
    "overhead": overhead,
    "tracking": tracking,
    "packing": packing,
    "fusion": fusing,
    "inference": inference,
    "predict": predicting,
}


def rows() -> Iterator[Row]:
    for stem in STEMS:
        if found := result(f"train-{stem}"):
            yield from training(stem, found)
    for name, make in OTHERS.items():
        if found := result(name):
            yield from make(found)


def main() -> None:
    print("| what | peer | ours | ratio | goal |\n|---|---|---|---|---|")
    for row in rows():
        print(f"| {' | '.join(row)} |")
    for name in (*(f"train-{stem}" for stem in STEMS), *OTHERS):
        if found := result(name):
            machine = found["machine"]
            print(f"\n{name}: {machine['cores']} cores, {machine['processor']}, torch {machine['torch']}", end="")
    print()


if __name__ == "__main__":
    main()
