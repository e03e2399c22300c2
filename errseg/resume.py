"""Going on with an interrupted run: may it, what is finished, and how the journal is settled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from errseg.areas import write_areas
from errseg.errors import OutputError
from errseg.files import remove_parts
from errseg.journal import EndEntry, Entry, FrameEntry, Journal, SegmentEntry, Stamp
from errseg.outputs import RUN_FILE, Medium, output_paths, steady_path
from errseg.plan import Earlier
from errseg.sinks import Sink
from errseg.sources import SourceFile


def refuse_other_run(out: Path, identity: Mapping[str, object]) -> None:
    """Check that `out` holds a run that was asked for the same.

    Args:
        identity: everything that decides the results, by what the user calls it.

    Raises:
        OutputError: it is another run, and in what; or its run.json cannot be read.
    """
    path = out / RUN_FILE
    try:
        earlier = json.loads(path.read_text("utf-8"))["identity"]
        differing = [key for key in identity if earlier.get(key) != identity[key]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"cannot tell from {str(path)!r} how its run was made: choose another output folder, "
            "or pass --overwrite instead of --resume"
        ) from error
    if differing:
        words = ", ".join(
            f"{key} was {_shown(earlier.get(key))} and is now {_shown(identity[key])}"
            for key in differing
        )
        raise OutputError(
            f"cannot go on with the run in {str(out)!r}: {words}. Ask for the same again, or "
            "choose another output folder"
        )


def _shown(value: object) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) == 64 else repr(value)  # a hash


class Resumption:
    """What the journal of an interrupted run is good for."""

    def __init__(
        self,
        journal: Journal,
        sources: Sequence[SourceFile],
        sinks: Sequence[Sink],
        *,
        batch_size: int,
        video_medium: Medium,
        steadily: bool,
    ) -> None:
        self._journal, self._sources, self._sinks = journal, sources, sinks
        self._batch_size, self._steadily = batch_size, steadily
        self._video_medium = video_medium
        self._paths = {source.source: source.path for source in sources}

    def take_up(self) -> Earlier:
        """Find out what need not be done again, and forget the rest.

        Half-written files of the killed run are removed.
        """
        remove_parts(self._journal.out)
        finished: set[str] = set()
        videos: dict[str, SegmentEntry] = {}
        for entry in self._journal.entries():
            if isinstance(entry, SegmentEntry):
                videos[entry.source] = entry
            elif self._is_finished(entry):
                finished.add(entry.source)
        finished -= set(self._partly_done_batches(finished))
        videos = {
            source: entry
            for source, entry in videos.items()
            if source not in finished and self._can_go_on(entry)
        }

        def wanted(entry: Entry) -> bool:
            if entry.source in finished:
                return not isinstance(entry, SegmentEntry)
            video = videos.get(entry.source)
            if video is None or isinstance(entry, EndEntry):
                return False
            return isinstance(entry, SegmentEntry) or entry.frame < video.next_frame

        self._journal.keep(wanted)
        return Earlier(frozenset(finished), videos)

    def _is_finished(self, entry: FrameEntry | EndEntry) -> bool:
        if isinstance(entry, FrameEntry) and entry.of_video:
            return False
        if entry.source not in self._paths:
            return True  # not asked for this time: what there is of it stays
        medium: Medium = "picture" if isinstance(entry, FrameEntry) else self._video_medium
        kinds = [sink.kind for sink in self._sinks]
        paths = output_paths(entry.source, kinds, medium).values()
        return self._is_unchanged(entry) and all(
            (self._journal.out / path).exists() for path in paths
        )

    def _is_unchanged(self, entry: Entry) -> bool:
        stamp = None if isinstance(entry, FrameEntry) and entry.of_video else entry.stamp
        return stamp is not None and stamp == Stamp.of(self._paths.get(entry.source))

    def _can_go_on(self, entry: SegmentEntry) -> bool:
        state = steady_path(self._journal.out, entry.source, entry.segments)
        return (
            self._is_unchanged(entry)
            and (not self._steadily or state.is_file())
            and all(sink.resume_video(entry.source, entry.segments) for sink in self._sinks)
        )

    def _partly_done_batches(self, finished: set[str]) -> Iterator[str]:
        """Pictures whose batch is not finished: it goes through the model as a whole again.

        Which pictures share a batch can change their results by rounding.
        """
        for is_video, group in groupby(self._sources, key=lambda source: source.is_video):
            names = [source.source for source in group]
            starts = range(0, 0 if is_video else len(names), self._batch_size)
            for batch in (names[start : start + self._batch_size] for start in starts):
                if not finished.issuperset(batch):
                    yield from batch


def settle(
    journal: Journal,
    sources: Sequence[SourceFile],
    kinds: Sequence[str],
    class_names: Sequence[str],
) -> None:
    """Bring the journal into the order of the sources and write areas.csv from it.

    Raises:
        WriteError: one of them cannot be written.
    """
    ended = {entry.source for entry in journal.entries() if isinstance(entry, EndEntry)}
    journal.keep(lambda entry: not (isinstance(entry, SegmentEntry) and entry.source in ended))
    journal.sort(_position_in(sources))
    if "areas" in kinds:
        write_areas(journal.out, journal.entries(), class_names)


def _position_in(sources: Sequence[SourceFile]) -> Callable[[Entry], int]:
    positions = {source.source: index for index, source in enumerate(sources)}
    return lambda entry: positions.get(entry.source, len(positions))
