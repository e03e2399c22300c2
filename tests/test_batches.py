"""Order, sizes, failures and laziness of `batched`."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from errseg.batches import batched
from errseg.errors import UsageError
from errseg.records import Batch, EndOfVideo, Failure, Frame, VideoStream

IMAGE = np.zeros((2, 3, 3), np.uint8)


VIDEO = VideoStream(Fraction(1, 25))


def stream_of(letters: str) -> list[Frame | EndOfVideo | Failure]:
    """Upper case: a picture; lower case: a failure; digit: a frame of that video; dot: its end."""
    stream: list[Frame | EndOfVideo | Failure] = []
    for index, x in enumerate(letters):
        if x.isdigit():
            stream.append(Frame(x, IMAGE, video=VIDEO))
        elif x == ".":
            stream.append(EndOfVideo(letters[index - 1]))
        else:
            stream.append(Frame(x, IMAGE) if x.isupper() else Failure(x, "broken"))
    return stream


def written(item: Batch | EndOfVideo | Failure) -> str:
    if isinstance(item, EndOfVideo):
        return "."
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
        # a failure takes the place of its picture: B and C stay together whatever becomes of A
        ("AxBC", 2, ["x", "A", "BC"]),
        ("xABC", 2, ["x", "A", "BC"]),
        ("xyABC", 2, ["x", "y", "AB", "C"]),
        ("AxByzC", 3, ["x", "AB", "y", "z", "C"]),
        ("ABx", 2, ["AB", "x"]),
        ("111.222.", 2, ["11", "1", ".", "22", "2", "."]),
        ("A11.B", 3, ["A", "11", ".", "B"]),
        ("ABC1.", 2, ["AB", "C", "1", "."]),
        ("1122.", 4, ["11", "22", "."]),
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

    def stream() -> Iterator[Frame | EndOfVideo | Failure]:
        for item in stream_of("AxBC"):
            read.append(item.source)
            yield item

    batches = batched(stream(), 2)
    assert read == []
    assert written(next(batches)) == "x"
    assert written(next(batches)) == "A"
    assert read == ["A", "x"]
