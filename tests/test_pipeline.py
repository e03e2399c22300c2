from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from errseg.errors import InputError, UsageError, WriteError
from errseg.pipeline import OUTPUT_FILES, run
from errseg.records import (
    UNLABELLED,
    UNLABELLED_CLASS_ID,
    Failure,
    Frame,
    ImageArray,
    Segmentation,
)
from errseg.sources import SourceFile
from errseg.summary import Progress

NAMES = ("dark", "light")


def by_brightness(images: Sequence[ImageArray]) -> list[Segmentation]:
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


class Recorder:
    """A sink that remembers, and refuses what it is told to."""

    def __init__(self, refuse: str = "", refuse_close: bool = False) -> None:
        self.refuse, self.refuse_close = refuse, refuse_close
        self.written: list[str] = []
        self.closed = 0

    def write(self, frame: Frame, segmentation: Segmentation) -> None:
        assert segmentation.labels.shape == frame.image.shape[:2]
        if frame.source == self.refuse:
            raise WriteError("the disk is full")
        self.written.append(frame.source)

    def close(self) -> None:
        self.closed += 1
        if self.refuse_close:
            raise WriteError("cannot complete it")


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_every_picture_reaches_every_sink_in_order(tmp_path: Path, batch_size: int) -> None:
    sources = pictures(tmp_path, [10, 200, 0, 90, 255])
    sinks = [Recorder(), Recorder()]
    seen: list[Progress] = []
    summary = run(
        by_brightness, NAMES, sources, sinks, batch_size=batch_size, on_progress=seen.append
    )
    assert sinks[0].written == sinks[1].written == [source.source for source in sources]
    assert [sink.closed for sink in sinks] == [1, 1]
    assert (summary.done, summary.failed, summary.skipped) == (5, 0, 0)
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
    assert summary.pictures_per_second == pytest.approx(5 / seconds.total)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_damaged_file_is_named_and_the_rest_goes_on(tmp_path: Path, batch_size: int) -> None:
    sources = pictures(tmp_path, [10, 20, 30])
    sources[1].path.write_bytes(b"\x89PNG\r\n")
    sink = Recorder()
    listed = Failure("gone.png", "no such file")
    summary = run(by_brightness, NAMES, sources, [sink], failures=[listed], batch_size=batch_size)
    assert sink.written == ["0.png", "2.png"]
    assert (summary.done, summary.failed, summary.skipped) == (2, 2, 0)
    assert summary.failures[0] == listed
    assert summary.failures[1].source == "1.png"
    assert "1.png" in summary.failures[1].message


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
    def refuse_white(images: Sequence[ImageArray]) -> list[Segmentation]:
        if any(image[0, 0, 0] == 255 for image in images):
            raise error
        return by_brightness(images)

    sink = Recorder()
    sources = pictures(tmp_path, [10, 20, 255, 30])
    summary = run(refuse_white, NAMES, sources, [sink], batch_size=batch_size)
    assert sink.written == ["0.png", "1.png", "3.png"]
    assert [failure.source for failure in summary.failures] == ["2.png"]
    assert summary.failures[0].message.startswith(message)
    assert "\n" not in summary.failures[0].message


def test_batches_too_large_for_the_memory_go_one_by_one(tmp_path: Path) -> None:
    sizes: list[int] = []

    def small_memory(images: Sequence[ImageArray]) -> list[Segmentation]:
        sizes.append(len(images))
        if len(images) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return by_brightness(images)

    summary = run(small_memory, NAMES, pictures(tmp_path, [10] * 5), [], batch_size=2)
    assert sizes == [2, 1, 1, 1, 1, 1]
    assert (summary.done, summary.failed) == (5, 0)
    assert [warning.message for warning in summary.warnings] == [
        "2 pictures at once need too much memory; one by one now"
    ]


def test_a_picture_that_cannot_be_written_is_not_shown_to_later_sinks(tmp_path: Path) -> None:
    first, second, third = Recorder(), Recorder(refuse="1.png"), Recorder()
    summary = run(by_brightness, NAMES, pictures(tmp_path, [1, 2, 3]), [first, second, third])
    assert third.written == ["0.png", "2.png"]
    assert (summary.done, summary.failed) == (2, 1)
    assert summary.failures == (Failure("1.png", "the disk is full"),)
    assert sum(total.pixels for total in summary.areas) == 2 * 24


def test_a_sink_that_cannot_be_completed_is_a_failure_of_no_picture(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("moment", "done"), [("reading", 2), ("model", 2), ("writing", 3), ("closing", 5)]
)
def test_an_interruption_leaves_whole_pictures(tmp_path: Path, moment: str, done: int) -> None:
    """Ctrl-C at the third picture: while it is written, it is finished first."""

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    class Interrupted(Recorder):
        def write(self, frame: Frame, segmentation: Segmentation) -> None:
            if moment == "writing" and frame.source == "2.png":
                interrupt()
            super().write(frame, segmentation)

        def close(self) -> None:
            if moment == "closing":
                interrupt()
            super().close()

    def model(images: Sequence[ImageArray]) -> list[Segmentation]:
        if moment == "model" and images[0][0, 0, 0] == 3:
            interrupt()
        return by_brightness(images)

    def on_progress(progress: Progress) -> None:
        if moment == "reading" and progress.done == 2:
            interrupt()

    sinks = [Interrupted(), Recorder()]
    sources = pictures(tmp_path, [1, 2, 3, 4, 5])
    summary = run(model, NAMES, sources, sinks, on_progress=on_progress)
    assert summary.interrupted
    assert (summary.done, summary.failed, summary.skipped) == (done, 0, 5 - done)
    assert [len(sink.written) for sink in sinks] == [done, done]
    assert [sink.closed for sink in sinks] == [1, 1]
    assert sum(total.pixels for total in summary.areas) == done * 24
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sinks_are_closed_whatever_happens(tmp_path: Path) -> None:
    def broken_display(progress: Progress) -> None:
        if progress.done == 1:
            raise RuntimeError("display gone")

    sink = Recorder()
    sources = pictures(tmp_path, [1, 2])
    with pytest.raises(RuntimeError, match="display gone"):
        run(by_brightness, NAMES, sources, [sink], on_progress=broken_display)
    assert sink.written == ["0.png"]
    assert sink.closed == 1


def test_no_picture_at_all(tmp_path: Path) -> None:
    summary = run(by_brightness, NAMES, [], [Recorder()], failures=[Failure("a", "gone")])
    assert (summary.done, summary.failed, summary.skipped, summary.areas) == (0, 1, 0, ())
    with pytest.raises(UsageError):
        run(by_brightness, NAMES, [], [], batch_size=0)
