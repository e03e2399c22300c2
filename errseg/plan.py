"""What a run of the pipeline is asked for, beside segmenting, and what it tells meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from errseg.halving import SegmentSteadily, Steady
from errseg.journal import EndEntry, FrameEntry, Journal, SegmentEntry
from errseg.read_options import ReadOptions
from errseg.records import Failure
from errseg.summary import Progress


@dataclass(frozen=True)
class Steadying:
    """How videos are made steadier.

    Attributes:
        segment: the model.
        new: the state at the beginning of a video.
    """

    segment: SegmentSteadily
    new: Callable[[], Steady]


@dataclass(frozen=True)
class Earlier:
    """What a run that goes on need not do again.

    Attributes:
        finished: sources.
        videos: where unfinished videos go on.
    """

    finished: frozenset[str] = frozenset()
    videos: Mapping[str, SegmentEntry] = field(default_factory=dict)


@dataclass(frozen=True)
class FrameResult:
    """What a caller hears of each finished picture or frame, and of each finished video.

    Attributes:
        entry: as the journal has it; an `EndEntry` for a video.
        outputs: files written, relative to the output folder, by kind.
    """

    entry: FrameEntry | EndEntry
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Listeners:
    """Whom a run tells what, while it goes on.

    Attributes:
        progress: called at the start and after every frame.
        result: called with every finished frame and video, in order.
        failure: called with every input that failed.
    """

    progress: Callable[[Progress], None] = lambda progress: None
    result: Callable[[FrameResult], None] = lambda result: None
    failure: Callable[[Failure], None] = lambda failure: None


@dataclass(frozen=True)
class Plan:
    """What a run does beside segmenting; the defaults do it plainly.

    Attributes:
        failures: inputs found missing before; they count as failed.
        batch_size: pictures that go through the model together; fewer where memory runs out.
        reading: what is read of the sources, and how.
        stdin: where `pipe:` is read from.
        journal: told of everything that is finished; what it holds already is counted.
        earlier: what is left out because an earlier run did it.
        steadying: how frames of videos are segmented; None = like pictures.
        writers: threads that render and write.
    """

    failures: Sequence[Failure] = ()
    batch_size: int = 1
    reading: ReadOptions = field(default_factory=ReadOptions)
    stdin: BinaryIO | None = None
    journal: Journal | None = None
    earlier: Earlier = field(default_factory=Earlier)
    steadying: Steadying | None = None
    writers: int = 2
