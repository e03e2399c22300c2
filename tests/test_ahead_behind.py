"""Reading ahead and writing behind: order, bounds, errors, and that nothing hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

import pytest

from errseg.ahead import ReadAhead
from errseg.behind import WriteBehind
from errseg.errors import ErrsegError

WAIT_S = 20.0


def numbers(count: int, made: list[int], fail_at: int = -1) -> Generator[int, None, None]:
    for number in range(count):
        if number == fail_at:
            raise OSError("the disk went away")
        made.append(number)
        yield number


def ahead(
    items: Generator[int, None, None], max_items: int = 4, max_bytes: int = 1000
) -> ReadAhead[int]:
    return ReadAhead(items, lambda item: item, max_items=max_items, max_bytes=max_bytes)


@pytest.mark.parametrize("max_items", [1, 3, 100])
def test_items_come_in_order(max_items: int) -> None:
    assert list(ahead(numbers(50, []), max_items)) == list(range(50))


@pytest.mark.parametrize(("max_items", "max_bytes", "most"), [(3, 10**6, 3), (100, 5, 3)])
def test_no_more_is_read_than_fits(max_items: int, max_bytes: int, most: int) -> None:
    made: list[int] = []
    full = threading.Event()

    def watched() -> Generator[int, None, None]:
        for number in numbers(100, made):
            if number == most:  # 0 + 1 + 2 fit 5 bytes, 3 more do not
                full.set()
            yield number

    reader = ahead(watched(), max_items, max_bytes)
    assert full.wait(WAIT_S)
    assert len(made) == most + 1  # the one that waits to be put is made already
    reader.close()
    reader._thread.join(WAIT_S)
    assert not reader._thread.is_alive()
    assert len(made) == most + 1


def test_one_item_may_wait_whatever_its_size() -> None:
    assert list(ahead(numbers(5, []), 1, 0)) == [0, 1, 2, 3, 4]


def test_an_error_comes_out_after_the_items_before_it() -> None:
    reader = ahead(numbers(9, [], fail_at=3))
    assert [next(reader) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk went away"):
        next(reader)
    with pytest.raises(StopIteration):
        next(reader)


def test_a_reader_that_died_does_not_hang_its_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReadAhead, "_read", lambda self: None)
    with pytest.raises(ErrsegError, match="died"):
        next(ahead(numbers(3, [])))


def test_a_stop_ends_the_waiting() -> None:
    gate, stop = threading.Event(), threading.Event()

    def stuck() -> Generator[int, None, None]:
        yield 0
        gate.wait(WAIT_S)

    reader = ReadAhead(stuck(), lambda item: 1, max_items=1, max_bytes=1, stop=stop)
    assert next(reader) == 0
    stop.set()
    assert list(reader) == []
    gate.set()


def test_the_generator_is_closed_in_its_own_thread() -> None:
    closed = threading.Event()

    def items() -> Generator[int, None, None]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    reader = ahead(items())
    assert next(reader) == 0
    reader.close()
    assert closed.wait(WAIT_S)


Finish = Callable[[Callable[[], int]], None]


def finish_into(found: list[object]) -> Finish:
    def finish(result: Callable[[], int]) -> None:
        try:
            found.append(result())
        except ValueError as error:
            found.append(str(error))

    return finish


def test_results_come_in_order_whoever_is_done_first() -> None:
    found: list[object] = []
    gate = threading.Event()

    def slow() -> int:
        assert gate.wait(WAIT_S)
        return 0

    with ThreadPoolExecutor(2) as threads:
        behind: WriteBehind[int] = WriteBehind(threads, 100)
        behind.submit(slow, 1, finish_into(found))
        behind.submit(lambda: 1, 1, finish_into(found))
        behind.then(lambda: found.append("then"))
        assert found == []
        gate.set()
        behind.drain()
    assert found == [0, 1, "then"]


def test_an_error_is_the_job_s_own() -> None:
    def fail() -> int:
        raise ValueError("no room")

    found: list[object] = []
    with ThreadPoolExecutor(1) as threads:
        behind: WriteBehind[int] = WriteBehind(threads, 100)
        for job in (lambda: 1, fail, lambda: 3):
            behind.submit(job, 1, finish_into(found))
        behind.drain()
    assert found == [1, "no room", 3]


def test_no_more_is_under_way_than_fits() -> None:
    lock = threading.Lock()
    under_way, most = 0, 0
    found: list[object] = []

    def job() -> int:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        with lock:
            under_way -= 1
        return 0

    with ThreadPoolExecutor(8) as threads:
        behind: WriteBehind[int] = WriteBehind(threads, 10)
        for _ in range(40):
            behind.submit(job, 4, finish_into(found))
            assert behind._bytes <= 10
        behind.submit(job, 1000, finish_into(found))  # alone, whatever its size
        assert behind._bytes <= 1000
        behind.drain()
    assert most <= 2
    assert found == [0] * 41
