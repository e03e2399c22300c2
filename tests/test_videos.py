"""Videos read: times, turns, colours, sampling, and files that are broken."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import make_clip, scene

from errseg.errors import InputError
from errseg.read_options import ReadOptions
from errseg.records import EndOfVideo, Frame
from errseg.videos import read_video

EVERYTHING = ReadOptions()


def read(
    path: Path, options: ReadOptions = EVERYTHING, first_index: int = 0
) -> tuple[list[Frame], EndOfVideo]:
    *frames, end = read_video(path, "clip", options, first_index=first_index)
    assert isinstance(end, EndOfVideo)
    assert all(isinstance(frame, Frame) for frame in frames)
    return frames, end  # type: ignore[return-value]


def times(frames: list[Frame]) -> list[float]:
    return [round(frame.time_s, 4) for frame in frames]


# Times and pixels


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "mov", "avi"])
def test_frames_come_in_order_with_their_times(tmp_path: Path, suffix: str) -> None:
    codec = "mpeg4" if suffix == "avi" else "libx264"
    frames, end = read(make_clip(tmp_path / f"a.{suffix}", 12, codec=codec))
    assert end == EndOfVideo("clip")
    assert times(frames) == pytest.approx([i / 10 for i in range(12)], abs=0.001)
    assert [frame.index for frame in frames] == list(range(12))
    for index, frame in enumerate(frames):
        assert frame.image.shape == (48, 64, 3)
        assert frame.image.dtype == np.uint8
        assert frame.video is not None
        assert float(frame.pts * frame.video.time_base) == pytest.approx(frame.time_s)
        difference = np.abs(frame.image.astype(int) - scene(index, (48, 64)))
        assert difference[:8, :12].max() <= 16
        assert difference[20:, 24:].max() <= 6


def test_b_frames_come_in_the_order_in_which_they_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "b.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "3", "b-adapt": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(20):
            frame = av.VideoFrame.from_ndarray(scene(index, (48, 64)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames, end = read(path)
    assert not end.failure
    assert times(frames) == [i / 10 for i in range(20)]
    greys = [int(frame.image[40, 50, 0]) for frame in frames]
    assert greys == sorted(greys)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_variable_rate_is_kept(tmp_path: Path, suffix: str) -> None:
    stamps = [0, 0.1, 0.15, 0.4, 0.41, 0.9, 1.0, 1.5]
    frames, end = read(make_clip(tmp_path / f"v.{suffix}", 8, times=stamps))
    assert times(frames) == pytest.approx(stamps, abs=0.001)
    assert not end.failure


def test_times_count_from_the_first_frame(tmp_path: Path) -> None:
    stamps = [5 + i / 10 for i in range(6)]
    frames, end = read(make_clip(tmp_path / "late.mkv", 6, times=stamps))
    assert times(frames) == pytest.approx([i / 10 for i in range(6)])
    assert not end.failure


def test_recordings_joined_end_to_end_go_on_where_time_stamps_begin_anew(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "joined.ts", 10)
    clip.write_bytes(clip.read_bytes() * 3)
    frames, _ = read(clip)
    assert times(frames) == pytest.approx([i / 10 for i in range(30)])


def test_the_cover_is_not_the_video(tmp_path: Path) -> None:
    path = tmp_path / "cover.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for stream, count in ((cover, 1), (video, 5)):
            for index in range(count):
                image = scene(index, (stream.height, stream.width))
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 2
    frames, end = read(path)
    assert [frame.image.shape for frame in frames] == [(48, 64, 3)] * 5
    assert not end.failure


def test_pixels_that_are_not_square_are_told_once_wherever_it_starts(tmp_path: Path) -> None:
    path = tmp_path / "wide.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for index in range(8):
            frame = av.VideoFrame.from_ndarray(scene(index, (48, 64)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for options in (EVERYTHING, ReadOptions(start_s=0.5)):
        first, *others = read(path, options)[0]
        assert first.image.shape == (48, 64, 3)
        assert first.warnings == ("pixels are not square (4/3), shown as stored",)
        assert not any(frame.warnings for frame in others)


@pytest.mark.parametrize(
    ("turned", "corner"), [(0, (0, 0)), (90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))]
)
def test_pictures_are_turned_as_the_file_says(
    tmp_path: Path, turned: int, corner: tuple[int, int]
) -> None:
    frames, _ = read(make_clip(tmp_path / "t.mp4", 3, turned=turned))
    image = frames[0].image
    assert image.shape == ((64, 48, 3) if turned in (90, 270) else (48, 64, 3))
    red = image[corner]
    assert red[0] > 180
    assert red[1] < 60
    others = {(0, 0), (0, -1), (-1, -1), (-1, 0)} - {corner}
    assert all(image[other].max() < 60 for other in others)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "size"),
    [
        ("ffv1", "bgr0", (47, 63)),
        ("ffv1", "gray", (31, 17)),
        ("ffv1", "yuv420p10le", (48, 64)),
        ("ffv1", "yuva420p", (48, 64)),
        ("mjpeg", "yuvj420p", (48, 64)),
    ],
)
def test_any_pixels_are_read(
    tmp_path: Path, codec: str, pix_fmt: str, size: tuple[int, int]
) -> None:
    frames, end = read(make_clip(tmp_path / "p.mkv", 3, size, codec=codec, pix_fmt=pix_fmt))
    assert not end.failure
    assert [frame.image.shape for frame in frames] == [(*size, 3)] * 3
    assert frames[0].image[-2, -2].astype(int) == pytest.approx([40, 40, 40], abs=5)


# Sampling


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (ReadOptions(every=5), [0, 5, 10, 15]),
        (ReadOptions(fps=5), [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]),
        (ReadOptions(fps=3), [0, 4, 7, 10, 14, 17]),
        (ReadOptions(fps=0.7), [0, 15]),
        (ReadOptions(fps=1000), list(range(20))),
        (ReadOptions(start_s=0.35, end_s=0.8), [4, 5, 6, 7]),
        (ReadOptions(end_s=0.05), [0]),
        (ReadOptions(start_s=1.0, every=4), [12, 16]),
        (ReadOptions(start_s=0.45, fps=2), [5, 10, 15]),
    ],
)
def test_frames_are_sampled(tmp_path: Path, options: ReadOptions, expected: list[int]) -> None:
    clip = make_clip(tmp_path / "s.mp4", 20)
    frames, end = read(clip, options)
    assert [frame.index for frame in frames] == expected
    assert not end.failure
    # a run that goes on later takes exactly the rest
    for later in range(0, 20, 3):
        rest, _ = read(clip, options, later)
        assert [frame.index for frame in rest] == [i for i in expected if i >= later]


def test_a_start_past_the_end_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends after 0\.4 s.*earlier --start"):
        read(make_clip(tmp_path / "s.mp4", 5), ReadOptions(start_s=7))


def test_a_part_between_two_frames_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no frame in that time; choose a later --end"):
        read(make_clip(tmp_path / "s.mp4", 5), ReadOptions(start_s=0.11, end_s=0.19))


# Files that are broken


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_file_cut_short_gives_what_it_holds(tmp_path: Path, suffix: str, share: float) -> None:
    options = {"movflags": "faststart"} if suffix == "mp4" else {}
    codec = {"codec": "mjpeg", "pix_fmt": "yuvj420p"}
    clip = make_clip(tmp_path / f"c.{suffix}", 60, (96, 128), options=options, **codec)  # type: ignore[arg-type]
    data = clip.read_bytes()
    clip.write_bytes(data[: int(len(data) * share)])
    frames, end = read(clip)
    assert 3 < len(frames) < 60
    assert times(frames) == [i / 10 for i in range(len(frames))]
    assert (
        f"cut short after {frames[-1].time_s:.1f} s of 6.0 s ({len(frames)} frames)" in end.failure
    )
    assert "\n" not in end.failure


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_transport_stream_cut_short_is_told(tmp_path: Path, share: float) -> None:
    clip = make_clip(tmp_path / "c.ts", 60)
    assert not read(clip)[1].failure
    data = clip.read_bytes()
    at = int(len(data) * share) // 188 * 188 + 77
    clip.write_bytes(data[:at])
    frames, end = read(clip)
    assert 3 < len(frames) < 60
    assert f"cut short after {frames[-1].time_s:.1f} s ({len(frames)} frames)" in end.failure


def test_a_recording_that_begins_between_key_frames_is_no_failure(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "c.ts", 60, gop=20)
    data = clip.read_bytes()
    clip.write_bytes(data[188 * 20 :])
    frames, end = read(clip)
    assert 20 <= len(frames) < 60
    assert not end.failure


def test_a_part_of_it_is_not_cut_short(tmp_path: Path) -> None:
    _, end = read(make_clip(tmp_path / "c.mp4", 60), ReadOptions(end_s=2))
    assert not end.failure


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_broken_frames_are_counted_and_left_out(tmp_path: Path, suffix: str) -> None:
    clip = make_clip(tmp_path / f"b.{suffix}", 60, (96, 128), codec="mpeg2video", rate=25)
    data = bytearray(clip.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1500] = np.random.default_rng(0).bytes(1500)
    clip.write_bytes(data)
    frames, end = read(clip)
    assert 30 < len(frames) <= 60
    assert len(frames) == 60 or "missing" in end.failure or "cut short" in end.failure


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_broken_frame_costs_itself_alone(tmp_path: Path, codec: str) -> None:
    clip = make_clip(tmp_path / "b.mkv", 30, codec=codec, gop=1)
    with av.open(str(clip)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    data = clip.read_bytes()
    assert data.count(packets[12]) == 1
    clip.write_bytes(data.replace(packets[12], packets[12][:4].ljust(len(packets[12]), b"\0")))
    frames, end = read(clip)
    assert times(frames) == [i / 10 for i in range(30) if i != 12]
    assert "1 broken frame is missing" in end.failure


def test_frames_that_grow_too_large_are_left_out(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "grows.ts", 10)
    larger = make_clip(tmp_path / "larger.ts", 10, (96, 128))
    clip.write_bytes(clip.read_bytes() + larger.read_bytes())
    assert {frame.image.shape for frame in read(clip)[0]} == {(48, 64, 3), (96, 128, 3)}
    frames, end = read(clip, ReadOptions(max_pixels=96 * 128 - 1))
    assert {frame.image.shape for frame in frames} == {(48, 64, 3)}
    assert "broken frames are missing" in end.failure


@pytest.mark.parametrize(
    "text", ["ffconcat version 1.0\nfile other.ts\n", "#EXTM3U\n#EXTINF:1,\nother.ts\n"]
)
def test_a_playlist_opens_no_other_file(tmp_path: Path, text: str) -> None:
    make_clip(tmp_path / "other.ts", 3)
    (tmp_path / "list.mp4").write_text(text)
    with pytest.raises(InputError, match="no video"):
        read(tmp_path / "list.mp4")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty file"), (b"dear diary" * 500, "no video"), (b"\0" * 5000, "no video")],
)
def test_what_is_no_video_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="no video in it"):
        read(path)


def test_frames_too_large_are_refused_before_decoding(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "l.mp4", 3)
    with pytest.raises(InputError, match="3072 pixels, expected at most 3071"):
        read(clip, ReadOptions(max_pixels=3071))
    assert len(read(clip, ReadOptions(max_pixels=3072))[0]) == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.mp4.*No such file"):
        read(tmp_path / "gone.mp4")


@pytest.mark.parametrize(
    "name", ["%d.mp4", "concat:a.mp4", "new\nline.mp4", "not utf-8 \udcff.mp4", "http:a.mp4"]
)
def test_names_are_only_names(tmp_path: Path, name: str) -> None:
    make_clip(tmp_path / "a.mp4", 3).rename(tmp_path / name)
    assert len(read(tmp_path / name)[0]) == 3


def test_closing_early_closes_the_file(tmp_path: Path) -> None:
    frames = read_video(make_clip(tmp_path / "a.mp4", 9), "clip", EVERYTHING)
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert list(frames) == []
