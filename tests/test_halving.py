from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from errseg.errors import InputError
from errseg.halving import HalvingModel, Steady, is_out_of_memory, message_of
from errseg.records import ImageArray, Segmentation
from errseg.tuning import best_batch_size


def image(value: int) -> ImageArray:
    return np.full((2, 3, 3), value, np.uint8)


class Model:
    """Labels are the picture's value; fails as it is told to."""

    def __init__(self, most: int = 99, bad: int = -1) -> None:
        self.most, self.bad = most, bad
        self.sizes: list[int] = []

    def __call__(self, images: Sequence[ImageArray], /) -> list[Segmentation]:
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        if any(picture[0, 0, 0] == self.bad for picture in images):
            raise InputError("too thin")
        labels = [picture[..., 0].astype(np.uint16) for picture in images]
        return [Segmentation(values, np.ones((2, 3), np.float32), ()) for values in labels]


def values(results: Sequence[Segmentation | Exception]) -> list[int | str]:
    return [
        str(result) if isinstance(result, Exception) else int(result.labels[0, 0])
        for result in results
    ]


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (99, [7, 7]),
        (4, [7, 4, 3, 4, 3]),
        (3, [7, 4, 2, 2, 2, 1, 2, 2, 2, 1]),
        (1, [7, 4, 2, *[1] * 14]),
    ],
)
def test_batches_are_halved_until_they_fit(most: int, sizes: list[int]) -> None:
    model = Model(most)
    halving = HalvingModel(model)
    for _ in range(2):
        assert values(halving([image(i) for i in range(7)])) == list(range(7))
    assert model.sizes == sizes
    assert bool(halving.notes) == (most < 7)
    assert halving.seconds > 0


def test_one_picture_that_does_not_fit_fails_alone() -> None:
    halving = HalvingModel(Model(0))
    results = halving([image(1), image(2)])
    assert all(isinstance(result, RuntimeError) for result in results)
    assert isinstance(results[0], RuntimeError)
    assert "not enough memory" in message_of(results[0])


def test_a_picture_that_is_refused_fails_alone_and_batches_stay_large() -> None:
    model = Model(bad=2)
    halving = HalvingModel(model)
    assert values(halving([image(i) for i in range(4)])) == [0, 1, "too thin", 3]
    assert values(halving([image(i) for i in (5, 6)])) == [5, 6]
    assert model.sizes == [4, 1, 1, 1, 1, 2]
    assert not halving.notes


class Count:
    """A state: how many frames were seen."""

    def __init__(self) -> None:
        self.seen = 0

    def to_bytes(self) -> bytes:
        return str(self.seen).encode()

    def from_bytes(self, data: bytes) -> None:
        self.seen = int(data)


def test_what_is_carried_from_frame_to_frame_is_not_carried_twice() -> None:
    plain = Model(2)

    def steadily(images: Sequence[ImageArray], steady: Steady, /) -> list[Segmentation]:
        assert isinstance(steady, Count)
        steady.seen += len(images)
        return plain(images)

    count = Count()
    halving = HalvingModel(plain, steadily)
    assert values(halving([image(i) for i in range(5)], count)) == [0, 1, 2, 3, 4]
    assert count.seen == 5


def test_words_of_errors() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(ValueError("shape"))
    assert message_of(InputError("too thin")) == "too thin"
    assert message_of(ValueError("a\nb")).startswith("unexpected ValueError (a b)")


class Clock:
    """Seconds pass in the model only, so many for a batch of each size."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.now = seconds, 0.0

    def __call__(self) -> float:
        return self.now

    def model(self, images: Sequence[ImageArray], /) -> list[Segmentation]:
        if len(images) not in self.seconds:
            raise RuntimeError("out of memory")
        self.now += self.seconds[len(images)]
        return []


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0, 2: 2.0, 4: 4.0}, 1),  # nothing is gained, as on a CPU
        ({1: 1.0, 2: 1.2, 4: 1.6, 8: 3.2, 16: 6.4}, 4),
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0, 16: 1.0, 32: 1.0}, 32),
        ({1: 1.0, 2: 1.0}, 2),  # four do not fit
    ],
)
def test_the_best_batch_size_is_the_smallest_of_the_fastest(
    seconds: dict[int, float], best: int
) -> None:
    clock = Clock(seconds)
    assert best_batch_size(clock.model, clock=clock) == best


def test_a_model_that_fails_with_one_picture_says_so() -> None:
    clock = Clock({})
    with pytest.raises(RuntimeError, match="out of memory"):
        best_batch_size(clock.model, clock=clock)
