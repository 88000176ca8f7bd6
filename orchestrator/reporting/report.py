"""Present the results of a sweep: table rows, a self-contained HTML page, and a note for the tracking UI."""

from __future__ import annotations

import base64
import io
import platform
import shlex
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fusion.results import METRIC_NAMES, Candidate, FusionDetails, Gain, HardRow, SuspectLabel, TestResults
from orchestrator.home import SweepFolder
from orchestrator.planning.plan import Plan
from orchestrator.reporting.next_steps import next_step_rows
from orchestrator.reporting.verdict import abstention_text, diversity_text, money_text, verdict
from orchestrator.results import FusionSummary, MemberState, SweepSummary

if TYPE_CHECKING:
    from workers.data.store import Store

Histories = dict[str, list[dict[str, float]]]
SHOWN_PIXELS = 96


def table_rows(members: Collection[str], details: FusionDetails) -> list[dict[str, str]]:
    """Return the rows of the table as text: one for each single member and each fusion.

    Args:
        members: Names of the members.
        details: What the fusion step returned.
    """
    rows = []
    for name, row in details.candidates.items():
        scores = row.test or row.fuse
        gain = row.against_single if name != details.best_single else None
        p_value = "" if gain is None else f"{gain.p if row.holm_p is None else row.holm_p:.1g}"
        rows.append(
            {
                "name": name,
                "kind": "member" if name in members else "fusion",
                "accuracy": f"{scores.accuracy:.2%}",
                "balanced": "" if row.balanced_accuracy is None else f"{row.balanced_accuracy:.2%}",
                "metric": _by_metric(row),
                "interval": "" if row.interval is None else f"{row.interval[0]:.2%} to {row.interval[1]:.2%}",
                "nll": f"{scores.nll:.4f}",
                "brier": f"{scores.brier:.4f}",
                "ece": f"{scores.ece:.4f}",
                "gain": "" if gain is None else _gain(gain),
                "p": p_value,
                "train": f"{row.train_cost:.2f}x",
                "inference": f"{row.compute_cost or row.inference_cost:.2f}x",
                "seconds": f"{row.inference_ms:.2f} ms",
                "per_point": "" if row.cost_per_point is None else f"{row.cost_per_point:.1f}x",
                "money": ", ".join(f"{kind} {money_text(amount)}" for kind, amount in row.money.items()),
                "matched": _matched(row),
                "chosen": row.chosen,
                "recommended": "yes" if name == details.recommended else "",
            }
        )
    return rows


def _by_metric(row: Candidate) -> str:
    """Return the score by a metric that is a share, with its interval."""
    if row.loss is None or row.loss_interval is None:
        return ""
    low, high = row.loss_interval
    return f"{1 - row.loss:.2%} ({1 - high:.2%} to {1 - low:.2%})"


def _matched(row: Candidate) -> str:
    """Return the best vote for the same training time, as text."""
    vote = row.matched
    return f"{(vote.test or vote.fuse).accuracy:.2%} (vote of {vote.networks})" if vote else ""


def _gain(gain: Gain) -> str:
    low, high = gain.interval
    return f"{gain.difference * 100:+.2f} ({low * 100:+.2f}..{high * 100:+.2f})"


def run_note(summary: SweepSummary, details: FusionDetails | None = None) -> str:
    """Return Markdown for the page of the parent run.

    Args:
        summary: The sweep's summary.
        details: What the fusion step returned; None if nothing was fused.
    """
    lines = [f"### Sweep {summary.sweep}: {summary.state}", "", f"Recommended: **{summary.recommended}**", ""]
    if details:
        lines += [*(f"- {line}" for line in (*verdict(details, summary.sweep), *details.warnings)), ""]
    lines += ["| | test accuracy | test NLL | training | inference |", "|---|---|---|---|---|"]
    for name, row in summary.candidates.items():
        lines.append(f"| {name} | {_note_cells(row)} |")
    lines += ["", *(f"- {line}" for line in summary.data.lines())] if summary.data else []
    return "\n".join(lines)


def _note_cells(row: MemberState | FusionSummary) -> str:
    costs, state = "1x | 1x", ""
    if isinstance(row, MemberState):
        state = row.state
    else:
        costs = f"{row.train_cost:.2f}x | {row.compute_cost or row.inference_cost:.2f}x"
    scores = f"{row.test.accuracy:.2%} | {row.test.nll:.4f}" if row.test else f"{state} | "
    return f"{scores} | {costs}"


def write_report(folder: SweepFolder, plan: Plan, summary: SweepSummary, details: FusionDetails, histories: Histories) -> None:
    """Write report.html with its plots embedded, and the plots as SVG files next to it.

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
        path = folder.path / f"{name}.svg"
        plots.save_svg(figure, path)
        embedded[name] = base64.b64encode(path.read_bytes()).decode()
    environment = Environment(loader=PackageLoader("orchestrator.reporting"), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        team=plan.team,
        summary=summary,
        details=details,
        diversity=diversity_text(details),
        money=money_text,
        rows=table_rows(summary.members, details),
        metric_name=METRIC_NAMES[details.choice.metric],
        verdict=verdict(details, summary.sweep),
        pictures=embedded,
        smallest=smallest_difference(details.candidates, details.recommended, details.best_single),
        hardest=[ShownImage.of(row, plan.store) for row in details.hardest],
        suspects=[ShownImage.of(row, plan.store) for row in details.suspects],
        next_steps=next_step_rows(details),
        abstention=abstention_text(details),
        environment=environment_facts(),
        command=shlex.join(["conclave", *sys.argv[1:]]),
    )
    write_bytes(folder.report, page.encode())


def smallest_difference(candidates: Mapping[str, TestResults], recommended: str, single: str) -> float | None:
    """Return the smallest difference that the *test* rows can show.

    It is the recommended fusion's, or the largest of all candidates if a single member is recommended.
    """
    names = list(candidates) if recommended == single else [recommended]
    return max((candidates[name].detectable or 0.0 for name in names), default=0.0) or None


@dataclass(frozen=True)
class ShownImage:
    """An image in the report: its id, its row's results, and its pixels as a base64 PNG."""

    id: str
    row: HardRow | SuspectLabel
    picture: str

    @classmethod
    def of(cls, row: HardRow | SuspectLabel, store: Store) -> ShownImage:
        """Return a row with its picture."""
        return cls(store.ids[row.row], row, _picture(store.images[row.row]))


def _picture(pixels: Any) -> str:
    """Encode (H, W, 3) uint8 pixels as a base64 PNG, large enough to see."""
    from PIL import Image

    image = Image.fromarray(pixels)
    scale = max(1, round(SHOWN_PIXELS / image.height))
    buffer = io.BytesIO()
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def environment_facts() -> dict[str, str]:
    """Return the versions that the report lists."""
    packages = ("torch", "torchvision", "ray", "mlflow", "numpy", "scikit-learn", "onnxruntime")
    return {"python": platform.python_version(), "machine": platform.machine(), **{p: version(p) for p in packages}}
