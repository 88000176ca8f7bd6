"""Show what came out: the rows of the table, the verdict, one self-contained HTML page, and a note for the tracking UI."""

from __future__ import annotations

import base64
import io
import platform
import shlex
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from orchestrator.home import SweepFolder
from orchestrator.planning.plan import Plan

if TYPE_CHECKING:
    from workers.data.store import Store

Histories = dict[str, list[dict[str, float]]]
SHOWN_PIXELS = 96


def table_rows(summary: dict[str, Any], details: dict[str, Any]) -> list[dict[str, str]]:
    """Return the rows of the table as text: one for each single member and each fusion.

    Args:
        summary: The sweep's summary; only its `members` count.
        details: What the fusion step returned.
    """
    rows = []
    for name, row in details["candidates"].items():
        scores = row["test"] or row["fuse"]
        gain = row.get("against_single")
        rows.append(
            {
                "name": name,
                "kind": "member" if name in summary["members"] else "fusion",
                "accuracy": f"{scores['accuracy']:.2%}",
                "interval": "" if not row.get("interval") else f"{row['interval'][0]:.2%} to {row['interval'][1]:.2%}",
                "nll": f"{scores['nll']:.4f}",
                "brier": f"{scores['brier']:.4f}",
                "ece": f"{scores['ece']:.4f}",
                "gain": "" if gain is None or name == details["best_single"] else _gain(gain),
                "p": "" if gain is None or name == details["best_single"] else f"{row.get('holm_p', gain[2]):.1g}",
                "train": f"{row['train_cost']:.2f}x",
                "inference": f"{row['inference_cost']:.2f}x",
                "per_point": "" if row["cost_per_point"] is None else f"{row['cost_per_point']:.1f}x",
                "money": ", ".join(f"{kind} {amount:.2f}" for kind, amount in row["money"].items()),
                "matched": _matched(row),
                "chosen": row.get("chosen", ""),
                "recommended": "yes" if name == details["recommended"] else "",
            }
        )
    return rows


def _matched(row: dict[str, Any]) -> str:
    """Return the best vote of networks that the same training paid for, as text."""
    vote = row.get("matched")
    if not vote:
        return ""
    return f"{(vote['test'] or vote['fuse'])['accuracy']:.2%} (vote of {vote['networks']})"


def _gain(gain: tuple[float, tuple[float, float], float]) -> str:
    points, (low, high), _ = gain
    return f"{points * 100:+.2f} ({low * 100:+.2f}..{high * 100:+.2f})"


def verdict(details: dict[str, Any]) -> str:
    """Say in a sentence or two which candidate to use, what it gains, and with what confidence."""
    name = details["recommended"]
    row = details["candidates"][name]
    cost = f"It cost {row['train_cost']:.2f}x the training of one member and {row['inference_cost']:.2f}x its inference."
    if name == details["best_single"]:
        return f"Use {name} alone: no fusion is surely better on the fuse rows. {cost}"
    gain = row.get("against_single")
    gain_text = (
        ""
        if gain is None
        else (
            f" On the test rows it gains {_gain(gain)} points over {details['best_single']} "
            f"(95 % paired interval; McNemar p = {gain[2]:.3g})."
        )
    )
    return f"Use {name}: {details['why']}.{gain_text} {cost}"


def run_note(summary: dict[str, Any]) -> str:
    """Return Markdown for the page of the parent run."""
    lines = [f"### Sweep {summary['sweep']}: {summary['state']}", "", f"Recommended: **{summary['recommended']}**", ""]
    lines += ["| | test accuracy | test NLL | training | inference |", "|---|---|---|---|---|"]
    for name, row in {**summary["members"], **summary["fusions"]}.items():
        test = row["test"]
        scores = f"{test['accuracy']:.2%} | {test['nll']:.4f}" if test else f"{row.get('state', '')} | "
        costs = f"{row['train_cost']:.2f}x | {row['inference_cost']:.2f}x" if "train_cost" in row else "1x | 1x"
        lines.append(f"| {name} | {scores} | {costs} |")
    return "\n".join(lines)


def write_report(folder: SweepFolder, plan: Plan, summary: dict[str, Any], details: dict[str, Any], histories: Histories) -> None:
    """Write report.html, and its plots, which are inside it and beside it.

    Args:
        folder: The sweep's folder.
        plan: The plan.
        summary: The sweep's summary.
        details: What the fusion step returned.
        histories: Metrics of each epoch of each member's full training.
    """
    from jinja2 import Environment, PackageLoader

    from orchestrator.reporting import plots
    from workers.storage.files import write_bytes

    embedded = {}
    for name, figure in plots.all_plots(details, histories).items():
        path = folder.path / f"{name}.png"
        figure.savefig(path, dpi=110, bbox_inches="tight")
        embedded[name] = base64.b64encode(path.read_bytes()).decode()
    environment = Environment(loader=PackageLoader("orchestrator.reporting"), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        team=plan.team,
        summary=summary,
        details=details,
        rows=table_rows(summary, details),
        verdict=verdict(details),
        pictures=embedded,
        smallest=smallest_difference(details),
        hardest=[_shown(row, plan.store) for row in details["hardest"]],
        environment=environment_facts(),
        command=shlex.join(["conclave", *sys.argv[1:]]),
    )
    write_bytes(folder.report, page.encode())


def smallest_difference(details: dict[str, Any]) -> float | None:
    """Return what the *test* rows can show of the recommended fusion; of any candidate, where no fusion is recommended."""
    candidates, recommended = details["candidates"], details["recommended"]
    names = list(candidates) if recommended == details["best_single"] else [recommended]
    return max((candidates[name].get("detectable") or 0.0 for name in names), default=0.0) or None


def _shown(row: dict[str, Any], store: Store) -> dict[str, Any]:
    return {**row, "picture": _picture(store.images[row["row"]]), "id": store.ids[row["row"]]}


def _picture(pixels: Any) -> str:
    """Return (H, W, 3) uint8 pixels as a PNG in base64, large enough to see."""
    from PIL import Image

    image = Image.fromarray(pixels)
    scale = max(1, round(SHOWN_PIXELS / image.height))
    buffer = io.BytesIO()
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def environment_facts() -> dict[str, str]:
    """Return the versions that the report names."""
    packages = ("torch", "torchvision", "ray", "mlflow", "numpy", "scikit-learn", "onnxruntime")
    return {"python": platform.python_version(), "machine": platform.machine(), **{p: version(p) for p in packages}}
