"""Order, sizes, failures and laziness of `batched`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from errseg.batches import batched
from errseg.errors import UsageError
from errseg.records import Batch, Failure, Frame

IMAGE = np.zeros((2, 3, 3), np.uint8)


def stream_of(letters: str) -> list[Frame | Failure]:
    """Upper case: a frame; lower case: a failure."""
    return [Frame(x, IMAGE) if x.isupper() else Failure(x, "broken") for x in letters]


def written(item: Batch | Failure) -> str:
    return item.source if isinstance(item, Failure) else "".join(f.source for f in item.frames)


@pytest.mark.parametrize(
    ("letters", "batch_size", "expected"),
    [
        ("", 2, []),
        ("A", 2, ["A"]),
        ("ABCD", 2, ["AB", "CD"]),
        ("ABCDE", 2, ["AB", "CD", "E"]),
        ("ABC", 1, ["A", "B", "C"]),
        ("ABC", 100, ["ABC"]),
        ("xy", 2, ["x", "y"]),
        ("AxBC", 2, ["x", "AB", "C"]),
        ("AxByzC", 3, ["x", "y", "z", "ABC"]),
        ("ABx", 2, ["AB", "x"]),
    ],
)
def test_grouping(letters: str, batch_size: int, expected: list[str]) -> None:
    assert [written(item) for item in batched(stream_of(letters), batch_size)] == expected


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_below_one_is_refused_by_the_call(batch_size: int) -> None:
    with pytest.raises(UsageError, match=f"Batch size {batch_size}: expected at least 1"):
        batched([], batch_size)


def test_reads_no_further_than_it_must() -> None:
    read: list[str] = []

    def stream() -> Iterator[Frame | Failure]:
        for item in stream_of("AxBC"):
            read.append(item.source)
            yield item

    batches = batched(stream(), 2)
    assert read == []
    assert written(next(batches)) == "x"
    assert written(next(batches)) == "AB"
    assert read == ["A", "x", "B"]
