"""How files become frames, one after the other."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from clips import make_clip
from PIL import Image

from errseg.read_options import ReadOptions
from errseg.reading import read_frames
from errseg.records import EndOfVideo, Failure, Frame
from errseg.sources import (
    SourceFile,
    find_sources,
)


def test_read_frames_in_order_with_failures_between(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), (1, 2, 3)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("not a picture")
    Image.new("RGBA", (2, 5), (0, 0, 0, 0)).save(tmp_path / "c.png")
    Image.new("RGB", (100, 100)).save(tmp_path / "d.png")
    sources, _ = find_sources([str(tmp_path)])

    first, second, third, fourth = read_frames(sources, ReadOptions(max_pixels=9_999))

    assert isinstance(first, Frame)
    assert (first.source, first.path, first.index, first.time_s) == (
        "a.png",
        tmp_path / "a.png",
        0,
        0.0,
    )
    np.testing.assert_array_equal(first.image, np.full((3, 4, 3), (1, 2, 3)))
    assert isinstance(second, Failure)
    assert second.source == "b.png"
    assert "not a picture" in second.message
    assert isinstance(third, Frame)
    assert third.warnings == ("transparent pixels shown on white",)
    assert isinstance(fourth, Failure)
    assert "expected at most 9999" in fourth.message


def test_read_frames_is_lazy(tmp_path: Path) -> None:
    path = tmp_path / "later.png"
    results = read_frames([SourceFile(path, "later.png")])
    Image.new("RGB", (1, 1)).save(path)
    assert isinstance(next(results), Frame)
    path.unlink()
    assert list(results) == []


def test_file_removed_after_it_was_found(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (1, 1)).save(tmp_path / name)
    sources, _ = find_sources([str(tmp_path)])
    (tmp_path / "a.png").unlink()
    assert [type(result) for result in read_frames(sources)] == [Failure, Frame]


# Lists, pipes, shards, videos


def test_videos_are_found_and_read_to_their_end(tmp_path: Path) -> None:
    make_clip(tmp_path / "b.MP4", frames=3)
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    (tmp_path / "c.mkv").write_text("no video")
    sources, _ = find_sources([str(tmp_path)])
    assert [(s.source, s.is_video, s.is_picture) for s in sources] == [
        ("a.png", False, True),
        ("b.MP4", True, False),
        ("c.mkv", True, False),
    ]
    results = list(read_frames(sources))
    assert [type(result) for result in results] == [Frame] * 4 + [EndOfVideo, Failure]
    later = read_frames(sources[1:2], ReadOptions(every=2), first_index=lambda source: 1)
    assert [r.index for r in later if isinstance(r, Frame)] == [2]


def test_a_file_that_may_be_either_is_tried(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4", frames=2).rename(tmp_path / "clip")
    Image.new("RGB", (1, 1)).save(tmp_path / "picture.png")
    (tmp_path / "picture.png").rename(tmp_path / "picture")
    (tmp_path / "text").write_text("neither")
    sources, _ = find_sources([str(tmp_path / name) for name in ("clip", "picture", "text")])
    results = list(read_frames(sources))
    assert [type(result) for result in results] == [Frame, Frame, EndOfVideo, Frame, Failure]
    assert isinstance(results[-1], Failure)
    assert "not a picture" in results[-1].message


@pytest.mark.parametrize("name", ["a.png", "a.mp4", "a"])
def test_a_named_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    sources, _ = find_sources([str(tmp_path / name)])
    (failure,) = read_frames(sources)
    assert isinstance(failure, Failure)
    assert "send" in failure.message
    assert "pipe:" in failure.message


class Pipe(io.RawIOBase):
    """Standard input as a pipe is: forwards only."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._data.read(size)

    def seek(self, *arguments: int) -> int:
        raise OSError("a pipe")


def piped(data: bytes) -> list[Frame | EndOfVideo | Failure]:
    sources, failures = find_sources(["pipe:"])
    assert (sources, failures) == ([SourceFile(None, "stdin")], [])
    return list(read_frames(sources, stdin=Pipe(data)))  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "gif", "bmp", "ppm"])
def test_a_picture_from_standard_input(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (5, 4), (200, 100, 50)).save(path)
    (frame,) = piped(path.read_bytes())
    assert isinstance(frame, Frame)
    assert (frame.source, frame.path, frame.image.shape) == ("stdin", None, (4, 5, 3))


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_a_video_from_standard_input(tmp_path: Path, suffix: str) -> None:
    data = make_clip(tmp_path / f"a.{suffix}", frames=9).read_bytes()
    results = piped(data)
    assert [type(result) for result in results] == [Frame] * 9 + [EndOfVideo]
    assert results[-1] == EndOfVideo("stdin")


def test_a_stream_cut_short_on_standard_input(tmp_path: Path) -> None:
    data = make_clip(tmp_path / "a.ts", frames=40).read_bytes()
    *frames, end = piped(data[: len(data) * 6 // 10])
    assert 10 < len(frames) < 40
    assert isinstance(end, EndOfVideo)
    assert end.failure.startswith("standard input: cut short after")


def test_an_mp4_with_its_index_in_front_from_standard_input(tmp_path: Path) -> None:
    front = make_clip(tmp_path / "a.mp4", options={"movflags": "faststart"}).read_bytes()
    assert len(piped(front)) == 13
    # longer than what FFmpeg holds in its buffer
    long = make_clip(tmp_path / "b.mp4", 80, (240, 320), codec="mjpeg", pix_fmt="yuvj420p")
    back = long.read_bytes()
    assert len(back) > 100_000
    (failure,) = piped(back)
    assert isinstance(failure, Failure)
    assert "faststart" in failure.message


@pytest.mark.parametrize(("data", "message"), [(b"", "it is empty"), (b"text" * 99, "neither")])
def test_nothing_of_use_on_standard_input(data: bytes, message: str) -> None:
    (failure,) = piped(data)
    assert isinstance(failure, Failure)
    assert message in failure.message
