"""Commands on the images of a team file: data, split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import DEFAULT_HOME, AsJson, DataPath, HomeDir, TeamFile, check_writable, new_file
from workers.errors import UserInputError

app = typer.Typer()


@app.command("data", epilog="Example: conclave data team.yaml --sheet photos.svg")
def show_data(
    team_file: TeamFile,
    home: HomeDir = DEFAULT_HOME,
    data: DataPath = None,
    sheet: Annotated[
        Path | None, typer.Option(help="The SVG file for a few images of each class. The default is TEAM-data.svg.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Summarize the data set and its possible problems. Images are decoded as in a sweep; nothing is trained."""
    from orchestrator.cli.screen import Screen
    from orchestrator.config.loader import load_team
    from orchestrator.reporting.contact_sheet import draw_contact_sheet
    from workers.data.inspection import inspect_data

    team = load_team(team_file, data)
    target = sheet or Path(f"{team.name}-data.svg")
    if target.suffix != ".svg":
        raise UserInputError(f"--sheet {target}: the sheet is an SVG file. Give a name that ends with .svg.")
    check_writable("--sheet", target)
    with Screen() as screen:
        store, summary = inspect_data(team.data, team.seed, home, screen.on_packing)
    note = draw_contact_sheet(store, summary, target)
    if as_json:
        print(json.dumps(summary.model_dump(mode="json")))
        return
    from orchestrator.reporting.tables import print_table

    print_table(["class", *summary.rows], [[name, *map(str, counts.values())] for name, counts in summary.classes.items()])
    print("\n".join(summary.lines()))
    print(f"{target} is written, with some images of each class{f' ({note})' if note else ''}.")


@app.command(epilog="Example: conclave split team.yaml --out split.csv")
def split(
    team_file: TeamFile,
    out: Annotated[Path, typer.Option(help="The CSV file to write.")] = Path("split.csv"),
    home: HomeDir = DEFAULT_HOME,
    data: DataPath = None,
    as_json: AsJson = False,
) -> None:
    """Write which image is in which part and fold, for `data: {split: FILE}` on the other computers of a team."""
    from orchestrator.cli.screen import Screen
    from orchestrator.config.loader import load_team
    from workers.data.inspection import pack_and_check
    from workers.data.split_history import write_table
    from workers.data.splits import keep_split

    team = load_team(team_file, data)
    check_writable("--out", out)
    with Screen() as screen:
        store = pack_and_check(team.data, team.seed, home, screen.on_packing, screen.say)
    found = keep_split(store, team.data, team.seed, home)
    parts = {"fit": found.fit, "fuse": found.fuse, "test": found.test}
    with new_file("--out", out) as file:
        file.write(write_table(store, parts, found.folds))
    counts = {part: len(rows) for part, rows in parts.items() if len(rows)}
    if as_json:
        print(json.dumps({"file": str(out), "rows": counts}))
        return
    print(f"{out} is written: {', '.join(f'{part} {count:,}' for part, count in counts.items())}.")
    print(f"On each computer of the team, put it beside the team file and set `split: {out.name}` under `data`.")
