"""Whole sweeps: in this process where that suffices, by the real command with real Ray actors where it matters."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from fusion.export.onnx_export import load_model
from fusion.export.onnx_session import create_session, predict_probabilities
from fusion.metrics.calibration import apply_temperature, log_probabilities, nll
from fusion.metrics.conformal import prediction_sets
from fusion.predictions import softmax
from orchestrator import sweep as pipeline
from orchestrator.cli import entry, result_commands
from orchestrator.execution.ray_backend import inline_executor
from orchestrator.home import Home
from orchestrator.results import SweepSummary
from tests.factories import TEAM, snapshot
from tests.faults.place import SMALL, prepare_home
from workers.data.store import Store
from workers.errors import UserInputError
from workers.storage.artifacts import MemberArtifact
from workers.tracking.client import TrackingClient
from workers.training.task import Publish, TrainingResult, TrainingTask
from workers.training.train import train
from workers.training.trainer import Trainer

QUICK = TEAM.replace("width: 4", 'arch: "small:Small"')  # exported in a second, where a ResNet takes five


def conclave(*arguments: object, cwd: Path, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    """The command: a sweep, and what has an environment of its own, in a process; any other here, where torch is imported."""
    words = list(map(str, arguments))
    if words[0] != "sweep" and not env:
        found = called(words, cwd)
    else:
        command, settings = [sys.executable, "-m", "conclave", *words], {**os.environ, **env}
        found = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False, env=settings)
    assert found.returncode == code, found.stdout + found.stderr
    assert "Traceback" not in found.stderr
    return found


def called(words: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command in this process, from the words to its exit code."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with contextlib.chdir(cwd), patch.object(sys, "argv", ["conclave", *words]), redirect_stdout(out), redirect_stderr(err):
        try:
            entry.main()
        except SystemExit as left:
            code = left.code
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return subprocess.CompletedProcess(words, code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


def inline(team_file: Path, home: Path, prepared: bool = True) -> pipeline.SweepResult:
    """A sweep in this process, with a database that is there already unless `prepared` is false."""
    (team_file.parent / "small.py").write_text(SMALL)
    if prepared:
        prepare_home(home)
    return pipeline.run_sweep(team_file, pipeline.SweepOptions(Home(home), inline_executor))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A sweep by the real command: two members, two folds, Ray actors."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "team.yaml").write_text(TEAM)
    found = conclave("sweep", "team.yaml", "--home", "home", "--json", cwd=folder)
    return folder, json.loads(found.stdout.splitlines()[-1])


def test_the_summary_keeps_its_contract(done: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = done
    assert summary["state"] == "done"
    assert (summary["trained"], summary["reused"]) == (6, 0)
    assert list(summary["fusions"]) == ["vote", "weighted", "stack", "concat"]
    for member in summary["members"].values():
        assert {"state", "reason", "seed", "test", "train_seconds", "weights_sha256"} <= set(member)
    for fusion in summary["fusions"].values():
        assert {"test", "train_cost", "inference_cost", "inference_ms_all_cores", "compute_cost"} <= set(fusion)
    assert summary["recommended"] in {**summary["members"], **summary["fusions"]}
    assert Path(summary["model"]).is_file()
    home = folder / "home"
    for name in ("mlflow.db", "artifacts", "data", "sweeps/tiny/report.html", "sweeps/tiny/summary.json"):
        assert (home / name).exists(), name
    kept = json.loads((home / "sweeps/tiny/summary.json").read_text())
    assert kept.pop("checksum")
    assert kept == summary


def test_a_sweep_with_nothing_to_do_imports_neither_torch_nor_ray(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text(QUICK)
    inline(tmp_path / "team.yaml", tmp_path / "home")
    code = (
        "import sys; sys.argv = ['conclave', 'sweep', 'team.yaml', '--home', 'home', '--json']\nfrom orchestrator import cli\n"
        "try: cli.main()\nexcept SystemExit as e: assert not e.code\n"
        "print('HEAVY', [m for m in ('torch', 'ray') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "HEAVY []" in found.stdout, found.stdout + found.stderr


def test_the_runs_tell_the_story(done: tuple[Path, dict[str, Any]]) -> None:
    _, summary = done
    client = TrackingClient(summary["tracking_uri"]).client
    parent = client.get_run(summary["parent_run_id"])
    runs = client.search_runs([parent.info.experiment_id])
    assert len(runs) == 7
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert parent.data.metrics["test/accuracy"] > 0
    assert {f"fusions/{f}/accuracy" for f in summary["fusions"]} <= set(parent.data.metrics)
    members = [r for r in runs if r.data.tags["role"] == "member"]
    folds = [r for r in runs if r.data.tags["role"] == "fold"]
    assert {r.data.tags["mlflow.parentRunId"] for r in members} == {parent.info.run_id}
    assert {r.data.tags["mlflow.parentRunId"] for r in folds} == {r.info.run_id for r in members}
    assert members[0].data.params["optimizer.kind"] == "sgd"
    history = client.get_metric_history(members[0].info.run_id, "train/loss")
    assert [point.step for point in history] == [1, 2]
    assert client.get_model_version_by_alias("tiny", "champion").run_id == parent.info.run_id
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} >= {"report.html", "fused.onnx", "team.yaml"}


def test_the_registered_model_predicts_without_pickle(done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    _, summary = done
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    mlflow.set_tracking_uri(summary["tracking_uri"])
    mlflow.set_registry_uri(summary["tracking_uri"])
    model = mlflow.pyfunc.load_model("models:/tiny@champion")
    images = np.zeros((3, 8, 8, 3), np.uint8)
    assert model.predict({"images": images})["probabilities"].shape == (3, 10)


def test_the_exported_model_is_the_fusion(done: tuple[Path, dict[str, Any]]) -> None:
    """Recomputed from the outputs file: ONNX, torch form and summary agree."""
    folder, summary = done
    conclave("export", "tiny", "--outputs", "o.npz", "--method", "stack", "--out", "s.onnx", "--home", "home", cwd=folder)
    outputs = np.load(folder / "o.npz", allow_pickle=False)
    store = Store(next((folder / "home" / "data").iterdir()))
    images = np.asarray(store.images[np.isin(store.ids, outputs["test_ids"])])
    found = create_session(str(folder / "s.onnx")).run(None, {"images": images})[0]
    assert np.abs(found - outputs["fusion/stack/test_probabilities"]).max() < 1e-4
    assert nll(found.astype(float), outputs["test_labels"]) == pytest.approx(summary["fusions"]["stack"]["test"]["nll"], abs=1e-3)
    torch_form = load_model(folder / "s.onnx")(torch.from_numpy(images)).detach().numpy()
    assert np.abs(torch_form - found).max() < 1e-4
    model = onnx.load_model(folder / "s.onnx")
    metadata = {p.key: p.value for p in model.metadata_props}
    assert json.loads(metadata["classes"]) == summary["classes"]
    assert [i.name for i in model.graph.input] == ["images"]
    assert [o.name for o in model.graph.output] == ["probabilities"]


def test_the_outputs_file_is_whole(done: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = done
    conclave("export", "tiny", "--outputs", "w.npz", "--home", "home", cwd=folder)
    outputs = np.load(folder / "w.npz", allow_pickle=False)
    ids = np.concatenate([outputs[f"{part}_ids"] for part in ("fit", "fuse", "test")])
    assert len(set(ids.tolist())) == 1797
    for name in summary["members"]:
        assert outputs[f"member/{name}/oof_logits"].shape == (len(outputs["fit_ids"]), 10)
        assert outputs[f"member/{name}/test_logits"].dtype == np.float32
    vote = np.mean([softmax(outputs[f"member/{n}/test_logits"].astype(float)) for n in summary["members"]], axis=0)
    details = Home(folder / "home").sweep("tiny").details()
    calibrated = apply_temperature(vote, details.candidates["vote"].temperature)
    assert np.abs(calibrated - outputs["fusion/vote/test_probabilities"]).max() < 1e-6
    assert log_probabilities(vote).shape == vote.shape


def test_predict_writes_the_contracts_csv(done: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = done
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(3):
        Image.fromarray(np.full((20, 30), i * 80, np.uint8)).save(pictures / f"{i}.png")
    with tarfile.open(folder / "p.tar.gz", "w:gz") as archive:
        archive.add(pictures / "0.png", "0.png")
    conclave("predict", summary["model"], pictures, folder / "p.tar.gz", pictures / "2.png", "--out", "p.csv", cwd=folder)
    lines = (folder / "p.csv").read_text().splitlines()
    assert lines[0] == "file,class,probability"
    assert len(lines) == 1 + 5 * 10
    first = [float(line.rsplit(",", 1)[1]) for line in lines[1:11]]
    assert sum(first) == pytest.approx(1, abs=1e-4)
    refused = conclave("predict", summary["model"], "nowhere.png", "--out", "q.csv", cwd=folder, code=2)
    assert "no such file" in refused.stderr
    assert not (folder / "q.csv").exists()


def test_predict_takes_a_sweeps_name_skips_what_it_can_not_read_and_scores(done: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = done
    for label in summary["classes"][:2]:
        (folder / "labelled" / label).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((9, 9), 80 * i, np.uint8)).save(folder / "labelled" / label / f"{i}.png")
    (folder / "labelled" / "0" / ".ipynb_checkpoints").mkdir()
    Image.new("L", (9, 9)).save(folder / "labelled" / "0" / ".ipynb_checkpoints" / "0.png")
    (folder / "labelled" / "0" / "cr\u00e8me.png").write_bytes(b"<!doctype html>")
    words = ("predict", "tiny", "labelled", "--top", "2", "--home", "home")
    found = conclave(*words, cwd=folder, PYTHONIOENCODING="ascii")
    lines = found.stdout.splitlines()
    assert (lines[0], len(lines)) == ("file,class_1,probability_1,class_2,probability_2", 7)
    assert "skipped: labelled/0/cr\\xe8me.png: the image can't be decoded: the file is an HTML page" in found.stderr
    assert "accuracy " in found.stderr
    assert "balanced accuracy " in found.stderr
    assert found.stderr.splitlines()[-1] == "read 6 images, skipped 1"
    refused = conclave(*words, "--strict", cwd=folder, code=2)
    assert "is an HTML page" in refused.stderr


def test_a_second_sweep_trains_nothing_and_a_fourth_member_alone(done: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = done
    again = json.loads(conclave("sweep", "team.yaml", "--home", "home", "--json", cwd=folder).stdout.splitlines()[-1])
    assert (again["trained"], again["reused"]) == (0, 6)
    assert again["members"] == summary["members"]
    (folder / "more.yaml").write_text(TEAM + "  - {name: c, seed: 9}\n")
    more = inline(folder / "more.yaml", folder / "home").summary
    assert (more.trained, more.reused) == (3, 6)
    assert more.parent_run_id == summary["parent_run_id"]
    for name in ("a", "b"):
        assert more.members[name].weights_sha256 == summary["members"][name]["weights_sha256"]


def test_results_that_were_changed_are_made_again_and_nothing_is_trained_for_that(tmp_path: Path) -> None:
    """A model of garbage is no finished sweep; a digit of the packed data's digest is no other training."""
    (tmp_path / "team.yaml").write_text(QUICK)
    first = inline(tmp_path / "team.yaml", tmp_path / "home").summary
    folder = Home(tmp_path / "home").sweep("tiny")
    for changed in (folder.model, folder.outputs):
        changed.write_bytes(b"garbage")
        again = inline(tmp_path / "team.yaml", tmp_path / "home").summary
        assert again.trained == 0
        assert changed.read_bytes() != b"garbage", "it was taken for finished"
    onnx.checker.check_model(onnx.load(folder.model))
    [record] = (tmp_path / "home" / "data").glob("*/store.json")
    values = json.loads(record.read_text())
    values["digest"] = ("1" if values["digest"][0] == "0" else "0") + values["digest"][1:]
    record.write_text(json.dumps(values))
    again = inline(tmp_path / "team.yaml", tmp_path / "home").summary
    assert again.trained == 0
    assert {name: one.weights_sha256 for name, one in again.members.items()} == {
        name: one.weights_sha256 for name, one in first.members.items()
    }


def test_other_process_other_home_same_weights(done: tuple[Path, dict[str, Any]], team_file: Path, tmp_path: Path) -> None:
    """Ray actors and this process, days apart or not: bit-identical members, and so the same fusions."""
    again = inline(team_file, tmp_path / "home").summary
    for name, member in done[1]["members"].items():
        assert again.members[name].weights_sha256 == member["weights_sha256"]
    assert again.fusions["stack"].test.model_dump() == done[1]["fusions"]["stack"]["test"]


def test_fuse_needs_no_ray_and_changes_nothing(done: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = done
    before = snapshot(folder / "home" / "sweeps")
    found = conclave("fuse", "tiny", "--method", "vote", "--home", "home", "--json", cwd=folder)
    assert "stack" not in json.loads(found.stdout)["candidates"]
    assert snapshot(folder / "home" / "sweeps") == before


def test_fuse_for_some_of_the_members_and_across_sweeps(tmp_path: Path) -> None:
    def sweep(name: str, text: str) -> SweepSummary:
        (tmp_path / f"{name}.yaml").write_text(text.replace("name: tiny", f"name: {name}"))
        return inline(tmp_path / f"{name}.yaml", tmp_path / "home").summary

    def fuse(*arguments: str, code: int = 0) -> Any:
        found = conclave("fuse", "tiny", "--home", "home", "--json", "--method", "vote", *arguments, cwd=tmp_path, code=code)
        return json.loads(found.stdout) if code == 0 else found.stderr

    text = QUICK.replace("folds: 2", "folds: 0")
    other = text.replace("  - {name: b, seed: 5}", "  - {name: c, seed: 9}")
    summary = sweep("tiny", text)
    sweep("other", other)
    sweep("elsewhere", other.replace("folds: 0", "folds: 0, fuse_fraction: 0.2"))
    assert set(fuse("--drop", "b")["candidates"]) == {"a", "vote"}
    assert set(fuse("--only", "a,b")["candidates"]) == {"a", "b", "vote"}
    assert "--drop c: no such member is done; there are a, b." in fuse("--drop", "c", code=2)
    assert "leave no member" in fuse("--only", "a", "--drop", "a", code=2)
    both = fuse("--with", "other", "--drop", "other.a")
    assert set(both["candidates"]) == {"a", "b", "other.c", "vote"}
    assert both["candidates"]["a"]["test"]["nll"] == pytest.approx(summary.members["a"].test.nll)
    assert "other data, seed or split" in fuse("--with", "elsewhere", code=2)


@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_a_form_of_fewer_bits_says_what_it_costs(done: tuple[Path, dict[str, Any]], kind: str) -> None:
    """8-bit integers but for heads and combiner, or half precision; what is said of it is what comes out of the file."""
    folder, _ = done
    sets = ("--abstain", "--coverage", "0.8")
    words = ("export", "tiny", "--method", "stack", f"--{kind}", *sets, "--out", "i.onnx", "--outputs", "i.npz", "--home", "home")
    said = conclave(*words, cwd=folder).stdout.splitlines()[-1]
    outputs = np.load(folder / "i.npz", allow_pickle=False)
    store = Store(next((folder / "home" / "data").iterdir()))
    images = np.asarray(store.images[np.isin(store.ids, outputs["test_ids"])])
    sessions = [create_session(str(folder / name)) for name in ("i.onnx", f"i.{kind}.onnx")]
    answers = [session.run(None, {"images": images})[0] for session in sessions]
    right = [float((of.argmax(1) == outputs["test_labels"]).mean()) for of in answers]
    assert np.array_equal(answers[0].argmax(1), outputs["fusion/stack/test_probabilities"].argmax(1))
    changed = float((answers[0].argmax(1) != answers[1].argmax(1)).mean())
    assert f"{right[1]:.2%} of {len(images):,} test rows, {100 * (right[1] - right[0]):+.2f} points" in said
    assert f"{changed:.2%} of the answers changed" in said
    assert 0 < np.abs(answers[0] - answers[1]).mean() < 0.05, "other numbers, and nearly the same"
    stored = [session.get_modelmeta().custom_metadata_map for session in sessions]
    assert {one["set_coverage"] for one in stored} == {"0.8"}
    levels = [float(one["set_level"]) for one in stored]
    assert levels[0] != levels[1], "each has the level of its own probabilities"
    for session, level, given in zip(sessions, levels, answers, strict=True):
        found = session.run(["sets"], {"images": images})[0]
        assert (found == prediction_sets(given.astype(float), level)).mean() > 0.995
    graph = onnx.load(str(folder / f"i.{kind}.onnx")).graph
    weights = {t.name: t.data_type for t in graph.initializer if len(t.dims) == 4 and min(t.dims[:2]) > 1}
    assert set(weights.values()) == {onnx.TensorProto.INT8 if kind == "int8" else onnx.TensorProto.FLOAT16}
    heads = [t for t in graph.initializer if len(t.dims) == 2 and 10 in t.dims]
    assert heads
    assert {t.data_type for t in heads} == {onnx.TensorProto.FLOAT if kind == "int8" else onnx.TensorProto.FLOAT16}


def test_snapshots_are_members_of_one_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three snapshots of six epochs train six epochs, not twelve; a second sweep trains none."""
    text = QUICK.replace("folds: 2", "folds: 0").replace("epochs: 2", "epochs: 6")
    text = text.replace("  - {name: b, seed: 5}", "  - {name: cyc, seed: 5, snapshots: 3}")
    (tmp_path / "team.yaml").write_text(text)
    epochs: list[str] = []
    whole = Trainer._train_epoch

    def counted(self: Trainer, *given: Any) -> Any:
        epochs.append(self.recipe.name)
        return whole(self, *given)

    monkeypatch.setattr(Trainer, "_train_epoch", counted)
    summary = inline(tmp_path / "team.yaml", tmp_path / "home").summary
    assert list(summary.members) == ["a", "cyc.1", "cyc.2", "cyc.3"]
    assert [epochs.count(name) for name in ("a", "cyc")] == [6, 6]
    assert summary.fusions["vote"].train_cost == pytest.approx(2.0, rel=0.01), "two trainings in all"
    assert not list((tmp_path / "home").glob("jobs/*/checkpoint")), "no checkpoint is kept of what is done"
    assert inline(tmp_path / "team.yaml", tmp_path / "home").summary.trained == 0
    assert len(epochs) == 12


def test_averaged_weights_are_a_member_that_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = QUICK.replace("{name: a}", "{name: a, average: {kind: swa, last: 1.0}}").replace("  - {name: b, seed: 5}\n", "")
    (tmp_path / "team.yaml").write_text(text)
    epochs: list[str] = []
    whole = Trainer._train_epoch

    def counted(self: Trainer, *given: Any) -> Any:
        epochs.append(self.recipe.name)
        return whole(self, *given)

    monkeypatch.setattr(Trainer, "_train_epoch", counted)
    summary = inline(tmp_path / "team.yaml", tmp_path / "home").summary
    assert list(summary.members) == ["a", "a.swa"]
    assert (summary.trained, set(epochs), len(epochs)) == (6, {"a"}, 6), "a full fit and two fold fits of two epochs"
    assert len({m.weights_sha256 for m in summary.members.values()}) == 2
    assert summary.fusions["vote"].train_cost == pytest.approx(1.0)
    assert not list((tmp_path / "home").glob("jobs/*/checkpoint"))
    assert inline(tmp_path / "team.yaml", tmp_path / "home").summary.trained == 0


def test_the_snapshots_before_a_failure_are_members_and_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = QUICK.replace("folds: 2", "folds: 0").replace("  - {name: b, seed: 5}", "  - {name: cyc, seed: 5, snapshots: 2}")
    (tmp_path / "team.yaml").write_text(text + "quorum: 1\n")
    monkeypatch.setenv("CONCLAVE_FAULT", "fit.step@cyc:40:nan")  # in the second of two epochs of 21 steps
    result = inline(tmp_path / "team.yaml", tmp_path / "home")
    assert result.exit_code == 3
    states = {name: member.state for name, member in result.summary.members.items()}
    assert states == {"a": "done", "cyc.1": "done", "cyc.2": "diverged"}
    weights = result.summary.members["cyc.1"].weights_sha256
    monkeypatch.delenv("CONCLAVE_FAULT")
    again = inline(tmp_path / "team.yaml", tmp_path / "home").summary
    assert (again.state, again.trained, again.reused) == ("done", 1, 2)
    assert again.members["cyc.1"].weights_sha256 == weights


STUDENT = QUICK.replace("folds: 2", "folds: 0") + "fusion: [vote, student]\nstudent: {epochs: 3, seed: 4}\n"


def test_a_student_is_trained_once_from_all_members(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text(STUDENT)
    summary = inline(tmp_path / "team.yaml", tmp_path / "home").summary
    assert (summary.state, summary.trained, summary.student.state) == ("done", 3, "done")
    rows = Home(tmp_path / "home").sweep("tiny").details().candidates
    assert list(rows) == ["a", "b", "student", "vote"]
    paid = np.sum([m.train_seconds for m in (*summary.members.values(), summary.student)])
    assert rows["student"].train_seconds == pytest.approx(paid), "its teachers had to be trained too"
    assert 0 < rows["student"].inference_cost < rows["vote"].inference_cost, "one network against two"
    runs = TrackingClient(Home(tmp_path / "home").tracking_uri).client.search_runs(["1"], "tags.role = 'student'")
    assert [run.data.metrics["test/accuracy"] for run in runs] == [summary.student.test.accuracy]
    assert inline(tmp_path / "team.yaml", tmp_path / "home").summary.trained == 0
    conclave("export", "tiny", "--home", "home", "--method", "student", "--out", "student.onnx", cwd=tmp_path)
    alone = conclave("fuse", "tiny", "--home", "home", "--only", "a", "--json", cwd=tmp_path).stdout
    assert "student was left out" in alone
    without = json.loads(conclave("fuse", "tiny", "--home", "home", "--method", "vote", "--json", cwd=tmp_path).stdout)
    assert set(without["candidates"]) == {"a", "b", "vote"}, "it is trained, and no fusion asks it"
    (tmp_path / "team.yaml").write_text(STUDENT.replace("epochs: 3, ", "epochs: 3, temperature: 2, "))
    assert inline(tmp_path / "team.yaml", tmp_path / "home").summary.trained == 1


def test_a_student_begins_from_the_member_that_it_names(tmp_path: Path) -> None:
    still = STUDENT.replace("epochs: 3, ", "epochs: 1, start: b, optimizer: {kind: sgd, lr: 1.0e-12}, ")
    (tmp_path / "team.yaml").write_text(still)
    inline(tmp_path / "team.yaml", tmp_path / "home")
    a, b, student = (
        next(
            artifact.weights()["head.weight"]
            for folder in (tmp_path / "home" / "jobs").iterdir()
            if (artifact := MemberArtifact(folder)).manifest().member.name == name
        )
        for name in ("a", "b", "student")
    )
    assert torch.allclose(student, b, atol=1e-7)
    assert not torch.allclose(student, a, atol=1e-3)


def test_a_student_whose_teacher_failed_is_named_and_the_rest_are_fused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "team.yaml").write_text(STUDENT + "quorum: 1\n")
    monkeypatch.setenv("CONCLAVE_FAULT", "fit.step@b:3:nan")
    result = inline(tmp_path / "team.yaml", tmp_path / "home")
    assert (result.exit_code, result.summary.student.state) == (3, "failed")
    assert result.summary.student.reason == "b, from which it learns, did not succeed (diverged)"
    assert "student" not in result.summary.fusions


def test_prices_become_money(tmp_path: Path) -> None:
    prices = "prices: {spot: 3600, own: {price: 8766, years: 1, use: 1}}\n"
    (tmp_path / "team.yaml").write_text(QUICK.replace("folds: 2", "folds: 0") + prices)
    inline(tmp_path / "team.yaml", tmp_path / "home")
    for row in Home(tmp_path / "home").sweep("tiny").details().candidates.values():
        assert row.money["spot"] == pytest.approx(row.train_seconds)
        assert row.money["own"] == pytest.approx(row.train_seconds / 3600), "8,766 for as many hours"


def test_status_plan_report_read_the_home_only(done: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = done
    state = json.loads(conclave("status", "tiny", "--home", "home", "--json", cwd=folder).stdout)
    assert state["tiny"]["members"]["a"] == "3/3 trainings done"
    planned = json.loads(conclave("plan", "team.yaml", "--home", "home", "--json", cwd=folder).stdout)
    assert {job["state"] for job in planned["jobs"]} == {"done"}
    assert "recommended" in conclave("report", "tiny", "--home", "home", "--json", cwd=folder).stdout
    assert "no sweep named" in conclave("report", "nobody", "--home", "home", cwd=folder, code=2).stderr


def test_fits_are_adopted_from_the_tracking_store(team_file: Path, tmp_path: Path) -> None:
    inline(team_file, tmp_path / "home")
    for root in (tmp_path / "home" / "jobs").iterdir():
        (root / "fit" / "manifest.json").unlink()
    again = inline(team_file, tmp_path / "home").summary
    assert (again.trained, again.reused) == (0, 6)


def test_a_failed_member_is_reported_and_the_rest_are_fused(tmp_path: Path) -> None:
    text = QUICK.replace("folds: 2", "folds: 0") + "  - {name: wild, optimizer: {kind: sgd, lr: 1.0e+30}}\nquorum: 2\n"
    (tmp_path / "team.yaml").write_text(text)
    result = inline(tmp_path / "team.yaml", tmp_path / "home")
    assert result.exit_code == 3
    assert result.summary.state == "partial"
    assert result.summary.members["wild"].state == "diverged"
    assert "epoch 1" in result.summary.members["wild"].reason
    (tmp_path / "team.yaml").write_text(text.replace("quorum: 2", "quorum: 3"))
    below = inline(tmp_path / "team.yaml", tmp_path / "home")
    assert (below.exit_code, below.summary.state, below.summary.trained) == (1, "failed", 0)


def test_a_member_without_its_fold_fits_is_left_out_of_stack_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    from workers.errors import ConclaveError
    from workers.runtime import training_job

    run = training_job.train_job

    def no_fold_of_b(job: Any, *given: Any) -> Any:
        if job.recipe.name == "b" and job.fold == 1:
            raise ConclaveError("broken by the test")
        return run(job, *given)

    monkeypatch.setattr(training_job, "train_job", no_fold_of_b)
    (tmp_path / "team.yaml").write_text(QUICK + "  - {name: c, seed: 9}\n")
    result = inline(tmp_path / "team.yaml", tmp_path / "home")
    assert result.exit_code == 3
    assert result.summary.members["b"].state == "done"
    assert "left out of stack" in result.summary.members["b"].reason
    assert set(result.summary.fusions) == {"vote", "weighted", "stack", "concat"}


def test_shuffled_training_labels_leave_oof_accuracy_at_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No leakage: a row's own label must not reach its out-of-fold output."""
    (tmp_path / "team.yaml").write_text(TEAM.replace("epochs: 2", "epochs: 8").replace("width: 4", "width: 8"))

    def shuffled(make: Any, task: TrainingTask, publish: Publish) -> TrainingResult:
        data = task.data
        labels = data.labels.clone()
        mixed = torch.randperm(len(data.fit), generator=torch.Generator().manual_seed(0))
        labels[data.fit] = data.labels[data.fit[mixed]]
        return train(make, replace(task, data=replace(data, labels=labels)), publish)

    monkeypatch.setattr("workers.runtime.training_job.train", shuffled)
    inline(tmp_path / "team.yaml", tmp_path / "home")
    outputs = np.load(tmp_path / "home/sweeps/tiny/outputs.npz", allow_pickle=False)
    for name in ("a", "b"):
        accuracy = (outputs[f"member/{name}/oof_logits"].argmax(1) == outputs["fit_labels"]).mean()
        assert accuracy < 0.1 + 4 * (0.09 / len(outputs["fit_labels"])) ** 0.5 + 0.02


def test_members_of_different_architecture_and_feature_size_fuse(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\ndef net(num_classes, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size ** 2, 20), nn.ReLU(), nn.Linear(20, num_classes))\n"
    )
    text = TEAM.replace("folds: 2", "folds: 0") + "  - {name: own, arch: 'own:net', width: 64}\n"
    (tmp_path / "team.yaml").write_text(text + "  - {name: wide, width: 8}\n")
    result = inline(tmp_path / "team.yaml", tmp_path / "home")
    assert result.exit_code == 0
    outputs = np.load(tmp_path / "home/sweeps/tiny/outputs.npz", allow_pickle=False)
    assert [outputs[f"member/{n}/fuse_features"].shape[1] for n in ("a", "own", "wide")] == [32, 20, 64]


REJECTED = {
    "concat without a linear head": ("  - {name: q, arch: squeezenet1_1, width: 64}\n", "doesn't end in a Linear head"),
    "width of a network that has none": ("  - {name: q, arch: resnet50}\n", "width changes"),
    "cifar stem elsewhere": ("  - {name: q, arch: mobilenet_v3_small, width: 64, stem: cifar}\n", "is for ResNets"),
    "own network not there": ("  - {name: q, arch: 'nowhere:net', width: 64}\n", "nowhere:net"),
    "weights not there": ("  - {name: q, weights: nowhere.pt}\n", "nowhere.pt"),
    "data not there": ("data: {dataset: folder, root: nowhere}\n", "is not there"),
    "tracking server away": ("tracking: {uri: 'http://127.0.0.1:9'}\n", "doesn't answer"),
    "too many folds": ("data: {dataset: digits, folds: 500}\n", "500 folds"),
}


@pytest.mark.parametrize(("line", "expected"), REJECTED.values(), ids=REJECTED.keys())
def test_what_the_preflight_finds_leaves_the_disk_untouched(line: str, expected: str, tmp_path: Path) -> None:
    text = TEAM.replace("data: {dataset: digits, folds: 2}\n", "") if line.startswith("data") else TEAM
    (tmp_path / "team.yaml").write_text(text + line)
    (tmp_path / "small.py").write_text(SMALL)
    before = snapshot(tmp_path)
    with pytest.raises(UserInputError, match=expected):
        inline(tmp_path / "team.yaml", tmp_path / "home", prepared=False)
    assert snapshot(tmp_path) == before


def test_unschedulable_is_reported_and_a_dead_cluster_refused(tmp_path: Path) -> None:
    text = TEAM.replace("folds: 2", "folds: 0") + "  - {name: huge, resources: {gpus: 8}}\n"
    (tmp_path / "team.yaml").write_text(text)
    found = conclave("sweep", "team.yaml", "--home", "home", "--json", cwd=tmp_path, code=3)
    summary = json.loads(found.stdout.splitlines()[-1])
    assert summary["members"]["huge"]["state"] == "unschedulable"
    assert "8 GPUs" in summary["members"]["huge"]["reason"]
    dead = conclave("sweep", "team.yaml", "--home", "h2", "--address", "127.0.0.1:9", cwd=tmp_path, code=2)
    assert "no Ray answers" in dead.stderr
    assert not (tmp_path / "h2").exists()


def test_another_tracking_store_gets_the_runs_of_a_sweep_with_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "team.yaml").write_text(QUICK.replace("folds: 2", "folds: 0"))
    inline(tmp_path / "team.yaml", tmp_path / "home")
    other = TrackingClient(f"sqlite:///{tmp_path}/other.db")
    monkeypatch.setenv("CONCLAVE_TRACKING_URI", other.uri)
    again = inline(tmp_path / "team.yaml", tmp_path / "home")
    assert (again.exit_code, again.summary.trained, again.summary.unsent) == (0, 0, 0)
    assert (tmp_path / "artifacts").is_dir(), "beside that database, and not wherever the command was given"
    runs = other.client.search_runs([other.experiment("tiny", None)])
    assert len(runs) == 3
    assert {run.info.status for run in runs} == {"FINISHED"}
    parent = next(run.info.run_id for run in runs if run.data.tags["role"] == "sweep")
    assert {a.path for a in other.client.list_artifacts(parent)} >= {"report.html", "fused.onnx", "team.yaml"}
    assert again.summary.parent_run_id == parent


def test_the_champion_of_another_home_stays_and_a_guess_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two users chose one team name; and labels that mean nothing."""
    (tmp_path / "small.py").write_text(SMALL)
    client = TrackingClient(f"sqlite:///{tmp_path}/team.db").client
    monkeypatch.setenv("CONCLAVE_TRACKING_URI", f"sqlite:///{tmp_path}/team.db")
    text, said = QUICK.replace("folds: 2", "folds: 0"), list[str]()

    def sweep(home: str, text: str) -> str:
        (tmp_path / "team.yaml").write_text(text)
        said.clear()
        pipeline.run_sweep(tmp_path / "team.yaml", pipeline.SweepOptions(Home(tmp_path / home), inline_executor, say=said.append))
        return next(line for line in said if line.startswith("Registered"))

    def aliases() -> dict[str, str]:
        return {alias: str(version) for alias, version in client.get_registered_model("tiny").aliases.items()}

    assert sweep("mine", text) == "Registered in MLflow: tiny, version 1, as champion."
    client.delete_registered_model_alias("tiny", "champion")  # as if the first attempt had ended before it gave one
    run = client.get_model_version("tiny", "1").run_id
    assert TrackingClient(f"sqlite:///{tmp_path}/team.db").register(run, "tiny", tmp_path / "mine/sweeps/tiny/fused.onnx") == "1"
    said_by_other = sweep("hers", text.replace("seed: 5", "seed: 6"))
    assert said_by_other == (
        "Registered in MLflow: tiny, version 2, as challenger: the champion, version 1, is of another sweep, and stays."
    )
    assert aliases() == {"champion": "1", "challenger": "2"}
    again = sweep("mine", text.replace("seed: 5", "seed: 7"))
    assert again == "Registered in MLflow: tiny, version 3, as champion (before, it was version 1)."
    monkeypatch.setattr("fusion.selection.recommendation.is_at_chance", lambda *_: True)
    guess = sweep("mine", text.replace("seed: 5", "seed: 8"))
    assert guess == "Registered in MLflow: tiny, version 4, without an alias: it is not surely better than guessing."
    assert aliases() == {"champion": "3", "challenger": "2"}
    monkeypatch.undo()
    monkeypatch.setenv("CONCLAVE_TRACKING_URI", f"sqlite:///{tmp_path}/team.db")
    lost = client.create_model_version("tiny", f"{tmp_path}/lost", run_id="0" * 32).version  # its run was removed for good
    client.set_registered_model_alias("tiny", "champion", lost)
    assert f"as challenger: the champion, version {lost}, is of another sweep" in sweep(
        "mine", text.replace("seed: 5", "seed: 9")
    )


@pytest.mark.parametrize("what", ["member's run", "sweep's run", "model"])
def test_what_was_deleted_in_mlflow_is_made_again(what: str, tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text(QUICK.replace("folds: 2", "folds: 0"))
    first = inline(tmp_path / "team.yaml", tmp_path / "home").summary
    client = TrackingClient(first.tracking_uri).client
    [experiment] = [e.experiment_id for e in client.search_experiments() if e.name == "tiny"]
    if what == "model":
        client.delete_registered_model("tiny")
    else:
        role = {"member's run": "member", "sweep's run": "sweep"}[what]
        client.delete_run(client.search_runs([experiment], f"tags.role = '{role}'")[0].info.run_id)
    again = inline(tmp_path / "team.yaml", tmp_path / "home").summary
    assert (again.trained, again.unsent) == (0, 0)
    runs = client.search_runs([experiment])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags.get("mlflow.parentRunId", again.parent_run_id) for run in runs} == {again.parent_run_id}
    assert sorted(run.data.tags["role"] for run in runs) == ["member", "member", "sweep"], "and none stays beside the new"
    assert all("test/accuracy" in run.data.metrics for run in runs)
    assert client.get_model_version_by_alias("tiny", "champion").run_id == again.parent_run_id
    assert inline(tmp_path / "team.yaml", tmp_path / "home").summary.parent_run_id == again.parent_run_id


def test_prices_that_came_later_are_shown(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text(QUICK.replace("folds: 2", "folds: 0"))
    inline(tmp_path / "team.yaml", tmp_path / "home")
    (tmp_path / "team.yaml").write_text(QUICK.replace("folds: 2", "folds: 0") + "prices: {spot: 2}\n")
    again = inline(tmp_path / "team.yaml", tmp_path / "home")
    assert (again.summary.trained, again.summary.reused) == (0, 2)
    assert Home(tmp_path / "home").sweep("tiny").details().candidates["vote"].money["spot"] > 0


def test_export_says_what_it_can_t_write_or_make(done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done[0])
    cases = (
        ({"outputs": "nowhere/x.npz"}, "its folder is not there"),
        ({"outputs": "home"}, "is a folder"),
        ({"method": "vote", "out": "nowhere/x.onnx"}, "its folder is not there"),
        ({"method": "vote", "out": "x.json"}, "name the model itself .onnx"),
        ({"method": "student"}, "student was left out: no student was trained for exactly these members"),
        ({"method": "stakc"}, "unknown fusion"),
    )
    before = snapshot(Path())
    for words, expected in cases:
        options: dict[str, Any] = {k: v if k == "method" else Path(v) for k, v in words.items()}
        with pytest.raises(UserInputError, match=expected):
            result_commands.export("tiny", **options, home=Path("home"))
    assert snapshot(Path()) == before
    result_commands.export("tiny", method="vote_logits", out=Path("logits.onnx"), home=Path("home"))
    assert Path("logits.onnx").is_file(), "any fusion, whether the team file names it or not"


def test_a_later_run_that_did_not_end_is_told_and_tables_are_whole_in_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "a-member-with-quite-a-long-name-that-fills-most-of-a-terminal"
    text = QUICK.replace("folds: 2", "folds: 0").replace("{name: a}", f"{{name: {long}}}")
    (tmp_path / "team.yaml").write_text(text)
    inline(tmp_path / "team.yaml", tmp_path / "home")
    whole = conclave("report", "tiny", "--home", "home", cwd=tmp_path).stdout
    assert "…" not in whole
    assert long in whole
    assert json.loads(conclave("status", "--home", "home", "--json", cwd=tmp_path).stdout)["tiny"]["state"] == "done"
    (tmp_path / "team.yaml").write_text(text + "  - {name: c, seed: 9}\n")

    def killed(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pipeline._Sweep, "_train", killed)
    with pytest.raises(MemoryError):
        inline(tmp_path / "team.yaml", tmp_path / "home")
    assert "unfinished" in conclave("status", "--home", "home", cwd=tmp_path).stdout
    assert "A later run of this sweep" in conclave("report", "tiny", "--home", "home", cwd=tmp_path).stdout


def test_the_same_sweep_twice_at_once_is_refused(team_file: Path, tmp_path: Path) -> None:
    with Home(tmp_path / "home").sweep("tiny").locked(), pytest.raises(UserInputError, match=f"process {os.getpid()}"):
        inline(team_file, tmp_path / "home")


def test_an_exit_code_2_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text("name: t\nsede: 1\nmembers: [{name: a}]\n")
    found = conclave("sweep", "team.yaml", "--home", "home", cwd=tmp_path, code=2)
    assert "team.yaml:2: sede: unknown key; did you mean seed?" in found.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["team.yaml"]


def test_the_next_steps_are_another_member_and_mirror_images(tmp_path: Path) -> None:
    members = "  - {name: a}\n  - {name: b, optimizer: {kind: adamw, lr: 0.002}}\n  - {name: c, augment: []}\n"
    text = QUICK[: QUICK.index("  - {name: a}")].replace("folds: 2", "folds: 0") + members
    (tmp_path / "team.yaml").write_text(text.replace("epochs: 2", "epochs: 1") + "fusion: [vote]\nprices: {spot: 2}\n")
    inline(tmp_path / "team.yaml", tmp_path / "home")
    details = Home(tmp_path / "home").sweep("tiny").details()
    assert details
    member, flips = details.next_steps
    assert (member.kind, flips.kind) == ("member", "flips")
    assert member.compute_cost == pytest.approx(4 / 3, rel=1e-3)
    assert member.money["spot"] == pytest.approx(2 * member.train_seconds / 3600)
    assert flips.train_seconds == 0
    vote, flipped = (_exported_losses(tmp_path, *options) for options in ((), ("--flips",)))
    assert flips.nll.mean == pytest.approx(vote - flipped, abs=1e-5)


def _exported_losses(folder: Path, *options: str) -> float:
    """The mean loss on *fuse* of the vote as a model file."""
    target = folder / "vote.onnx"
    conclave("export", "tiny", "--method", "vote", "--out", str(target), *options, "--home", "home", cwd=folder)
    outputs = np.load(Home(folder / "home").sweep("tiny").outputs, allow_pickle=False)
    store = Store(next((folder / "home" / "data").iterdir()))
    rows = [store.ids.index(name) for name in outputs["fuse_ids"]]
    images = np.ascontiguousarray(np.asarray(store.images)[rows])
    return nll(predict_probabilities(str(target), images), outputs["fuse_labels"])
