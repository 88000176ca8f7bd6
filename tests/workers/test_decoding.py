"""Images decoded in the background: all of them, in order, by one thread where they are small."""

import threading
import time

import pytest

from workers.data.decoding import SLICE, decode_batches


def threads(function_seconds: float, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Those that worked in the background, of four at most."""
    monkeypatch.setattr("workers.data.decoding.available_cores", lambda: 4)
    seen: list[int] = []

    def slow(number: int) -> int:
        seen.append(threading.get_ident())
        time.sleep(function_seconds)
        return 2 * number

    numbers = list(range(6 * SLICE + 3))
    assert list(decode_batches(slow, iter([]), 7)) == []
    batches = list(decode_batches(slow, iter(numbers), 5 * SLICE))
    assert [len(batch) for batch in batches] == [5 * SLICE, SLICE + 3]
    assert [pair for batch in batches for pair in batch] == [(n, 2 * n) for n in numbers]
    return set(seen) - {threading.get_ident()}


def test_small_images_are_decoded_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(threads(0, monkeypatch)) == 1


def test_large_images_are_decoded_by_a_thread_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(threads(0.002, monkeypatch)) == 4


def test_an_error_is_raised_where_the_results_are_asked_for() -> None:
    for numbers in ([0], [1] * SLICE + [0]):
        with pytest.raises(ZeroDivisionError):
            list(decode_batches(lambda number: 1 // number, iter(numbers), 2 * SLICE))


def test_a_batch_is_decoded_while_the_one_before_is_used() -> None:
    is_begun, decoded = threading.Event(), list[int]()

    def decode(number: int) -> int:
        decoded.append(number)
        if number >= SLICE:
            is_begun.set()
        return number

    batches = decode_batches(decode, iter(range(3 * SLICE)), SLICE)
    assert len(next(batches)) == SLICE
    assert is_begun.wait(10)
    batches.close()
    assert max(decoded) < 2 * SLICE
