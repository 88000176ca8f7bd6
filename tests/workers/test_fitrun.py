"""A fit's checkpoints in the tracking store: two slots, one of which is whole whatever happens to whom."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tests.factories import job, record
from workers.config.specs import TrainSpec
from workers.diagnostics.waiting import wait_until
from workers.errors import StoreUnavailableError
from workers.storage.artifacts import MemberArtifact
from workers.storage.checkpoint_record import CheckpointRecord
from workers.storage.checkpoints import Checkpoints
from workers.tracking.client import TrackingClient
from workers.tracking.delivery import download_training
from workers.tracking.entries import Entry, MetricsEntry
from workers.tracking.job_run import JobRun


@pytest.fixture
def tracked(tmp_path: Path) -> tuple[TrackingClient, str]:
    tracking = TrackingClient(f"sqlite:///{tmp_path}/db")
    return tracking, tracking.create_run(tracking.experiment("e", tmp_path / "artifacts"), "r", {})


@contextmanager
def machine(home: Path, tracked: tuple[TrackingClient, str]) -> Iterator[tuple[JobRun, Checkpoints]]:
    """One after another makes the same fit, each with a disk of its own."""
    one = job("a").model_copy(update={"home": home})
    run = JobRun(one, tracked[0].uri, (tracked[1],))
    run.members[0].known_steps = {1}
    yield run, Checkpoints(run.folder.checkpoint, one.signatures[0])
    run.close()


def save(kept: Checkpoints, epoch: int) -> None:
    kept.save({"network": {"w": torch.full((8,), float(epoch))}, "optimizer": {}}, CheckpointRecord(epoch=epoch))


def newest(kept: Checkpoints) -> int:
    state = kept.newest()
    assert state is not None
    return state.record.epoch


def test_a_machine_that_is_lost_while_it_sends_leaves_the_checkpoint_before(
    tracked: tuple[TrackingClient, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine(tmp_path / "1", tracked) as (run, kept):
        save(kept, 1)
        run._upload()
    sent: list[str] = []
    log_artifact = TrackingClient.log_artifact

    def cut_off(self: TrackingClient, run: str, path: Path, folder: str | None = None) -> None:
        if sent:
            raise ConnectionError
        sent.append(path.name)
        log_artifact(self, run, path, folder)

    with machine(tmp_path / "2", tracked) as (run, kept):
        run.download_checkpoint()
        assert newest(kept) == 1
        save(kept, 2)
        monkeypatch.setattr(TrackingClient, "log_artifact", cut_off)
        with pytest.raises(ConnectionError):
            run._upload()
        monkeypatch.undo()
    with machine(tmp_path / "3", tracked) as (run, kept):
        run.download_checkpoint()
        assert newest(kept) == 1
        save(kept, 3)
        run._upload()
    with machine(tmp_path / "4", tracked) as (run, kept):
        run.download_checkpoint()
        assert newest(kept) == 3
        assert len(kept.complete()) == 2


def test_a_slot_that_rotted_is_not_taken(tracked: tuple[TrackingClient, str], tmp_path: Path) -> None:
    with machine(tmp_path / "1", tracked) as (run, kept):
        for epoch in (1, 2):
            save(kept, epoch)
            run._upload()
    for path in (tmp_path / "artifacts").rglob("network.safetensors"):
        if torch.frombuffer(bytearray(path.read_bytes())[-32:], dtype=torch.float32)[0] == 2:
            path.write_bytes(path.read_bytes()[:-1])
    with machine(tmp_path / "2", tracked) as (run, kept):
        run.download_checkpoint()
        assert newest(kept) == 1


def test_a_fit_that_rotted_on_its_way_is_not_taken(tracked: tuple[TrackingClient, str], tmp_path: Path) -> None:
    made, taken = MemberArtifact(tmp_path / "made"), MemberArtifact(tmp_path / "taken")
    made.publish({"w": torch.ones(8)}, {"o": torch.ones(8)}, record())
    tracked[0].log_artifact(tracked[1], made.folder, "fit")
    assert download_training(taken, *tracked)
    taken.delete()
    for path in (tmp_path / "artifacts").rglob("weights.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    assert not download_training(taken, *tracked)
    assert not taken.done


def test_epochs_that_follow_each_other_fast_are_sent_together(
    tracked: tuple[TrackingClient, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sending takes the training's own core. What is left at the end is sent at once."""
    monkeypatch.setattr("workers.tracking.job_run.MOST_BEHIND_SECONDS", 600)
    sent: list[list[int]] = []
    send = TrackingClient.send

    def watched(self: TrackingClient, entries: Sequence[Entry]) -> None:
        time.sleep(0.5)  # so that the share of the time is used up for a minute and more
        send(self, entries)
        if steps := [entry.step for entry in entries if isinstance(entry, MetricsEntry)]:
            sent.append(steps)

    monkeypatch.setattr(TrackingClient, "send", watched)
    one = job("a").model_copy(update={"home": tmp_path, "train": TrainSpec(epochs=5)})
    run = JobRun(one, tracked[0].uri, (tracked[1],))
    for epoch in range(5):
        run.on_epoch_end(epoch, {"fuse/loss": 1.0, "time": float(epoch)})
        assert wait_until(lambda: bool(sent), 60, 0.1)
        time.sleep(0.2)  # in which it could send an epoch of its own
    run.close()
    assert sent == [[1], [2, 3, 4, 5]]
    assert len(tracked[0].client.get_metric_history(tracked[1], "fuse/loss")) == 5


def test_a_run_is_asked_once_for_its_epochs_and_again_where_nobody_knows_what_arrived(
    tracked: tuple[TrackingClient, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking, run = tracked
    asked, clock = list[str](), itertools.count()
    history, log_batch = tracking.client.get_metric_history, tracking.client.log_batch

    def cut_off(*given: Any, **named: Any) -> None:
        log_batch(*given, **named)
        raise ConnectionError("it arrived, and the answer got lost")

    def send(*epochs: int) -> None:
        """Send epochs, each at a time of its own: a point that is there already would not be there twice."""
        tracking.send([MetricsEntry(run=run, metrics={"train/loss": 1.0}, step=epoch, time=next(clock)) for epoch in epochs])

    def watched(*given: Any) -> Any:
        asked.append(given[1])
        return history(*given)

    monkeypatch.setattr(tracking.client, "get_metric_history", watched)
    send(1)
    send(2, 3)
    send(3, 4)  # the third one was trained again
    assert asked == ["train/loss"]
    monkeypatch.setattr(tracking.client, "log_batch", cut_off)
    with pytest.raises(ConnectionError):
        send(5)
    monkeypatch.setattr(tracking.client, "log_batch", log_batch)
    send(5, 6)
    assert len(asked) == 2
    assert [point.step for point in history(run, "train/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_store_that_is_away_for_a_moment_does_not_make_a_job_start_anew(
    tracked: tuple[TrackingClient, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error is not the answer that there is no checkpoint."""
    with machine(tmp_path / "1", tracked) as (run, kept):
        save(kept, 1)
        run._upload()
    monkeypatch.setattr("workers.diagnostics.waiting.time.sleep", lambda seconds: None)
    listed, away = MlflowClient.list_artifacts, [ConnectionError("refused"), MlflowException("API request failed")]

    def list_artifacts(self: MlflowClient, run_id: str, path: str | None = None) -> Any:
        if away:
            raise away.pop()
        return listed(self, run_id, path)

    monkeypatch.setattr(MlflowClient, "list_artifacts", list_artifacts)
    with machine(tmp_path / "2", tracked) as (run, kept):
        run.is_isolated = True
        run.download_checkpoint()
        assert (away, newest(kept)) == ([], 1)
    away[:] = [ConnectionError("refused")] * 10_000
    monkeypatch.setattr("workers.tracking.job_run.RETRY_SECONDS", 0.0)
    with machine(tmp_path / "3", tracked) as (run, _):
        run.download_checkpoint()  # the home has what the machines that share it trained
        run.is_isolated = True
        with pytest.raises(StoreUnavailableError):
            run.download_checkpoint()
