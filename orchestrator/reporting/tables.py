"""Print tables on stdout."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from fusion.results import METRIC_NAMES
from orchestrator.home import Home
from orchestrator.results import SweepSummary

WIDE = 10_000  # columns


def print_table(headers: list[str], rows: list[list[str]], marked: int | None = None) -> None:
    """Print a table.

    Args:
        headers: Column titles.
        rows: Cells.
        marked: Index of a row to show in bold.
    """
    table = Table(box=None)
    for header in headers:
        table.add_column(header, no_wrap=True)
    for i, row in enumerate(rows):
        table.add_row(*row, style="bold green" if i == marked else None)
    console = Console()
    if not console.is_terminal:  # don't truncate in a pipe or a file
        console = Console(width=WIDE)
    console.print(table)


def print_summary(home: Home, summary: SweepSummary) -> None:
    """Print a sweep's table, its verdict, and the paths of its model and report."""
    from orchestrator.reporting import report
    from orchestrator.reporting.next_steps import next_steps_text
    from orchestrator.reporting.verdict import contributions_text, diversity_text, doubts_text, verdict

    counts = f"{summary.trained} trainings were run now, {summary.reused} were done before"
    print(f"Sweep {summary.sweep}: {summary.state}; {counts}.")
    for name, member in summary.members.items():
        if member.reason:
            log = home.sweep(summary.sweep).logs / member.log
            where = f"; log: {log}" if log.is_file() else ""
            print(f"  {name}: {member.state}: {member.reason}{where}")
    if summary.unsent:
        why = f" ({summary.unsent_because})" if summary.unsent_because else ""
        print(f"Tracking: {summary.unsent:,} entries are not sent yet{why}. `conclave sync --home {home.path}` sends them.")
    folder = home.sweep(summary.sweep)
    details = folder.details()
    if summary.state == "interrupted":
        print("Interrupted: what is finished is kept; the same command goes on from there.")
    if summary.state in ("failed", "interrupted") or details is None:
        return
    keys = {
        "name": "",
        "accuracy": "accuracy",
        "balanced": "balanced",
        "nll": "NLL",
        "gain": f"points over {details.best_single}",
    }
    if (metric := details.choice.metric) not in ("nll", "accuracy"):
        keys["metric"] = METRIC_NAMES[metric]
    keys |= {"p": "Holm's p", "train": "training", "inference": "inference"}
    rows = report.table_rows(summary.members, details)
    marked = next(i for i, row in enumerate(rows) if row["recommended"])
    print_table(list(keys.values()), [[row[key] for key in keys] for row in rows], marked)
    for line in (
        *verdict(details, summary.sweep),
        *diversity_text(details),
        *([contributions] if (contributions := contributions_text(details)) else ()),
        *([step] if (step := next_steps_text(details)) else ()),
        *doubts_text(details),
        *details.warnings,
        *(summary.data.warnings if summary.data else ()),
    ):
        print(line)
    uri = summary.tracking_uri
    browse = uri if uri.startswith("http") else f"conclave ui --home {home.path}"
    print(f"Model:   {summary.model}\nReport:  {folder.report}\nBrowse:  {browse}")
