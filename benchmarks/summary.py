"""Print the table of docs/explanation/speed.md from what the other files here measured. `make bench` ends with it.

Prints Markdown; a file that is missing is a row that is missing. A goal that is missed says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from benchmarks.machine import RESULTS

Row = tuple[str, str, str, str, str]
STEMS = {"imagenet": "torchvision's stem", "cifar": "3x3 stem"}


def result(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {**content["result"], "machine": content["machine"]}


def at_least(value: float, goal: float) -> str:
    return f"{goal:g}" + ("" if value >= goal else ": missed")


def at_most(value: float, goal: float) -> str:
    return f"{goal:g}" + ("" if value <= goal else ": missed")


def training(stem: str, figures: dict[str, Any]) -> Iterator[Row]:
    rates, where = figures["images_per_second"], STEMS[stem]
    names = {"common": "usual script (DataLoader, 2 workers)", "torchensemble": "TorchEnsemble's own `fit`"}
    for peer, ratio in figures["ours_over"].items():
        goal = at_least(ratio, figures["goals"]["common"]) if peer == "common" else ""
        what = f"training, all members at once, images/s, {where}"
        yield what, f"{rates[peer]:,.0f}: {names[peer]}", f"{rates['ours']:,.0f}", f"{ratio:.1f}x", goal
    share, efficiency = figures["roof_fraction"], figures["pipeline_efficiency"]
    yield (
        f"share of the rate of a large matrix product, {where}",
        "1",
        f"{share:.2f}",
        "",
        at_least(share, figures["goals"]["roof"]),
    )
    goal = at_least(efficiency, figures["goals"]["pipeline_efficiency"])
    yield f"speed relative to forward, backward and step alone, {where}", "1", f"{efficiency:.3f}", "", goal
    ratio, one_core = figures["outputs_over_training"], figures["one_core"]
    of_training = f"{rates['ours'] / figures['machine']['cores']:,.0f}"
    yield (
        f"outputs relative to training, images/s per core, {where}",
        of_training,
        f"{one_core['outputs']:,.0f}",
        f"{ratio:.1f}x",
        at_least(ratio, 3),
    )
    if stem == "imagenet":
        for key, what, goal_rate in (("flip_crop", "flip and crop", 30_000), ("every_augmentation", "every kind", 10_000)):
            yield f"augmentation, {what}, images/s per core", "", f"{one_core[key]:,.0f}", "", at_least(one_core[key], goal_rate)


def orchestration(figures: dict[str, Any]) -> Iterator[Row]:
    per_second, pool = figures["no_op_jobs_a_second"], figures["pool_of_two_actors_a_second"]
    goal = at_least(per_second, figures["goals"]["no_op_jobs_a_second"])
    yield (
        "jobs that do nothing, supervised, per second",
        f"{pool:,.0f}: bare pool of two actors",
        f"{per_second:,.0f}",
        f"{per_second / pool:.2f}x",
        goal,
    )
    bound = figures["simulated_bound_seconds"]
    ratio = figures["simulated_over_bound"]
    yield (
        "10,000 simulated jobs of a second in 16 slots, s",
        f"{bound:.0f}: the least there can be",
        f"{bound * ratio:.0f}",
        f"{ratio:.3f}x",
        at_most(ratio, figures["goals"]["simulated_over_bound"]),
    )
    for key, what in (
        ("a_job_at_1000_over_100", "time of a job among 1,000 relative to one among 100"),
        ("plan_of_10000_seconds", "plan of 10,000 jobs, s"),
        ("status_of_1000_seconds", "status over 1,000 members, s"),
        ("help_over_imports", "`conclave --help` relative to importing its libraries"),
        ("validate_seconds", "`conclave validate`, s"),
        ("plan_seconds", "`conclave plan`, s"),
        ("start_existing_home_seconds", "until the first step, existing home, s"),
        ("start_new_home_seconds", "until the first step, new home, s"),
        ("nothing_to_do_seconds", "sweep with nothing to do, s"),
    ):
        yield what, "", f"{figures[key]:.2f}", "", at_most(figures[key], figures["goals"][key])


def overhead(figures: dict[str, Any]) -> Iterator[Row]:
    best, sweep = figures["bare_packed_seconds"], figures["sweep_seconds"]
    goal = "" if figures["goal"] is None else at_most(sweep / best, 1 + figures["goal"])
    yield (
        f"sweep of {figures['fits']} trainings, {figures['minutes']:g} minutes: s from the first step to the end of the last",
        f"{best:.0f}: the bare trainings, packed tightly",
        f"{sweep:.0f}",
        f"{sweep / best:.3f}x",
        goal,
    )


def tracking(figures: dict[str, Any]) -> Iterator[Row]:
    what = f"an epoch's metrics, {figures['members']} members at once, ms of processor time each"
    cost = figures["processor_milliseconds"]  # all threads', that of training among them
    yield what, "", f"{cost:.1f} (training held for {figures['held_milliseconds']:.1f})", "", at_most(cost, figures["goal"])


def packing(figures: dict[str, Any]) -> Iterator[Row]:
    seconds, again = figures["seconds"], figures["second_use_seconds"]
    what, peer = f"packing {figures['images']:,} JPEGs, s", f"{seconds['decoding']:.1f}: decoding them in threads"
    yield what, peer, f"{seconds['packing']:.1f}", f"{figures['over_decoding']:.2f}x", ""
    yield "its second use, s", "", f"{again:.3f}", "", at_most(again, figures["goals"]["second_use_seconds"])


def inference(figures: dict[str, Any]) -> Iterator[Row]:
    for batch, goals in (("1", figures["goals"]["1"]), ("256", figures["goals"]["256"])):
        times, best = figures["milliseconds"][batch], figures["fastest"][batch]
        of_batch = f"{batch} image" if batch == "1" else f"{batch} images"
        ratio = figures["over_eager"][batch][best]
        eager = f"{times['eager']:.1f}: three networks in turn"
        goal = at_least(ratio, goals["fused_over_eager"])
        yield f"answers for {of_batch}, ms ({best})", eager, f"{times[best]:.1f}", f"{ratio:.1f}x", goal
        speedup = times["torch"] / times["cascade"]
        peer = f"{times['torch']:.1f}: all members, torch"
        yield f"cascade for {of_batch}, ms", peer, f"{times['cascade']:.1f}", f"{speedup:.1f}x", ""
        of_student, fastest = figures["student_over_fused"][batch], figures["fastest_student"][batch]
        goal = at_least(of_student, figures["goals"]["student_over_fused"])
        yield (
            f"student for {of_batch}, ms",
            f"{times[best]:.1f}: fused",
            f"{times[fastest]:.1f}",
            f"{of_student:.1f}x",
            goal,
        )


def predicting(figures: dict[str, Any]) -> Iterator[Row]:
    seconds, ratio = figures["seconds"], figures["over_the_slower"]
    slower = max(seconds["decoding"], seconds["running"])
    halves = f"{slower:.1f}: the slower of decoding and running"
    yield "predict on 10,000 files, s", halves, f"{seconds['predict']:.1f}", f"{ratio:.2f}x", at_most(ratio, figures["goal"])


def fusing(figures: dict[str, Any]) -> Iterator[Row]:
    what = f"all fusions and their comparison, {figures['members']} members, {figures['classes']:,} classes, s"
    ours = f"{figures['total']:.0f} ({max(figures['peak_gib'].values()):.1f} GiB)"
    yield what, "", ours, "", at_most(figures["total"], figures["goal"])


OTHERS = {
    "sweep": orchestration,
    "overhead-2": overhead,
    "overhead-10": overhead,
    "tracking": tracking,
    "packing": packing,
    "fusion-10": fusing,
    "fusion-100": fusing,
    "fusion-1000": fusing,
    "inference": inference,
    "predict": predicting,
}


def rows() -> Iterator[Row]:
    for stem in STEMS:
        if figures := result(f"train-{stem}"):
            yield from training(stem, figures)
    for name, make in OTHERS.items():
        if figures := result(name):
            yield from make(figures)


def main() -> None:
    print("| what | peer | ours | ratio | goal |\n|---|---|---|---|---|")
    for row in rows():
        print(f"| {' | '.join(row)} |")
    for name in (*(f"train-{stem}" for stem in STEMS), *OTHERS):
        if figures := result(name):
            machine = figures["machine"]
            print(f"\n{name}: {machine['cores']} cores, {machine['processor']}, torch {machine['torch']}", end="")
    print()


if __name__ == "__main__":
    main()
