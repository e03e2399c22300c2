from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from errseg.errors import UsageError, WriteError
from errseg.sound import SoundTrack
from errseg.video_codecs import CODECS
from errseg.video_writer import VideoSegments

TIME_BASE = Fraction(1, 12800)
FRAME_S = Fraction(1, 25)
SEGMENT = 4
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def flat(colour: Sequence[int], size: tuple[int, int] = (48, 64)) -> np.ndarray[Any, Any]:
    return np.full((*size, 3), colour, np.uint8)


def pictures(count: int, size: tuple[int, int] = (47, 63)) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


def label_maps(count: int, dtype: type, size: tuple[int, int] = (47, 63)) -> list[Any]:
    rng = np.random.default_rng(0)
    top = np.iinfo(dtype).max
    return [rng.integers(0, top, size, dtype=dtype, endpoint=True) for _ in range(count)]


def uneven(count: int) -> list[int]:
    return [0, *np.cumsum(np.random.default_rng(1).integers(1, 2000, count - 1)).tolist()]


def write(
    video: VideoSegments, frames: Sequence[Any], times: Sequence[int], first: int = 0
) -> None:
    """Appends frames from `first` on, a segment being SEGMENT frames."""
    for index in range(first, len(frames)):
        if index % SEGMENT == 0:
            video.end_segment()
        video.append(frames[index], times[index])


def read(path: Path) -> list[tuple[Fraction, Any]]:
    """Times in seconds and pictures: RGB, or labels as they are."""
    with av.open(str(path)) as container:
        return [
            (
                frame.pts * frame.time_base,
                frame.to_ndarray(format="rgb24" if frame.format.name == "yuv420p" else None),
            )
            for frame in container.decode(video=0)
        ]


def boxes(path: Path) -> list[bytes]:
    """The outermost boxes of an mp4, in order."""
    data, kinds, at = path.read_bytes(), [], 0
    while at < len(data):
        kinds.append(data[at + 4 : at + 8])
        at += int.from_bytes(data[at : at + 4])
    return kinds


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """What the kernel then says to a writer is as on a full disk, but for the number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Frames


@pytest.mark.parametrize(
    "time_base",
    [Fraction(1, 90000), Fraction(1, 1000), Fraction(1001, 30000), Fraction(1), Fraction(1, 10**6)],
    ids=str,
)
def test_frame_times_come_back_exactly(tmp_path: Path, time_base: Fraction) -> None:
    times = uneven(10)
    video = VideoSegments(tmp_path / "work", "h264", time_base, None)
    write(video, pictures(10), [50 + time for time in times])
    assert video.join(tmp_path / "a.mp4") == ()
    assert [time for time, _ in read(tmp_path / "a.mp4")] == [time * time_base for time in times]


def test_the_last_frame_stays_as_long_as_frames_usually_do(tmp_path: Path) -> None:
    video = VideoSegments(tmp_path / "work", "h264", TIME_BASE, None)
    write(video, pictures(5), [0, 512, 1024, 5000, 5512])
    video.join(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.duration * stream.time_base == 6024 * TIME_BASE


@pytest.mark.parametrize(
    ("rate", "seconds"), [(None, Fraction(1, 25)), (Fraction(8), Fraction(1, 8))]
)
def test_an_only_frame_stays_as_long_as_the_rate_says(
    tmp_path: Path, rate: Fraction | None, seconds: Fraction
) -> None:
    video = VideoSegments(tmp_path / "work", "h264", TIME_BASE, rate)
    video.append(flat(BLACK), 7)
    video.join(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.duration * stream.time_base == seconds


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(47, 63), (1, 1), (1, 300)])
def test_label_maps_come_back_bit_for_bit(
    tmp_path: Path, dtype: type, size: tuple[int, int]
) -> None:
    labels = label_maps(9, dtype, size)
    video = VideoSegments(tmp_path / "work", "ffv1", TIME_BASE, None)
    write(video, [np.asfortranarray(label_map) for label_map in labels], range(0, 9 * 512, 512))
    video.join(tmp_path / "a.mkv")
    back = read(tmp_path / "a.mkv")
    assert len(back) == 9
    for index, (time, label_map) in enumerate(back):
        assert abs(time - index * FRAME_S) <= Fraction(1, 1000)
        assert label_map.dtype == dtype
        np.testing.assert_array_equal(label_map, labels[index])


@pytest.mark.parametrize("size", [(48, 64), (719, 33)])
def test_colours_come_back(tmp_path: Path, size: tuple[int, int]) -> None:
    colours = [WHITE, BLACK, (255, 0, 0), (0, 255, 0), (0, 0, 255), (17, 230, 120), (128, 64, 200)]
    video = VideoSegments(tmp_path / "work", "h264", TIME_BASE, None)
    write(video, [flat(colour, size) for colour in colours], range(0, 7000, 1000))
    video.join(tmp_path / "a.mp4")
    for (_, picture), colour in zip(read(tmp_path / "a.mp4"), colours, strict=True):
        assert np.abs(picture.astype(int) - colour).max() <= 4, colour


def test_players_get_what_they_need(tmp_path: Path) -> None:
    video = VideoSegments(tmp_path / "work", "h264", TIME_BASE, None)
    write(video, pictures(6), range(0, 3072, 512))
    video.join(tmp_path / "a.mp4")
    kinds = boxes(tmp_path / "a.mp4")
    assert kinds.index(b"moov") < kinds.index(b"mdat")
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        bt709, limited = 1, 1
        assert (context.codec_tag, context.profile) == ("avc1", "High")
        assert (context.pix_fmt, context.color_range) == ("yuv420p", limited)
        assert {context.colorspace, context.color_primaries, context.color_trc} == {bt709}


def test_an_odd_side_repeats_its_last_pixels(tmp_path: Path) -> None:
    picture = flat(BLACK, (31, 45))
    picture[:, 22:] = WHITE
    video = VideoSegments(tmp_path / "work", "h264", TIME_BASE, None)
    video.append(picture, 0)
    video.join(tmp_path / "a.mp4")
    [(_, back)] = read(tmp_path / "a.mp4")
    assert back.shape == (32, 46, 3)
    assert back[:, 30:].min() > 240 and back[:, :16].max() < 15


def test_the_smallest_picture(tmp_path: Path) -> None:
    video = VideoSegments(tmp_path / "work", "h264", TIME_BASE, None)
    video.append(flat((255, 0, 0), (1, 1)), 0)
    video.join(tmp_path / "a.mp4")
    [(_, back)] = read(tmp_path / "a.mp4")
    assert back.shape == (2, 2, 3)
    assert np.abs(back.astype(int) - (255, 0, 0)).max() <= 4


def test_the_first_frame_decides_the_size(tmp_path: Path) -> None:
    frames = [flat(BLACK, (31, 45)), *[flat(WHITE, (90, 20))] * 4]
    video = VideoSegments(tmp_path / "work", "h264", TIME_BASE, None)
    write(video, frames, range(0, 5000, 1000))
    video.join(tmp_path / "a.mp4")
    assert [picture.shape for _, picture in read(tmp_path / "a.mp4")] == [(32, 46, 3)] * 5


def test_a_label_map_of_another_size_keeps_its_classes(tmp_path: Path) -> None:
    large = np.zeros((40, 60), np.uint8)
    large[:, 30:] = 200
    video = VideoSegments(tmp_path / "work", "ffv1", TIME_BASE, None)
    write(video, [np.zeros((4, 6), np.uint8), large], [0, 512])
    video.join(tmp_path / "a.mkv")
    assert read(tmp_path / "a.mkv")[1][1].tolist() == [[0, 0, 0, 200, 200, 200]] * 4


# Interruptions


@pytest.mark.parametrize("kind", ["h264", "ffv1"])
@pytest.mark.parametrize("killed_at", [1, 4, 7, 10])
def test_an_interruption_changes_no_byte(tmp_path: Path, kind: Any, killed_at: int) -> None:
    frames: list[Any] = pictures(11) if kind == "h264" else label_maps(11, np.uint8)
    frames[9] = frames[9][:20]  # another size than the rest, after some interruptions
    times = [33 + time for time in uneven(11)]
    undisturbed = VideoSegments(tmp_path / "one", kind, TIME_BASE, None)
    write(undisturbed, frames, times)
    undisturbed.join(tmp_path / "one.bin")

    killed: VideoSegments | None = VideoSegments(tmp_path / "two", kind, TIME_BASE, None)
    assert killed is not None
    write(killed, frames[:killed_at], times)
    killed = None
    done = (killed_at - 1) // SEGMENT
    resumed = VideoSegments(tmp_path / "two", kind, TIME_BASE, None, segment=done)
    assert len(list((tmp_path / "two").iterdir())) == done
    write(resumed, frames, times, first=done * SEGMENT)
    resumed.join(tmp_path / "two.bin")
    assert (tmp_path / "one.bin").read_bytes() == (tmp_path / "two.bin").read_bytes()


def test_later_and_half_written_segments_are_written_again(tmp_path: Path) -> None:
    work = tmp_path / "work"
    frames, times = pictures(12), range(0, 12 * 512, 512)
    video = VideoSegments(work, "h264", TIME_BASE, None)
    write(video, frames, times)
    video.end_segment()
    before = sorted(work.iterdir())
    (work / ".0123456789abcdef.part").write_bytes(b"half")
    (work / "notes.txt").write_text("not ours")
    video = VideoSegments(work, "h264", TIME_BASE, None, segment=1)
    assert sorted(work.iterdir()) == [before[0], work / "notes.txt"]
    write(video, frames, times, first=SEGMENT)
    video.end_segment()
    assert sorted(work.iterdir()) == [*before, work / "notes.txt"]
    video.remove()
    assert [path.name for path in work.iterdir()] == ["notes.txt"]


def test_segments_of_another_encoder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, times = pictures(8), range(0, 8 * 512, 512)
    video = VideoSegments(tmp_path / "work", "h264", TIME_BASE, None)
    write(video, frames[:4], times)
    video.end_segment()
    video.close()
    other = dataclasses.replace(CODECS["h264"], options={**CODECS["h264"].options, "crf": "30"})
    monkeypatch.setitem(CODECS, "h264", other)
    resumed = VideoSegments(tmp_path / "work", "h264", TIME_BASE, None, segment=1)
    write(resumed, frames, times, first=SEGMENT)
    with pytest.raises(WriteError, match=r"segment 000001\..*another way; remove that folder"):
        resumed.join(tmp_path / "a.mp4")
    assert not (tmp_path / "a.mp4").exists()


def test_remove_leaves_nothing(tmp_path: Path) -> None:
    video = VideoSegments(tmp_path / "deep" / "work", "h264", TIME_BASE, None)
    write(video, pictures(6), range(6))
    video.remove()
    video.remove()
    assert list((tmp_path / "deep").iterdir()) == []


def test_close_keeps_finished_segments_only(tmp_path: Path) -> None:
    video = VideoSegments(tmp_path, "h264", TIME_BASE, None)
    write(video, pictures(6), range(6))
    video.close()
    video.close()
    assert [path.name[:6] for path in tmp_path.iterdir()] == ["000000"]


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_segment_is_found(tmp_path: Path, damage: str) -> None:
    work = tmp_path / "work"
    video = VideoSegments(work, "h264", TIME_BASE, None)
    write(video, pictures(9), range(9))
    video.end_segment()
    segment = sorted(work.iterdir())[1]
    data = segment.read_bytes()
    if damage == "cut":
        segment.write_bytes(data[:-100])
    elif damage == "changed":
        segment.write_bytes(data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])
    else:
        segment.unlink()
    message = r"segment \S+ (of 3 )?is (damaged|missing); remove that folder"
    with pytest.raises(WriteError, match=message):
        video.join(tmp_path / "a.mp4")
    assert not (tmp_path / "a.mp4").exists()
    with pytest.raises(WriteError, match=message):
        VideoSegments(work, "h264", TIME_BASE, None, segment=3)


def test_segments_of_another_order_are_refused(tmp_path: Path) -> None:
    write(VideoSegments(tmp_path / "work", "h264", TIME_BASE, None), pictures(5), range(10, 15))
    resumed = VideoSegments(tmp_path / "work", "h264", TIME_BASE, None, segment=1)
    resumed.append(pictures(1)[0], 3)
    with pytest.raises(WriteError, match="do not follow one another in time"):
        resumed.join(tmp_path / "a.mp4")


# Errors


def test_a_full_disk_while_a_segment_grows(tmp_path: Path) -> None:
    video = VideoSegments(tmp_path / "work", "h264", TIME_BASE, None)
    frames = pictures(60, (240, 320))
    write(video, frames[:5], range(5))
    message = r"cannot write .*work.*File too large"
    with file_size_limit(100_000), pytest.raises(WriteError, match=message):
        write(video, frames, range(60), first=5)
    # Frames were lost: nothing may be written as if they were not.
    with pytest.raises(WriteError, match="File too large"):
        video.append(frames[0], 100)
    with pytest.raises(WriteError, match="File too large"):
        video.join(tmp_path / "a.mp4")
    finished = len([path for path in (tmp_path / "work").iterdir() if path.suffix == ".nut"])
    video.close()
    assert len(list((tmp_path / "work").iterdir())) == finished >= 1
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.parametrize("kind", ["h264", "ffv1"])
def test_a_full_disk_while_joining_keeps_the_old_file(tmp_path: Path, kind: Any) -> None:
    target = tmp_path / "out" / "a.bin"
    target.parent.mkdir()
    target.write_bytes(b"old")
    video = VideoSegments(tmp_path / "work", kind, TIME_BASE, None)
    frames: list[Any] = pictures(8) if kind == "h264" else label_maps(8, np.uint8)
    write(video, frames, range(0, 8000, 1000))
    video.end_segment()
    with file_size_limit(9000), pytest.raises(WriteError, match=r"a\.bin.*File too large"):
        video.join(target)
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]
    video.join(target)
    assert len(read(target)) == 8


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError, match="cannot write"):
        VideoSegments(tmp_path / "file" / "work", "h264", TIME_BASE, None)
    video = VideoSegments(tmp_path / "work", "h264", TIME_BASE, None)
    video.append(flat(BLACK), 0)
    with pytest.raises(WriteError, match="cannot write"):
        video.join(tmp_path / "file" / "a.mp4")
    video.join(tmp_path / "new" / "er" / "a.mp4")
    assert len(read(tmp_path / "new" / "er" / "a.mp4")) == 1


def test_a_work_folder_that_goes_away(tmp_path: Path) -> None:
    video = VideoSegments(tmp_path / "work", "h264", TIME_BASE, None)
    (tmp_path / "work").rmdir()
    with pytest.raises(WriteError, match="cannot write"):
        video.append(flat(BLACK), 0)
    video.remove()


def test_a_video_without_frames(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="no frames"):
        VideoSegments(tmp_path / "work", "h264", TIME_BASE, None).join(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("h264", np.zeros((4, 6), np.uint8)),
        ("h264", np.zeros((4, 6, 4), np.uint8)),
        ("h264", np.zeros((4, 6, 3), np.float32)),
        ("h264", np.zeros((0, 6, 3), np.uint8)),
        ("ffv1", np.zeros((4, 6, 3), np.uint8)),
        ("ffv1", np.zeros((4, 6), np.int64)),
        ("ffv1", np.zeros((4, 0), np.uint8)),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, kind: Any, image: Any) -> None:
    video = VideoSegments(tmp_path, kind, TIME_BASE, None)
    with pytest.raises(UsageError, match="expected"):
        video.append(image, 0)
    assert list(tmp_path.iterdir()) == []


def test_label_maps_of_one_video_have_one_dtype(tmp_path: Path) -> None:
    write(VideoSegments(tmp_path, "ffv1", TIME_BASE, None), label_maps(5, np.uint16), range(5))
    resumed = VideoSegments(tmp_path, "ffv1", TIME_BASE, None, segment=1)
    with pytest.raises(UsageError, match="gray16le"):
        resumed.append(np.zeros((47, 63), np.uint8), 4)


def test_times_must_increase(tmp_path: Path) -> None:
    video = VideoSegments(tmp_path, "h264", TIME_BASE, None)
    video.append(flat(BLACK), 5)
    with pytest.raises(UsageError, match="5 follows 5"):
        video.append(flat(BLACK), 5)


def test_a_pyav_without_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_codec(name: str, mode: str) -> None:
        raise av.codec.codec.UnknownCodecError(name)

    monkeypatch.setattr(av, "Codec", no_codec)
    with pytest.raises(WriteError, match=r"no encoder 'libx264'.*pip install"):
        VideoSegments(tmp_path, "h264", TIME_BASE, None)


@pytest.mark.parametrize("name", ["pipe:1", "line\nbreak", "😀", os.fsdecode(b"\xff\xfe")])
def test_hostile_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    source_with_sound(Path(name), "matroska", "flac")
    video = VideoSegments(Path(name + " work"), "h264", TIME_BASE, None)
    write(video, pictures(6), range(0, 3072, 512))
    assert video.join(Path(name + ".mp4"), audio_from=Path(name)) == ()
    assert len(read(tmp_path / (name + ".mp4"))) == 6
    assert hears(tmp_path / (name + ".mp4")) is not None


# Sound. In the source it gets bright and loud at the same moment, LOUD_S.

LOUD_S = 2
SOURCE_S = 3
RATE_HZ = 48000


def source_with_sound(path: Path, container: str, codec: str, tracks: int = 1) -> None:
    with av.open(f"file:{path}", "w", format=container) as out:
        video = out.add_stream("libx264", rate=25, options={"bf": "2"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sounds = [out.add_stream(codec, rate=RATE_HZ) for _ in range(tracks)]
        for sound in sounds:
            sound.layout = "mono"
        for index in range(SOURCE_S * 25):
            for sound in sounds:
                out.mux(sound.encode(tone(index)))
            colour = WHITE if index >= LOUD_S * 25 else BLACK
            frame = av.VideoFrame.from_ndarray(flat(colour), format="rgb24")
            frame.pts, frame.time_base = index, FRAME_S
            out.mux(video.encode(frame))
        for stream in [video, *sounds]:
            out.mux(stream.encode(None))


def tone(index: int) -> av.AudioFrame:
    """As much sound as the picture of this index is shown."""
    samples = np.arange(index * RATE_HZ // 25, (index + 1) * RATE_HZ // 25)
    wave = np.sin(samples * 2 * np.pi * 1000 / RATE_HZ) * (index >= LOUD_S * 25)
    frame = av.AudioFrame.from_ndarray((wave * 20000).astype(np.int16)[None], "s16", "mono")
    frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, samples[0], Fraction(1, RATE_HZ)
    return frame


def hears(path: Path) -> float | None:
    """When it gets loud, in seconds; None if there is no sound."""
    with av.open(f"file:{path}") as container:
        if not container.streams.audio:
            return None
        at, wave = [], []
        for frame in container.decode(audio=0):
            samples = frame.to_ndarray()
            scale = np.iinfo(samples.dtype).max if samples.dtype.kind == "i" else 1
            wave.append(np.abs(samples[0] / scale))
            at.append(float(frame.pts * frame.time_base) + np.arange(samples.shape[1]) / RATE_HZ)
    loud = np.flatnonzero(np.concatenate(wave) > 0.2)
    return float(np.concatenate(at)[loud[0]]) if loud.size else float("inf")


def ends(path: Path) -> float:
    with av.open(f"file:{path}") as container:
        stream = container.streams.audio[0]
        return float((stream.start_time + stream.duration) * stream.time_base)


def dub(
    tmp_path: Path, source: Path, start_s: float = 0.0, end_s: float | None = None
) -> tuple[Path, tuple[str, ...]]:
    video = VideoSegments(tmp_path / "work", "h264", TIME_BASE, None)
    for index in range(round(start_s * 25), round((end_s or SOURCE_S) * 25)):
        video.append(flat(BLACK), index * 512)
    warnings = video.join(tmp_path / "dubbed.mp4", audio_from=source, end_s=end_s)
    return tmp_path / "dubbed.mp4", warnings


@pytest.mark.parametrize(
    ("container", "codec", "expected"),
    [
        ("mp4", "aac", ()),
        ("mpegts", "aac", ()),
        ("matroska", "libopus", ()),
        ("matroska", "flac", ()),
        ("mov", "pcm_s16le", ("sound encoded anew as AAC: an mp4 does not hold pcm_s16le",)),
        ("mpegts", "mp2", ("sound encoded anew as AAC: an mp4 does not hold mp2",)),
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_picture_and_sound_stay_together(
    tmp_path: Path, container: str, codec: str, expected: tuple[str, ...], cut: bool
) -> None:
    source_with_sound(tmp_path / "source", container, codec)
    start_s, end_s = (1.0, 2.52) if cut else (0.0, None)
    dubbed, warnings = dub(tmp_path, tmp_path / "source", start_s, end_s)
    assert warnings == expected
    assert hears(dubbed) == pytest.approx(LOUD_S - start_s, abs=0.005)
    assert ends(dubbed) == pytest.approx((end_s or SOURCE_S) - start_s, abs=0.1)
    assert len(read(dubbed)) == round(((end_s or SOURCE_S) - start_s) * 25)


def test_one_sound_track_of_several(tmp_path: Path) -> None:
    source_with_sound(tmp_path / "source", "mp4", "aac", tracks=3)
    dubbed, warnings = dub(tmp_path, tmp_path / "source")
    assert warnings == ("only the first of 3 sound tracks kept",)
    with av.open(str(dubbed)) as container:
        assert len(container.streams.audio) == 1


def test_a_source_without_sound(tmp_path: Path) -> None:
    source_with_sound(tmp_path / "source", "mp4", "aac", tracks=0)
    dubbed, warnings = dub(tmp_path, tmp_path / "source")
    assert warnings == ()
    assert hears(dubbed) is None


@pytest.mark.parametrize("content", [None, b"", b"no video at all" * 100])
def test_a_source_that_is_gone_costs_the_sound_only(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "source").write_bytes(content)
    dubbed, [warning] = dub(tmp_path, tmp_path / "source")
    assert warning.startswith("sound left out: ")
    assert len(read(dubbed)) == SOURCE_S * 25


def test_damaged_pieces_cost_neither_the_rest_nor_its_time(tmp_path: Path) -> None:
    source_with_sound(tmp_path / "source", "mpegts", "mp2")
    data = bytearray((tmp_path / "source").read_bytes())
    for at in range(len(data) // 5, len(data) // 2, len(data) // 40):
        data[at : at + 60] = bytes(60)
    (tmp_path / "source").write_bytes(data)
    dubbed, warnings = dub(tmp_path, tmp_path / "source")
    assert "damaged pieces of sound left out" in warnings[-1]
    assert hears(dubbed) == pytest.approx(LOUD_S, abs=0.005)
    assert len(read(dubbed)) == SOURCE_S * 25


@pytest.mark.parametrize("container", ["matroska", "mpegts"])
def test_sound_of_a_source_that_is_cut_short(tmp_path: Path, container: str) -> None:
    source_with_sound(tmp_path / "source", container, "aac")
    data = (tmp_path / "source").read_bytes()
    (tmp_path / "source").write_bytes(data[: len(data) * 2 // 5])
    dubbed, warnings = dub(tmp_path, tmp_path / "source")
    assert warnings == ()
    assert 0.3 < ends(dubbed) < 2.8
    assert len(read(dubbed)) == SOURCE_S * 25


def test_sound_that_cannot_be_copied_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source_with_sound(tmp_path / "source", "avi", "adpcm_ima_wav")
    monkeypatch.setattr("errseg.sound.COPIED_CODECS", {"adpcm_ima_wav"})
    dubbed, [warning] = dub(tmp_path, tmp_path / "source")
    assert warning.startswith("sound left out: 'mp4' format does not support")
    assert hears(dubbed) is None
    assert len(read(dubbed)) == SOURCE_S * 25


def test_sound_that_the_file_refuses_half_way_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source_with_sound(tmp_path / "source", "mp4", "aac")
    in_order = SoundTrack._in_span

    def backwards(self: SoundTrack, track: Any) -> Iterator[Any]:
        return reversed(list(in_order(self, track)))

    monkeypatch.setattr(SoundTrack, "_in_span", backwards)
    dubbed, [warning] = dub(tmp_path, tmp_path / "source")
    assert warning == "sound left out: Invalid argument"
    assert hears(dubbed) is None
    assert len(read(dubbed)) == SOURCE_S * 25


def test_label_maps_take_no_sound(tmp_path: Path) -> None:
    video = VideoSegments(tmp_path / "work", "ffv1", TIME_BASE, None)
    video.append(np.zeros((4, 6), np.uint8), 0)
    with pytest.raises(UsageError, match="no sound"):
        video.join(tmp_path / "a.mkv", audio_from=tmp_path / "source")
