"""Commands on the results of a sweep: fuse, predict, export, report."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import DEFAULT_HOME, AsJson, ForSpreadsheet, HomeDir, SweepName, check_writable, new_file, write_csv
from workers.errors import UserInputError

if TYPE_CHECKING:
    from fusion.serving.outputs import Prediction
    from orchestrator.fusing.request import ExportOptions
    from orchestrator.home import SweepFolder

app = typer.Typer()
FUSE_COLUMNS = ("name", "accuracy", "nll", "gain", "train", "inference", "recommended")


@app.command(epilog="Example: conclave fuse cifar-team --drop weak --method vote --method stack")
def fuse(
    name: SweepName,
    method: Annotated[list[str] | None, typer.Option(help="A fusion to fit. Repeat the option for several.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Members to leave out, separated by commas.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="The only members to fuse, separated by commas.")] = None,
    also: Annotated[
        list[str] | None, typer.Option("--with", help="Another sweep on the same data and split, whose members join.")
    ] = None,
    home: HomeDir = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Fit the fusions again from finished trainings. Nothing is trained, and the sweep stays as it is."""
    from orchestrator.fusing.refit import join_sweeps, refit_fusions, select_members
    from orchestrator.reporting.report import table_rows
    from orchestrator.reporting.tables import print_table
    from orchestrator.reporting.verdict import diversity_text, verdict

    request = select_members(join_sweeps(home, name, method, also or ()), drop or (), only or ())
    details = refit_fusions(request)
    if as_json:
        print(json.dumps(details.model_dump(mode="json")))
        return
    rows = table_rows(request.members, details)
    print_table(list(FUSE_COLUMNS), [[row[key] for key in FUSE_COLUMNS] for row in rows])
    for line in (*verdict(details, request.team.name), *diversity_text(details), *details.warnings):
        print(line)


@app.command(epilog="Example: conclave predict conclave-runs/sweeps/digits/fused.onnx photos/ --out guesses.csv")
def predict(
    model: Annotated[Path, typer.Argument(help="The exported model, for example fused.onnx, or the name of a sweep.")],
    images: Annotated[list[Path] | None, typer.Argument(help="Image files, folders or archives.")] = None,
    listing: Annotated[
        Path | None, typer.Option("--list", help="A file that names images, a path on each line or in the column path.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The CSV file to write. The default is stdout.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Write one row per image, with this many of its best classes.")] = None,
    submission: Annotated[
        Path | None, typer.Option(help="A competition's sample file: fill in its ids and columns.", metavar="SAMPLE.CSV")
    ] = None,
    positive: Annotated[
        str | None, typer.Option(help="The class whose probability a sample's column of numbers takes.", metavar="CLASS")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="A CSV or Parquet file with path and label, to score the predictions by.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail at the first image that can't be read.")] = False,
    encoding: Annotated[str | None, typer.Option(help="Encoding of names in a ZIP archive that are not UTF-8.")] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Decode images of up to this many pixels; the default is 89 million.")
    ] = None,
    runtime: Annotated[
        str,
        typer.Option(help="The runtime: onnx, torch or torch-bfloat16. auto picks torch if it is faster than onnx."),
    ] = "auto",
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Let torch import the modules that the model's .json names.")
    ] = False,
    spreadsheet: ForSpreadsheet = False,
    home: HomeDir = DEFAULT_HOME,
) -> None:
    """Predict the class probabilities of images. The output is CSV: file, class, probability."""
    from fusion.serving.entries import list_entries, read_list
    from fusion.serving.outputs import LabelledScores, all_classes, best_classes
    from fusion.serving.predictor import Predictor, refuse
    from fusion.serving.runtimes import NAMES
    from fusion.serving.submission import Submission
    from workers.data.images import MAX_PIXELS

    if runtime not in NAMES:
        raise UserInputError(f"--runtime {runtime}: unknown; known are {', '.join(NAMES)}.")
    if top and submission:
        raise UserInputError("--top and --submission both set the rows. Use only one of them.")
    if bool(images) == bool(listing):
        raise UserInputError("name image files, folders or archives, or a list of them by --list FILE.")
    predictor = Predictor(_model_file(model, home), runtime, trust_code, max_pixels or MAX_PIXELS)
    skipped = _Skipped()
    on_problem, classes = refuse if strict else skipped, predictor.classes
    sample = Submission.read(submission, classes, positive) if submission else None
    with ExitStack() as open_files:
        paths = read_list(listing) if listing else images or []
        entries = list(list_entries(paths, open_files, on_problem, _encoding(encoding)))
        names = [entry.name for entry in entries]
        scores = LabelledScores(classes, _labels(labels, classes, names))
        predictions = _not_empty(scores.follow(predictor.predictions(entries, on_problem)))
        if sample:
            rows = sample.rows(names, predictions, lambda text: print(text, file=sys.stderr))
        else:
            rows = best_classes(predictions, classes, top) if top else all_classes(predictions, classes)
        with new_file("--out", out) if out else nullcontext(sys.stdout) as file:
            write_csv(file, rows, spreadsheet, sample.delimiter if sample else ",")
    total = scores.counts.total() + scores.unknown
    for line in [*scores.lines(), f"read {total:,} images, skipped {skipped.count:,}"]:
        print(line, file=sys.stderr)


def _encoding(name: str | None) -> str | None:
    """Check the encoding on the command line."""
    from workers.config.specs import check_encoding

    try:
        return check_encoding(name) if name else None
    except ValueError as error:
        raise UserInputError(f"--encoding {name}: {error}.") from None


def _not_empty(predictions: Iterator[Prediction]) -> Iterator[Prediction]:
    """Return the predictions. Raises UserInputError before anything is written if they are empty."""
    first = next(predictions, None)
    if first is None:
        raise UserInputError("no image was read: name image files, or folders or archives that hold some.")
    return chain([first], predictions)


class _Skipped:
    """Counts unreadable images, and reports each on stderr."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, problem: str) -> None:
        self.count += 1
        print(f"skipped: {problem}", file=sys.stderr)


def _model_file(model: Path, home: Path) -> Path:
    """Return the model file: the given path, or the model of the sweep with this name."""
    from orchestrator.home import Home

    is_name = len(model.parts) == 1 and not model.exists() and str(model) in Home(home).sweeps()
    return Home(home).sweep(str(model)).model if is_name else model


def _labels(table: Path | None, classes: Sequence[str], names: Sequence[str]) -> Mapping[str, str]:
    """Return each image's label by its name; empty without a table."""
    from fusion.serving.matching import labels_of_table
    from workers.data.tables import read_table

    return labels_of_table(read_table(table), classes, names, f"--labels {table}") if table else {}


@app.command(epilog="Example: conclave export digits --method stack --out stack.onnx")
def export(
    name: SweepName,
    method: Annotated[str | None, typer.Option(help="The fusion or the member to export.")] = None,
    out: Annotated[Path | None, typer.Option(help="The model file to write. The default is SWEEP-METHOD.onnx.")] = None,
    outputs: Annotated[Path | None, typer.Option(help="An .npz file for the outputs that the fusions were fitted on.")] = None,
    abstain: Annotated[
        bool,
        typer.Option("--abstain", help="Let the model also give `sets` of possible classes, and `disagreement`."),
    ] = False,
    coverage: Annotated[
        float | None, typer.Option(min=0.5, max=0.999, help="Share of new images whose class --abstain's `sets` must hold.")
    ] = None,
    flips: Annotated[
        bool,
        typer.Option("--flips", help="Let the model see each image and its mirror image, at twice the inference cost."),
    ] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Write an 8-bit version too, and measure what it costs.")] = False,
    float16: Annotated[
        bool, typer.Option("--float16", help="Write a version in half precision too, for GPUs, and measure what it costs.")
    ] = False,
    home: HomeDir = DEFAULT_HOME,
) -> None:
    """Export a fusion or a member as one model file, or the outputs that the fusions were fitted on."""
    from orchestrator.fusing.request import ExportOptions, Precision
    from orchestrator.home import Home

    if abstain and flips:
        raise UserInputError("export: --abstain and --flips don't go together: the sets hold for answers without flips.")
    if coverage and not abstain:
        raise UserInputError("export: --coverage is of the sets that --abstain adds. Give both.")
    folder = Home(home).existing(name)
    if method is None and outputs is None:
        raise UserInputError("export: nothing to export. Give --method NAME for a model, or --outputs FILE.npz.")
    target = out or Path(f"{name}-{method}.onnx")
    if outputs:
        check_writable("--outputs", outputs)
    if method:
        check_writable("--out", target)
    if method and target.suffix in (".json", ".safetensors"):
        raise UserInputError(f"--out {target}: the model's torch form goes to files of these names; name the model itself .onnx.")
    if outputs:
        _export_outputs(folder, outputs)
    if method:
        precisions: dict[Precision, bool] = {"int8": int8, "float16": float16}
        asked = tuple(precision for precision, is_asked in precisions.items() if is_asked)
        _export_model(home, name, method, target, ExportOptions(abstain, flips, asked, coverage))


def _export_outputs(folder: SweepFolder, outputs: Path) -> None:
    import shutil

    if not folder.outputs.is_file():
        raise UserInputError(f"sweep {folder.path.name}: not fused yet. Run `conclave sweep` first.")
    try:
        shutil.copyfile(folder.outputs, outputs)
    except OSError as error:
        raise UserInputError(f"--outputs {outputs}: can't be written ({error.strerror}).") from None
    print(f"{outputs} is written.")


def _export_model(home: Path, name: str, method: str, target: Path, options: ExportOptions) -> None:
    from dataclasses import replace

    from fusion.interface import FUSIONS
    from fusion.selection.fitting import left_out
    from orchestrator.fusing.exporting import write_converted_models, write_model
    from orchestrator.fusing.fitted_team import fit_team
    from orchestrator.fusing.refit import build_request

    request = build_request(home, name)
    if method not in request.members and method not in FUSIONS:
        raise UserInputError(f"--method: {FUSIONS.answer(method, tuple(request.members))}.")
    team = request.team.model_copy(update={"fusion": () if method in request.members else (method,)})
    fitted_team = fit_team(replace(request, team=team))
    if method not in fitted_team.fitted:
        raise UserInputError(f"--method: {left_out(fitted_team.team, (method,))[0]}")
    try:
        difference = write_model(request, fitted_team, method, target, options)
    except OSError as error:
        raise UserInputError(f"--out {target}: can't be written ({error.strerror}).") from None
    print(f"{target} is written; it differs from the fusion by at most {difference:.1e}.")
    for converted, loss in write_converted_models(request, fitted_team, method, target, options):
        print(f"{converted} is written: right on {loss}.")


@app.command(epilog="Example: conclave report digits")
def report(name: SweepName, home: HomeDir = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """Print the table and the verdict of a finished sweep. The path of its HTML report comes last."""
    from orchestrator.home import Home
    from orchestrator.reporting.tables import print_summary

    folder = Home(home).existing(name)
    summary = folder.summary()
    if summary is None:
        raise UserInputError(f"sweep {name}: not finished yet. Run `conclave sweep` again; what is done is kept.")
    if as_json:
        details = folder.details()
        shown = details.model_dump(mode="json") if details else {}
        print(json.dumps({**summary.model_dump(mode="json"), "details": shown}))
        return
    if folder.has_newer_run:
        print("A later run of this sweep is under way or did not finish; the previous run's results:")
    print_summary(Home(home), summary)
