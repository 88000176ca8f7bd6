"""Commands on images: init, data, split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import DEFAULT_HOME, SCHEMA_NAME, AsJson, DataPath, HomeDir, TeamFile, check_writable, new_file
from workers.errors import UserInputError

app = typer.Typer()
TEAM_SUFFIXES = (".yaml", ".yml")


@app.command(epilog="Example: conclave init photos")
def init(
    photos: Annotated[
        Path | None, typer.Argument(help="A folder, an archive or a table of images. Without it, the file is for digits.")
    ] = None,
    path: Annotated[Path | None, typer.Argument(help="The file to write. The default is team.yaml.", metavar="[FILE]")] = None,
    scratch: Annotated[bool, typer.Option("--scratch", help="Propose networks without published weights.")] = False,
) -> None:
    """Look at images, and write a team file for them, with the reason for each line."""
    from orchestrator.config.proposal import examine, propose
    from orchestrator.config.team_file import schema_text

    if photos and path is None and photos.suffix in TEAM_SUFFIXES and not photos.is_dir():
        photos, path = None, photos
    target = path or Path("team.yaml")
    if target.exists():
        raise UserInputError(f"{target}: exists already. Give another name.")
    template, schema = Path(__file__).parent / "templates" / "team.yaml", target.with_name(SCHEMA_NAME)
    text = propose(examine(photos), target, scratch) if photos else template.read_text(encoding="utf-8")
    try:
        target.write_text(text, encoding="utf-8")
        schema.write_text(schema_text(), encoding="utf-8")
    except OSError as error:
        raise UserInputError(f"{target}: can't be written ({error.strerror}).") from None
    print(f"{target} is written, and {schema} for editors. Next: conclave sweep {target}")


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
    from orchestrator.planning.start_weights import with_interpolation
    from orchestrator.reporting.contact_sheet import draw_contact_sheet
    from workers.data.inspection import inspect_data

    team = with_interpolation(load_team(team_file, data))
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
    from orchestrator.planning.start_weights import with_interpolation
    from workers.data.inspection import pack_and_check
    from workers.data.split_history import write_table
    from workers.data.splits import keep_split

    team = with_interpolation(load_team(team_file, data))
    check_writable("--out", out)
    with Screen() as screen:
        store = pack_and_check(team.data, team.seed, home, screen.on_packing, screen.say)
        found = keep_split(store, team.data, team.seed, home, screen.say)
    parts = {"fit": found.fit, "fuse": found.fuse, "test": found.test}
    with new_file("--out", out) as file:
        file.write(write_table(store, parts, found.folds))
    counts = {part: len(rows) for part, rows in parts.items() if len(rows)}
    if as_json:
        print(json.dumps({"file": str(out), "rows": counts}))
        return
    print(f"{out} is written: {', '.join(f'{part} {count:,}' for part, count in counts.items())}.")
    print(f"On each computer of the team, put it beside the team file and set `split: {out.name}` under `data`.")
