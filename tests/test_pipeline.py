from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from errseg.errors import InputError, UsageError, WriteError
from errseg.journal import FrameEntry, Journal, Stamp
from errseg.pipeline import OUTPUT_FILES, WRITE_FAILURES_IN_A_ROW, run
from errseg.plan import Earlier, FrameResult, Listeners, Plan
from errseg.records import (
    UNLABELLED,
    UNLABELLED_CLASS_ID,
    Failure,
    Frame,
    ImageArray,
    Segmentation,
)
from errseg.sinks import Rendered, Sound
from errseg.sources import SourceFile
from errseg.summary import Progress

NAMES = ("dark", "light")


def by_brightness(images: Sequence[ImageArray], /) -> list[Segmentation]:
    """Black pixels unlabelled, else class 0 below 128, class 1 above."""
    results = []
    for image in images:
        grey = image[..., 0]
        labels = np.where(grey == 0, UNLABELLED, grey >= 128).astype(np.uint16)
        results.append(Segmentation(labels, np.ones(grey.shape, np.float32), NAMES))
    return results


def pictures(
    folder: Path, values: Sequence[int], size: tuple[int, int] = (4, 6)
) -> list[SourceFile]:
    """Even grey PNGs 0.png, 1.png, ..."""
    sources = []
    for index, value in enumerate(values):
        path = folder / f"{index}.png"
        Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)
        sources.append(SourceFile(path, path.name))
    return sources


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C as a program has it by default: a shell's background jobs are started without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Recorder:
    """A sink that remembers, and refuses what it is told to."""

    def __init__(
        self, refuse: str = "", refuse_commit: str = "", refuse_close: bool = False
    ) -> None:
        self.refuse, self.refuse_commit, self.refuse_close = refuse, refuse_commit, refuse_close
        self.kind = "labels"
        self.written: list[str] = []
        self.closed = 0

    def render(self, frame: Frame, segmentation: Segmentation) -> Rendered:
        assert segmentation.labels.shape == frame.image.shape[:2]
        if self.refuse in (frame.source, "everything"):
            raise WriteError("the disk is full")
        return Rendered(PurePosixPath("labels", frame.source))

    def commit(self, frame: Frame, rendered: Rendered) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert rendered.path == PurePosixPath("labels", frame.source)
        if frame.source == self.refuse_commit:
            raise WriteError("no room")
        self.written.append(frame.source)

    def resume_video(self, source: str, segments: int) -> bool:
        return True

    def end_segment(self, source: str) -> None:
        pass

    def end_video(self, source: str, sound: Sound) -> tuple[PurePosixPath | None, tuple[str, ...]]:
        return None, ()

    def close(self) -> None:
        self.closed += 1
        if self.refuse_close:
            raise WriteError("cannot complete it")


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_every_picture_reaches_every_sink_in_order(tmp_path: Path, batch_size: int) -> None:
    sources = pictures(tmp_path, [10, 200, 0, 90, 255])
    sinks = [Recorder(), Recorder()]
    seen: list[Progress] = []
    heard: list[FrameResult] = []
    listeners = Listeners(progress=seen.append, result=heard.append)
    plan = Plan(batch_size=batch_size)
    summary = run(by_brightness, NAMES, sources, sinks, plan, listeners=listeners)
    names = [source.source for source in sources]
    assert sinks[0].written == sinks[1].written == names
    assert [result.entry.source for result in heard] == names
    assert [result.outputs for result in heard] == [{"labels": f"labels/{name}"} for name in names]
    assert [sink.closed for sink in sinks] == [1, 1]
    assert (summary.done, summary.failed, summary.skipped, summary.frames) == (5, 0, 0, 5)
    assert not summary.failures
    assert not summary.interrupted
    assert [progress.done for progress in seen] == [0, 1, 2, 3, 4, 5]
    assert {progress.total for progress in seen} == {5}
    found = [(total.class_id, total.name, total.pixels, total.pictures) for total in summary.areas]
    assert found == [
        (0, "dark", 48, 2),
        (1, "light", 48, 2),
        (UNLABELLED_CLASS_ID, "unlabelled", 24, 1),
    ]
    assert sum(total.fraction for total in summary.areas) == pytest.approx(1)
    seconds = summary.seconds
    assert 0 < seconds.read + seconds.model + seconds.write <= seconds.total
    assert summary.frames_per_second == pytest.approx(5 / seconds.total)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_damaged_file_is_named_and_the_rest_goes_on(tmp_path: Path, batch_size: int) -> None:
    sources = pictures(tmp_path, [10, 20, 30])
    assert sources[1].path is not None
    sources[1].path.write_bytes(b"\x89PNG\r\n")
    sink = Recorder()
    listed = Failure("gone.png", "no such file")
    heard: list[Failure] = []
    plan = Plan(failures=[listed], batch_size=batch_size)
    listeners = Listeners(failure=heard.append)
    summary = run(by_brightness, NAMES, sources, [sink], plan, listeners=listeners)
    assert sink.written == ["0.png", "2.png"]
    assert (summary.done, summary.failed, summary.skipped) == (2, 2, 0)
    assert summary.failures[0] == listed
    assert summary.failures[1].source == "1.png"
    assert "1.png" in summary.failures[1].message
    assert tuple(heard) == summary.failures


@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("too thin for this model"), "too thin for this model"),
        (RuntimeError("shapes\ndo not fit"), "unexpected RuntimeError (shapes do not fit)"),
        (MemoryError(), "not enough memory for this picture"),
    ],
)
def test_a_picture_that_the_model_refuses_is_lost_alone(
    tmp_path: Path, batch_size: int, error: Exception, message: str
) -> None:
    def refuse_white(images: Sequence[ImageArray], /) -> list[Segmentation]:
        if any(image[0, 0, 0] == 255 for image in images):
            raise error
        return by_brightness(images)

    sink = Recorder()
    sources = pictures(tmp_path, [10, 20, 255, 30])
    summary = run(refuse_white, NAMES, sources, [sink], Plan(batch_size=batch_size))
    assert sink.written == ["0.png", "1.png", "3.png"]
    assert [failure.source for failure in summary.failures] == ["2.png"]
    assert summary.failures[0].message.startswith(message)
    assert "\n" not in summary.failures[0].message


def test_batches_too_large_for_the_memory_are_halved(tmp_path: Path) -> None:
    sizes: list[int] = []

    def small_memory(images: Sequence[ImageArray], /) -> list[Segmentation]:
        sizes.append(len(images))
        if len(images) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return by_brightness(images)

    summary = run(small_memory, NAMES, pictures(tmp_path, [10] * 8), [], Plan(batch_size=4))
    assert sizes == [4, 2, 2, 2, 2]
    assert (summary.done, summary.failed) == (8, 0)
    assert [warning.message for warning in summary.warnings] == [
        "4 pictures at once need too much memory; 2 from now on"
    ]


@pytest.mark.parametrize("where", ["render", "commit"])
def test_a_picture_that_cannot_be_written_is_lost_alone(tmp_path: Path, where: str) -> None:
    refused = {"refuse" if where == "render" else "refuse_commit": "1.png"}
    first, second, third = Recorder(), Recorder(**refused), Recorder()  # type: ignore[arg-type]
    journal = Journal(tmp_path / "out")
    sinks, plan = [first, second, third], Plan(journal=journal)
    summary = run(by_brightness, NAMES, pictures(tmp_path, [1, 2, 3]), sinks, plan)
    assert third.written == ["0.png", "2.png"]
    assert (summary.done, summary.failed) == (2, 1)
    text = "the disk is full" if where == "render" else "no room"
    assert summary.failures == (Failure("1.png", text),)
    assert sum(total.pixels for total in summary.areas) == 2 * 24
    assert [entry.source for entry in journal.entries()] == ["0.png", "2.png"]
    journal.close()


def test_a_run_that_can_write_nothing_ends(tmp_path: Path) -> None:
    sources = pictures(tmp_path, [1] * (WRITE_FAILURES_IN_A_ROW + 50))
    summary = run(by_brightness, NAMES, sources, [Recorder(refuse="everything")])
    assert summary.done == 0
    assert summary.interrupted
    assert WRITE_FAILURES_IN_A_ROW <= summary.failed < WRITE_FAILURES_IN_A_ROW + 10
    assert summary.skipped == len(sources) - summary.failed
    ended = [failure for failure in summary.failures if failure.source == OUTPUT_FILES]
    assert len(ended) == 1
    assert "in a row could not be written" in ended[0].message


def test_a_sink_that_cannot_be_closed_is_a_failure_of_no_picture(tmp_path: Path) -> None:
    sinks = [Recorder(refuse_close=True), Recorder()]
    summary = run(by_brightness, NAMES, pictures(tmp_path, [1]), sinks)
    assert [sink.closed for sink in sinks] == [1, 1]
    assert (summary.done, summary.failed) == (1, 0)
    assert summary.failures == (Failure(OUTPUT_FILES, "cannot complete it"),)


def test_what_was_assumed_while_reading_is_kept(tmp_path: Path) -> None:
    Image.new("RGBA", (3, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    source = SourceFile(tmp_path / "clear.png", "clear.png")
    summary = run(by_brightness, NAMES, [source], [])
    assert [(w.source, w.message) for w in summary.warnings] == [
        ("clear.png", "transparent pixels shown on white")
    ]


@pytest.mark.parametrize("how", ["signal", "event"])
@pytest.mark.parametrize("moment", ["model", "writing", "progress"])
def test_a_stop_lets_the_batch_in_hand_be_finished(tmp_path: Path, how: str, moment: str) -> None:
    stop = threading.Event()

    def ask() -> None:
        if how == "event":
            stop.set()
        else:
            os.kill(os.getpid(), signal.SIGINT)

    class Asking(Recorder):
        def commit(self, frame: Frame, rendered: Rendered) -> None:
            if moment == "writing" and frame.source == "4.png":
                ask()
            super().commit(frame, rendered)

    def model(images: Sequence[ImageArray], /) -> list[Segmentation]:
        if moment == "model" and images[0][0, 0, 0] == 5:
            ask()
        return by_brightness(images)

    def progress(progress: Progress) -> None:
        if moment == "progress" and progress.done == 5:
            ask()

    sinks = [Asking(), Recorder()]
    sources = pictures(tmp_path, list(range(1, 61)))
    journal = Journal(tmp_path / "out")
    plan = Plan(batch_size=2, journal=journal)
    listeners = Listeners(progress=progress)
    summary = run(model, NAMES, sources, sinks, plan, listeners=listeners, stop=stop)
    assert summary.interrupted
    assert 5 <= summary.done < 60
    assert summary.done % 2 == 0  # whole batches
    assert summary.skipped == 60 - summary.done
    assert [len(sink.written) for sink in sinks] == [summary.done] * 2
    assert [sink.closed for sink in sinks] == [1, 1]
    assert len(list(journal.entries())) == summary.done
    assert sum(total.pixels for total in summary.areas) == summary.done * 24
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    journal.close()


def test_a_stop_when_everything_is_done_is_no_interruption(tmp_path: Path) -> None:
    stop = threading.Event()
    listeners = Listeners(result=lambda result: stop.set())
    summary = run(by_brightness, NAMES, pictures(tmp_path, [1]), [], listeners=listeners, stop=stop)
    assert not summary.interrupted


def test_what_an_earlier_run_did_is_counted_and_not_done_again(tmp_path: Path) -> None:
    sources = pictures(tmp_path, [10, 200, 30])
    journal = Journal(tmp_path / "out")
    sink = Recorder()
    first = run(by_brightness, NAMES, sources[:2], [sink], Plan(journal=journal))
    assert first.frames == 2
    plan = Plan(journal=journal, earlier=Earlier(frozenset({"0.png", "1.png"})))
    seen: list[Progress] = []
    second = run(
        by_brightness, NAMES, sources, [sink], plan, listeners=Listeners(progress=seen.append)
    )
    assert sink.written == ["0.png", "1.png", "2.png"]
    assert (second.done, second.frames, second.earlier) == (3, 3, 2)
    assert [(total.name, total.pictures) for total in second.areas] == [("dark", 2), ("light", 1)]
    assert (seen[0].done, seen[0].earlier, seen[0].frames) == (2, 2, 0)
    entries = [entry for entry in journal.entries() if isinstance(entry, FrameEntry)]
    assert [entry.source for entry in entries] == ["0.png", "1.png", "2.png"]
    assert [entry.stamp for entry in entries] == [Stamp.of(source.path) for source in sources]
    journal.close()


def test_a_folder_removed_meanwhile_ends_the_run(tmp_path: Path) -> None:
    sources = pictures(tmp_path, [1] * 60)
    journal = Journal(tmp_path / "out")

    def remove_at_third(result: FrameResult) -> None:
        if result.entry.source == "2.png":
            (tmp_path / "out").rename(tmp_path / "gone")

    listeners = Listeners(result=remove_at_third)
    summary = run(by_brightness, NAMES, sources, [], Plan(journal=journal), listeners=listeners)
    assert summary.done == 3
    assert summary.interrupted
    assert "journal" in summary.failures[0].message
    assert len((tmp_path / "gone/.errseg/journal.jsonl").read_bytes().splitlines()) == 3
    journal.close()


def test_sinks_are_closed_whatever_happens(tmp_path: Path) -> None:
    def broken_display(progress: Progress) -> None:
        if progress.done == 1:
            raise RuntimeError("display gone")

    sink = Recorder()
    sources = pictures(tmp_path, [1, 2])
    listeners = Listeners(progress=broken_display)
    with pytest.raises(RuntimeError, match="display gone"):
        run(by_brightness, NAMES, sources, [sink], listeners=listeners)
    assert sink.written == ["0.png"]
    assert sink.closed == 1


def test_no_picture_at_all() -> None:
    summary = run(by_brightness, NAMES, [], [Recorder()], Plan(failures=[Failure("a", "gone")]))
    assert (summary.done, summary.failed, summary.skipped, summary.areas) == (0, 1, 0, ())
    with pytest.raises(UsageError):
        run(by_brightness, NAMES, [], [], Plan(batch_size=0))
