"""Batches through the model: where memory runs out in halves, where one picture fails alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Protocol

from errseg.errors import ErrsegError
from errseg.records import ImageArray, Segmentation

_log = logging.getLogger(__name__)


class Steady(Protocol):
    """What is carried from frame to frame of one video; `errseg.steady.Steadier` is one."""

    def to_bytes(self) -> bytes:
        """The whole state."""

    def from_bytes(self, data: bytes) -> None:
        """Take over a state."""


class Segment(Protocol):
    """Pictures in, one `Segmentation` per picture out; a `Segmenter` is one."""

    def __call__(self, images: Sequence[ImageArray], /) -> list[Segmentation]:
        """Segment a batch."""


class SegmentSteadily(Protocol):
    """Consecutive frames of one video in, one `Segmentation` per frame out."""

    def __call__(self, images: Sequence[ImageArray], steady: Steady, /) -> list[Segmentation]:
        """Segment a batch and carry `steady` on."""


class HalvingModel:
    """A model whose batches never fail as a whole.

    Attributes:
        seconds: spent in the model so far.
        notes: what was changed to make pictures fit, in words for the user.
    """

    def __init__(self, segment: Segment, steadily: SegmentSteadily | None = None) -> None:
        self.seconds = 0.0
        self.notes: list[str] = []
        self._segment, self._steadily = segment, steadily
        self._most: int | None = None

    def __call__(
        self, images: Sequence[ImageArray], steady: Steady | None = None
    ) -> list[Segmentation | Exception]:
        """One `Segmentation`, or what went wrong, per picture."""
        step = min(len(images), self._most or len(images))
        results: list[Segmentation | Exception] = []
        while len(results) < len(images):
            part = images[len(results) : len(results) + step]
            found = self._try(part, steady)
            if isinstance(found, list):
                results += found
            elif len(part) == 1:
                results.append(found)
            else:
                step = self._smaller(len(part), found)
        return results

    def _smaller(self, count: int, error: Exception) -> int:
        """How many pictures at once to go on with, after so many failed together."""
        if not is_out_of_memory(error):
            _log.debug("a batch failed, going on one by one", exc_info=error)
            return 1
        self._most = (count + 1) // 2 if count > 2 else 1
        self.notes.append(
            f"{count} pictures at once need too much memory; {self._most} from now on"
        )
        return self._most

    def _try(
        self, images: Sequence[ImageArray], steady: Steady | None
    ) -> list[Segmentation] | Exception:
        before = steady.to_bytes() if steady is not None and len(images) > 1 else None
        start = time.perf_counter()
        try:
            if steady is None or self._steadily is None:
                return self._segment(images)
            return self._steadily(images, steady)
        except Exception as error:
            if steady is not None and before is not None:
                steady.from_bytes(before)
            return error
        finally:
            self.seconds += time.perf_counter() - start


def message_of(error: Exception) -> str:
    """Words for the user; of errors that errseg does not know, their kind as well."""
    if isinstance(error, ErrsegError):
        return str(error)
    if is_out_of_memory(error):
        return "not enough memory for this picture; make it smaller or choose another device"
    words = " ".join(str(error).split())
    return f"unexpected {type(error).__name__} ({words}); --debug shows where it comes from"


def is_out_of_memory(error: Exception) -> bool:
    """Torch has a class of its own for CUDA only; elsewhere the words have to do."""
    text = str(error).lower()
    words = ("out of memory", "not enough memory", "allocate memory")
    return isinstance(error, MemoryError) or any(word in text for word in words)
