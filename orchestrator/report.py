"""What came out, for people: the table on screen, plots, one self-contained HTML page, a note for the tracking UI."""

from __future__ import annotations

import base64
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from orchestrator.config import Team
from orchestrator.home import SweepFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Histories = dict[str, list[dict[str, float]]]


def rows(summary: dict[str, Any], details: dict[str, Any]) -> list[dict[str, str]]:
    """The table, one row for each single member and each fusion, as text."""
    found = []
    for name, row in details["candidates"].items():
        scores = row["test"] or row["fuse"]
        gain = row.get("against_single")
        found.append(
            {
                "name": name,
                "kind": "member" if name in summary["members"] else "fusion",
                "accuracy": f"{scores['accuracy']:.2%}",
                "interval": "" if not row.get("interval") else f"{row['interval'][0]:.2%} to {row['interval'][1]:.2%}",
                "nll": f"{scores['nll']:.4f}",
                "brier": f"{scores['brier']:.4f}",
                "ece": f"{scores['ece']:.4f}",
                "gain": "" if gain is None or name == details["best_single"] else _gain(gain),
                "p": "" if gain is None or name == details["best_single"] else f"{gain[2]:.1g}",
                "train": f"{row['train_cost']:.2f}x",
                "inference": f"{row['inference_cost']:.2f}x",
                "recommended": "yes" if name == details["recommended"] else "",
            }
        )
    return found


def _gain(gain: tuple[float, tuple[float, float], float]) -> str:
    points, (low, high), _ = gain
    return f"{points * 100:+.2f} ({low * 100:+.2f}..{high * 100:+.2f})"


def verdict(details: dict[str, Any]) -> str:
    """Which one to use, what it gains and with which confidence, in a sentence or two."""
    name = details["recommended"]
    row = details["candidates"][name]
    cost = f"It cost {row['train_cost']:.2f}x the training of one member and {row['inference_cost']:.2f}x its inference."
    if name == details["best_single"]:
        return f"Use {name}: no fusion is surely better on the fuse rows. {cost}"
    gain = row.get("against_single")
    gained = (
        ""
        if gain is None
        else (
            f" On the test rows it gains {_gain(gain)} points over {details['best_single']} "
            f"(95 % paired interval; McNemar p = {gain[2]:.3g})."
        )
    )
    return f"Use {name}: {details['why']}.{gained} {cost}"


def note(summary: dict[str, Any]) -> str:
    """Markdown for the parent run."""
    lines = [f"### Sweep {summary['sweep']}: {summary['state']}", "", f"Recommended: **{summary['recommended']}**", ""]
    lines += ["| | test accuracy | test NLL | training | inference |", "|---|---|---|---|---|"]
    for name, row in {**summary["members"], **summary["fusions"]}.items():
        test = row["test"]
        scores = f"{test['accuracy']:.2%} | {test['nll']:.4f}" if test else f"{row.get('state', '')} | "
        costs = f"{row['train_cost']:.2f}x | {row['inference_cost']:.2f}x" if "train_cost" in row else "1x | 1x"
        lines.append(f"| {name} | {scores} | {costs} |")
    return "\n".join(lines)


def write(folder: SweepFolder, team: Team, summary: dict[str, Any], details: dict[str, Any], histories: Histories) -> None:
    """report.html and its plots, which are inside it and beside it."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    from workers.files import write_bytes

    pictures = {"curves": _curves(histories), "costs": _costs(details), "classes": _classes(details)}
    embedded = {}
    for name, figure in pictures.items():
        path = folder.path / f"{name}.png"
        figure.savefig(path, dpi=110, bbox_inches="tight")
        embedded[name] = base64.b64encode(path.read_bytes()).decode()
    environment = Environment(loader=PackageLoader("orchestrator"), autoescape=select_autoescape())
    page = environment.get_template("report.html.j2").render(
        team=team,
        summary=summary,
        details=details,
        rows=rows(summary, details),
        verdict=verdict(details),
        pictures=embedded,
        environment=environment_facts(),
        command=f"conclave sweep {folder.team.name}",
    )
    write_bytes(folder.report, page.encode())


def environment_facts() -> dict[str, str]:
    packages = ("torch", "torchvision", "ray", "mlflow", "numpy", "scikit-learn", "onnxruntime")
    return {"python": platform.python_version(), "machine": platform.machine(), **{p: version(p) for p in packages}}


def _figure(width: float = 7.0, height: float = 3.6) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _curves(histories: Histories) -> Figure:
    figure = _figure(9)
    for place, (key, label) in enumerate((("train/loss", "training loss"), ("fuse/accuracy", "accuracy on fuse"))):
        axes = figure.add_subplot(1, 2, place + 1)
        for name, history in histories.items():
            axes.plot(range(1, len(history) + 1), [epoch[key] for epoch in history], label=name)
        axes.set(xlabel="epoch", title=label)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False)
    return figure


def _costs(details: dict[str, Any]) -> Figure:
    figure = _figure()
    axes = figure.add_subplot()
    for name, row in details["candidates"].items():
        scores = row["test"] or row["fuse"]
        chosen = name == details["recommended"]
        low, high = row.get("interval") or (scores["accuracy"], scores["accuracy"])
        spread = [[(scores["accuracy"] - low) * 100], [(high - scores["accuracy"]) * 100]]
        at = ([row["train_cost"]], [scores["accuracy"] * 100])
        axes.errorbar(*at, yerr=spread, fmt="s" if chosen else "o", capsize=3, label=name)
    axes.set(xlabel="training cost, multiples of one member", ylabel="accuracy, %")
    axes.set_title("Accuracy against cost (95 % intervals)")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
    return figure


def _classes(details: dict[str, Any]) -> Figure:
    figure = _figure(9, 0.4 * len(details["candidates"]) + 1.6)
    axes = figure.add_subplot()
    names = [n for n, row in details["candidates"].items() if row.get("per_class")]
    values = [[100 * (v or 0) for v in details["candidates"][n]["per_class"]] for n in names]
    if values:
        picture = axes.imshow(values, aspect="auto", cmap="viridis")
        figure.colorbar(picture, label="accuracy, %")
        axes.set_xticks(range(len(details["classes"])), details["classes"], rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
    axes.set_title("Accuracy by class on the test rows")
    return figure
