"""What a run says of itself: while it goes on, and when it is over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from errseg.records import UNLABELLED_CLASS_ID, UNLABELLED_NAME, ClassArea, Failure


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        done, failed: pictures and videos so far, those of an earlier run included.
        total: pictures and videos of the run.
        seconds: since its start.
        frames: pictures and frames of videos that this run itself has finished.
        earlier: of `done`, those that an earlier run had finished.
        part: how much of the video in hand is done, 0..1, as far as that is known.
    """

    done: int
    failed: int
    total: int
    seconds: float
    frames: int = 0
    earlier: int = 0
    part: float = 0.0


@dataclass(frozen=True)
class PictureWarning:
    """What was changed or assumed while reading one picture.

    Attributes:
        source: as `Frame.source`.
        message: in words for the user.
    """

    source: str
    message: str


@dataclass(frozen=True)
class StageSeconds:
    """Where the time of a run went, in seconds; `total` holds the rest as well."""

    read: float
    model: float
    write: float
    total: float


@dataclass(frozen=True)
class ClassTotal:
    """How much one class covers of all pictures together.

    Attributes:
        class_id: index in the vocabulary, or `UNLABELLED_CLASS_ID`.
        name: of the class.
        pixels: number of pixels.
        fraction: pixels / all pixels of all pictures, 0..1.
        pictures: number of pictures (frames) it is seen in.
    """

    class_id: int
    name: str
    pixels: int
    fraction: float
    pictures: int


class Totals:
    """Adds up the areas of pictures."""

    def __init__(self) -> None:
        self._pixels: Counter[int] = Counter()
        self._pictures: Counter[int] = Counter()

    def add(self, areas: Iterable[ClassArea]) -> None:
        for area in areas:
            self._pixels[area.class_id] += area.pixels
            self._pictures[area.class_id] += 1

    def by_class(self, class_names: Sequence[str]) -> tuple[ClassTotal, ...]:
        """Totals of the classes with any pixel, the largest first; unlabelled pixels last."""
        every = max(self._pixels.total(), 1)
        seen = sorted(self._pixels, key=lambda i: (i == UNLABELLED_CLASS_ID, -self._pixels[i], i))
        return tuple(
            ClassTotal(
                class_id=class_id,
                name=UNLABELLED_NAME if class_id == UNLABELLED_CLASS_ID else class_names[class_id],
                pixels=self._pixels[class_id],
                fraction=self._pixels[class_id] / every,
                pictures=self._pictures[class_id],
            )
            for class_id in seen
        )


@dataclass(frozen=True)
class RunSummary:
    """What came of a run.

    Attributes:
        done: pictures and videos of which everything was written, those of an earlier run included.
        failed: pictures and videos of which something was not.
        skipped: pictures and videos that an interruption left undone.
        frames: pictures, and frames of videos, of which everything was written.
        earlier: of `frames`, those that an earlier run had written.
        failures: what failed and why, by name of the picture.
        warnings: what was changed or assumed while reading.
        seconds: by stage.
        areas: classes seen, the largest first; unlabelled pixels, if any, last.
        interrupted: whether the run was ended before its time.
    """

    done: int
    failed: int
    skipped: int
    frames: int
    earlier: int
    failures: tuple[Failure, ...]
    warnings: tuple[PictureWarning, ...]
    seconds: StageSeconds
    areas: tuple[ClassTotal, ...]
    interrupted: bool

    @property
    def frames_per_second(self) -> float:
        """Pictures and frames that this run wrote, per second of the whole run."""
        written = self.frames - self.earlier
        return written / self.seconds.total if self.seconds.total > 0 else 0.0
