"""Images decoded in the background: all of them, in order, by one thread where they are small."""

import threading
import time

import pytest

from workers.data.decoding import SLICE, Decoding


def threads(function_seconds: float, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Those that worked in the background, of four at most."""
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    seen: list[int] = []

    def slow(number: int) -> int:
        seen.append(threading.get_ident())
        time.sleep(function_seconds)
        return 2 * number

    numbers = list(range(5 * SLICE + 3))
    with Decoding(slow) as several:
        waiting = several.begin(numbers), several.begin([]), several.begin(numbers[:7])
        assert [of() for of in waiting] == [[2 * n for n in numbers], [], [0, 2, 4, 6, 8, 10, 12]]
    return set(seen) - {threading.get_ident()}


def test_small_images_are_decoded_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(threads(0, monkeypatch)) == 1


def test_large_images_are_decoded_by_a_thread_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(threads(0.002, monkeypatch)) == 4


def test_an_error_is_raised_where_the_results_are_asked_for() -> None:
    decoding: Decoding[int, int] = Decoding(lambda number: 1 // number)
    with decoding as one:
        waiting = one.begin([1] * SLICE + [0])
        with pytest.raises(ZeroDivisionError):
            waiting()
    decoding = Decoding(lambda number: 1 // number)
    with decoding as one, pytest.raises(ZeroDivisionError):
        one.begin([0])
