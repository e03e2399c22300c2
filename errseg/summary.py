"""What a run says of itself: while it goes on, and when it is over."""

from __future__ import annotations

from dataclasses import dataclass

from errseg.records import Failure


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        done, failed: pictures so far.
        total: pictures of the run.
        seconds: since its start.
    """

    done: int
    failed: int
    total: int
    seconds: float


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
        pictures: number of pictures it is seen in.
    """

    class_id: int
    name: str
    pixels: int
    fraction: float
    pictures: int


@dataclass(frozen=True)
class RunSummary:
    """What came of a run.

    Attributes:
        done: pictures of which everything was written.
        failed: pictures of which something was not.
        skipped: pictures that an interruption left undone.
        failures: what failed and why, by name of the picture.
        warnings: what was changed or assumed while reading.
        seconds: by stage.
        areas: classes seen, the largest first; unlabelled pixels, if any, last.
        interrupted: whether the run was ended by the user.
    """

    done: int
    failed: int
    skipped: int
    failures: tuple[Failure, ...]
    warnings: tuple[PictureWarning, ...]
    seconds: StageSeconds
    areas: tuple[ClassTotal, ...]
    interrupted: bool

    @property
    def pictures_per_second(self) -> float:
        """Pictures done per second of the whole run."""
        return self.done / self.seconds.total if self.seconds.total > 0 else 0.0
