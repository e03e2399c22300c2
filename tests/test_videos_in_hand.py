"""Where videos stand in a run: what of them is kept, what is lost, and how they end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from test_pipeline import Recorder

from errseg.errors import WriteError
from errseg.journal import EndEntry, Journal, SegmentEntry
from errseg.outputs import steady_path, video_work_folder
from errseg.plan import Earlier, Plan, Steadying
from errseg.records import Batch, EndOfVideo, Frame, ImageArray, Segmentation
from errseg.sinks import Sound
from errseg.videos_in_hand import SEGMENT_FRAMES, Video, VideosInHand

SOURCE = "clip.mp4"


class Counter:
    """A state that counts what it is told."""

    def __init__(self) -> None:
        self.value = 0

    def to_bytes(self) -> bytes:
        return bytes([self.value])

    def from_bytes(self, data: bytes) -> None:
        (self.value,) = data


class VideoSink(Recorder):
    """Writes no pictures, but the videos that it does not refuse."""

    def __init__(self, refuse_segment: bool = False, refuse_video: bool = False) -> None:
        super().__init__()
        self.refuse_segment, self.refuse_video = refuse_segment, refuse_video
        self.sounds: list[Sound] = []

    def end_segment(self, source: str) -> None:
        if self.refuse_segment:
            raise WriteError("no room for a segment")

    def end_video(self, source: str, sound: Sound) -> tuple[PurePosixPath | None, tuple[str, ...]]:
        if self.refuse_video:
            raise WriteError("no room for the video")
        self.sounds.append(sound)
        return PurePosixPath("labels", source), ("turned",)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path)
    yield journal
    journal.close()


def never(*_: object) -> list[Segmentation]:
    raise AssertionError("nothing is segmented here")


def in_hand(journal: Journal | None, sink: VideoSink, **plan: object) -> VideosInHand:
    whole = Plan(journal=journal, steadying=Steadying(never, Counter), **plan)  # type: ignore[arg-type]
    return VideosInHand([sink], whole, {SOURCE: Path("films", SOURCE)}, {})


def batch(*indices: int) -> Batch:
    image: ImageArray = np.zeros((2, 2, 3), np.uint8)
    return Batch(tuple(Frame(SOURCE, image, index=index) for index in indices))


def test_a_segment_keeps_the_state_of_when_it_was_full(journal: Journal, tmp_path: Path) -> None:
    videos = in_hand(journal, VideoSink())
    video = videos.of(SOURCE)
    assert isinstance(video.steady, Counter)
    for index in range(0, SEGMENT_FRAMES, 8):
        assert not video.segment_is_full
        video.count(batch(*range(index, index + 8)))
    assert video.segment_is_full
    video.steady.value = 7
    end = videos.begin_segment(SOURCE)
    assert not video.segment_is_full
    # the model goes on before the frames of the segment are all written
    video.steady.value = 9
    video.count(batch(SEGMENT_FRAMES))
    end()
    assert list(journal.entries()) == [SegmentEntry(SOURCE, 1, SEGMENT_FRAMES, None)]
    assert steady_path(tmp_path, SOURCE, 1).read_bytes() == bytes([7])


def test_an_unfinished_video_goes_on_with_its_state(journal: Journal, tmp_path: Path) -> None:
    path = steady_path(tmp_path, SOURCE, 2)
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes([5]))
    earlier = Earlier(videos={SOURCE: SegmentEntry(SOURCE, 2, 480, None)})
    videos = in_hand(journal, VideoSink(), earlier=earlier)
    videos.take_over(tmp_path)
    video = videos.of(SOURCE)
    assert (video.segments, video.next_frame) == (2, 480)
    assert isinstance(video.steady, Counter) and video.steady.value == 5


def test_the_end_of_a_video(journal: Journal, tmp_path: Path) -> None:
    sink = VideoSink()
    videos = in_hand(journal, sink)
    videos.of(SOURCE).fail_frame(3, "broken")
    videos.of(SOURCE).fail_frame(4, "broken as well")
    work = video_work_folder(tmp_path, SOURCE)
    work.mkdir(parents=True)
    ended = videos.end(EndOfVideo(SOURCE, failure="cut short", warnings=("odd rate",)))
    failure = "cut short; 2 frames failed, the first was frame 3: broken"
    assert ended.failure == failure
    assert ended.paths == {"labels": f"labels/{SOURCE}"}
    assert ended.entry == EndEntry(SOURCE, None, failure, ("odd rate", "turned"))
    assert list(journal.entries()) == [ended.entry]
    assert [sound.path for sound in sink.sounds] == [Path("films", SOURCE)]
    assert not work.exists()
    # it is in hand no more
    assert videos.of(SOURCE).failed == 0


@pytest.mark.parametrize("when", ["segment", "end"])
def test_a_video_that_cannot_be_written_is_not_finished(journal: Journal, when: str) -> None:
    sink = VideoSink(refuse_segment=when == "segment", refuse_video=when == "end")
    videos = in_hand(journal, sink)
    videos.of(SOURCE).count(batch(0))
    videos.begin_segment(SOURCE)()
    assert bool(videos.of(SOURCE).lost) == (when == "segment")
    ended = videos.end(EndOfVideo(SOURCE))
    assert "no room" in ended.failure
    assert (ended.entry, ended.paths) == (None, {})
    assert not any(isinstance(entry, EndEntry) for entry in journal.entries())
    assert not sink.sounds


def test_without_a_journal_nothing_is_kept_for_later() -> None:
    videos = in_hand(None, VideoSink())
    videos.of(SOURCE).count(batch(0))
    videos.begin_segment(SOURCE)()
    assert videos.of(SOURCE).segments == 0
    assert videos.end(EndOfVideo(SOURCE)).failure == ""


def test_a_video_that_gave_everything_has_no_failure() -> None:
    assert Video().failure("") == ""
    assert Video().failure("cut short") == "cut short"
