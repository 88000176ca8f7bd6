"""The outbox keeps every entry, and sending it again changes nothing."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.errors import CorruptFileError
from workers.tracking.client import TrackingClient
from workers.tracking.delivery import flush_outbox
from workers.tracking.entries import ArtifactEntry, Entry, MetricsEntry, RefusedEntryError, StatusEntry, TagsEntry
from workers.tracking.outbox import Outbox

RUNS = st.sampled_from(["r1", "r2"])
ENTRIES = st.one_of(
    st.tuples(st.just("metrics"), RUNS, st.integers(0, 5), st.floats(-10, 10)),
    st.tuples(st.just("tags"), RUNS, st.sampled_from(["a", "b"]), st.text(max_size=5)),
    st.tuples(st.just("status"), RUNS, st.sampled_from(["RUNNING", "FINISHED"]), st.just(0)),
)


class FakeStore:
    """A tracking store that keeps what it is sent as MLflow does: the last value of each metric's step, of each tag."""

    def __init__(self, failures: list[bool]) -> None:
        self.state: dict[Any, Any] = {}
        self.failures = failures

    def send(self, entries: list[Entry]) -> None:
        for entry in entries:
            match entry:
                case MetricsEntry(run=run, metrics=metrics, step=step):
                    self.state |= {(run, name, step): value for name, value in metrics.items()}
                case TagsEntry(run=run, tags=tags):
                    self.state |= {(run, name): value for name, value in tags.items()}
                case StatusEntry(run=run, status=status):
                    self.state[run, "status"] = status
        if self.failures and self.failures.pop():
            raise ConnectionError("the answer got lost, though everything was taken")


def fill(outbox: Outbox, entries: list[Any]) -> dict[Any, Any]:
    """Add the entries; return what a store that got them once holds."""
    expected: dict[Any, Any] = {}
    for kind, run, key, value in entries:
        if kind == "metrics":
            outbox.metrics(run, {"loss": value}, key, 0)
            expected[run, "loss", key] = value
        elif kind == "tags":
            outbox.tags(run, {key: value})
            expected[run, key] = value
        else:
            outbox.status(run, key, 0)
            expected[run, "status"] = key
    return expected


@given(st.lists(ENTRIES, max_size=130), st.lists(st.booleans(), max_size=6))
def test_what_is_sent_twice_is_as_good_as_sent_once(entries: list[Any], failures: list[bool]) -> None:
    """Batches whose answer got lost are sent again. In the end the store holds the same, and a replay changes nothing."""
    with tempfile.TemporaryDirectory() as work:
        outbox, store = Outbox.open(Path(work), "t", "sqlite:///nowhere"), FakeStore(failures)
        expected = fill(outbox, entries)
        while outbox.unsent():
            try:
                flush_outbox(outbox, store)  # type: ignore[arg-type]
            except ConnectionError:
                continue
        assert store.state == expected
        outbox.path.with_suffix(".sent").unlink(missing_ok=True)
        store.failures = []
        assert flush_outbox(outbox, store) == len(entries)  # type: ignore[arg-type]
        assert store.state == expected


@given(st.lists(ENTRIES, max_size=20), st.integers(2, 60))
def test_a_torn_line_costs_that_entry_alone(entries: list[Any], torn_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as work:
        outbox = Outbox.open(Path(work), "t", "sqlite:///nowhere")
        fill(outbox, entries)
        before = outbox.unsent()
        outbox.tags("torn", {"by": "a crash" * 10})
        content = outbox.path.read_bytes()
        outbox.path.write_bytes(content[:-torn_bytes])
        outbox.tags("after", {"the": "crash"})
        kept = [entry for entry, _ in outbox.unsent()]
        assert kept == [*(entry for entry, _ in before), TagsEntry(run="after", tags={"the": "crash"})]


@pytest.mark.parametrize("damage", ["empty", "torn", "flipped"])
def test_an_outbox_whose_first_line_is_damaged_sends_nothing_into_the_void(damage: str, tmp_path: Path) -> None:
    """MLflow would take its own default store for it, and what that refuses would be marked as sent."""
    outbox = Outbox.open(tmp_path, "o", "http://server")
    outbox.tags("r", {"a": "1"})
    first, rest = outbox.path.read_bytes().split(b"\n", 1)
    broken = {"empty": b"", "torn": first[:7], "flipped": first.replace(b'"uri"', b'"uRi"') + b"\n"}[damage]
    outbox.path.write_bytes(broken + (rest if damage == "flipped" else b""))
    assert outbox.uri == ""
    if outbox.unsent():
        with pytest.raises(CorruptFileError, match="the line that names its tracking store is damaged"):
            flush_outbox(outbox)
        assert outbox.unsent()
    assert Outbox.open(tmp_path, "o", "http://server").uri == "http://server", "whoever opens it again knows the store"
    assert len(outbox.unsent()) == (damage == "flipped")


@pytest.mark.parametrize("kept", ["9999999", "5", "-3", "many"])
def test_a_count_of_sent_bytes_that_can_t_be_true_loses_no_entry(kept: str, tmp_path: Path) -> None:
    outbox = Outbox.open(tmp_path, "o", "http://server")
    outbox.tags("r", {"a": "1"})
    outbox.tags("r", {"a": "2"})
    outbox.mark_sent([outbox.unsent()[0][1]])
    assert len(outbox.unsent()) == 1
    outbox.path.with_suffix(".sent").write_text(kept)
    assert len(outbox.unsent()) == 2, "sending an entry twice does no harm"


@pytest.mark.parametrize(("before", "after"), [(b'{"run"', b'{"run'), (b'"step": 1', b'"step": 3'), (b"0.25", b"0.75")])
def test_a_line_that_was_changed_is_not_sent_and_counted(before: bytes, after: bytes, tmp_path: Path) -> None:
    outbox = Outbox.open(tmp_path, "o", "http://server")
    outbox.metrics("r", {"loss": 0.25}, 1, 1000)
    assert (outbox.unreadable(), len(outbox.unsent())) == (0, 1)
    assert outbox.path.read_bytes().count(before) == 1
    outbox.path.write_bytes(outbox.path.read_bytes().replace(before, after))
    assert (outbox.unreadable(), len(outbox.unsent())) == (1, 0)


def test_a_slow_store_is_left_soon_after_the_time_is_over(tmp_path: Path) -> None:
    """Metrics go in one request; tags each in one of its own."""

    class Slow:
        sent = 0

        def send(self, entries: list[Any]) -> None:
            time.sleep(0.2 * len(entries))
            self.sent += len(entries)

    outbox = Outbox.open(tmp_path, "o", "http://server")
    for number in range(60):
        outbox.tags("r", {"a": str(number)})
    slow, began = Slow(), time.monotonic()
    flush_outbox(outbox, cast(TrackingClient, slow), began + 1.0)
    assert slow.sent < 20, "no more than the batch that had begun"
    assert len(outbox.unsent()) == 60 - slow.sent


def test_a_refused_entry_is_logged_and_does_not_hold_up_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Picky:
        def __init__(self) -> None:
            self.sent: list[str] = []

        def send(self, entries: Sequence[Entry]) -> None:
            if any(entry.run == "gone" for entry in entries):
                raise RefusedEntryError("no run of this id")
            self.sent += [entry.run for entry in entries]

    outbox, store = Outbox.open(tmp_path, "o", "http://server"), Picky()
    for run in ("a", "gone", "b"):
        outbox.tags(run, {"a": "1"})
    with caplog.at_level("WARNING", logger="conclave"):
        assert flush_outbox(outbox, store) == 3  # type: ignore[arg-type]
    assert store.sent == ["a", "b"]
    assert [record.getMessage() for record in caplog.records] == [
        "left out of run gone, for the tracking store refuses it: TagsEntry (no run of this id)"
    ]


def test_metrics_and_states_pass_an_artifact_that_is_stuck(tmp_path: Path) -> None:
    class NoArtifacts:
        def __init__(self) -> None:
            self.sent: list[Entry] = []
            self.takes_artifacts = False

        def send(self, entries: Sequence[Entry]) -> None:
            if not self.takes_artifacts and any(isinstance(entry, ArtifactEntry) for entry in entries):
                raise OSError("413: too large for the proxy")
            self.sent += entries

    outbox, store = Outbox.open(tmp_path, "o", "http://server"), NoArtifacts()
    outbox.metrics("r", {"x": 1.0}, 1, 1)
    outbox.artifact("r", tmp_path)
    for step in range(2, 40):
        outbox.metrics("r", {"x": 1.0}, step, 1)
    outbox.status("r", "FINISHED", 1)
    for _ in range(2):  # the second time, nothing is sent again
        with pytest.raises(OSError, match="too large for the proxy"):
            flush_outbox(outbox, cast(TrackingClient, store))
        assert len(store.sent) == 40
        assert [type(entry) for entry, _ in outbox.unsent()] == [ArtifactEntry]
    store.takes_artifacts = True
    flush_outbox(outbox, cast(TrackingClient, store))
    assert len(store.sent) == 41
    assert outbox.unsent() == []
    outbox.tags("r", {"a": "1"})
    assert len(outbox.unsent()) == 1
