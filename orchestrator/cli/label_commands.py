"""The `labels` command, which lists doubtful labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import DEFAULT_HOME, ForSpreadsheet, HomeDir, SweepName, check_writable, new_file, write_csv

app = typer.Typer()
HEADER = ("id", "part", "label", "guess", "probability_wrong", "probability_of_guess", "probability_of_label")


@app.command(epilog="Example: conclave labels digits --csv suspects.csv")
def labels(
    name: SweepName,
    target: Annotated[Path | None, typer.Option("--csv", help="The CSV file to write, with all doubtful images.")] = None,
    spreadsheet: ForSpreadsheet = False,
    top: Annotated[int, typer.Option(min=1, help="How many images to show.")] = 20,
    home: HomeDir = DEFAULT_HOME,
) -> None:
    """List doubtful labels, the most doubtful first. Members judge only images that they did not train on."""
    from fusion.selection.doubts import find_suspects
    from orchestrator.fusing.fitted_team import Artifacts
    from orchestrator.fusing.refit import build_request
    from orchestrator.reporting.tables import print_table
    from workers.data.store import Store

    if target:
        check_writable("--csv", target)
    request = build_request(home, name)
    team, ids = Artifacts.of(request).predictions(request), Store(request.store).ids
    found = find_suspects(team)
    rows = [
        [ids[one.row], one.part, one.label, one.guess.class_name]
        + [f"{value:.4f}" for value in (one.wrong, one.guess.probability, one.of_label)]
        for one in found
    ]
    judged = len(team.fuse_rows) + len(team.test_rows) + (len(team.fit_rows) if team.inputs.oof else 0)
    count = sum(one.is_probable for one in found)
    if rows:
        print_table([word.replace("_", " ") for word in HEADER], rows[:top])
    print(f"{count:,} of {judged:,} labels {'is' if count == 1 else 'are'} probably wrong.")
    if team.inputs.oof is None:
        print("The images that the members trained on were not judged: that needs fold trainings (data.folds, and a stack).")
    if target:
        with new_file("--csv", target) as file:
            write_csv(file, [HEADER, *rows], spreadsheet)
        print(f"{target} is written.")
