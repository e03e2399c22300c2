"""Corrupted real files: an error that can be read, or a result of the declared form; nothing else.

`bench/fuzz.py` runs the same for as long as it is told to, with seeds of its own.
"""

from __future__ import annotations

import io
import random
import tempfile
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from clips import make_clip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from errseg.errors import ErrsegError, InputError, VocabularyError
from errseg.images import read_image
from errseg.read_options import ReadOptions
from errseg.records import EndOfVideo, Frame
from errseg.videos import read_video
from errseg.vocabulary import load_vocabulary

MOST_PIXELS = 1_000_000

PICTURES: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 80},
    "JPEG progressive": {"progressive": True},
    "PNG": {},
    "TIFF": {},
    "TIFF lzw": {"compression": "tiff_lzw"},
    "TIFF deflate": {"compression": "tiff_deflate"},
    "TIFF jpeg": {"compression": "jpeg"},
    "WEBP": {},
    "GIF": {},
    "BMP": {},
    "PPM": {},
    "JPEG2000": {},
    "AVIF": {},
}
VIDEOS = ("mp4", "mkv", "ts")


@cache
def picture_bytes(kind: str) -> bytes:
    """A small photograph-like picture as a file of that kind."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    data = io.BytesIO()
    image = Image.fromarray(pixels).resize((64, 48))
    image.save(data, kind.split(maxsplit=1)[0], **PICTURES[kind])  # type: ignore[arg-type]
    return data.getvalue()


@cache
def video_bytes(suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        options = {"movflags": "faststart"} if suffix == "mp4" else {}
        sound = "aac" if suffix != "ts" else ""
        clip = make_clip(Path(folder) / f"a.{suffix}", 8, options=options, sound=sound)
        return clip.read_bytes()


def corrupted(data: bytes, seed: int) -> bytes:
    """One to four of: bytes changed, cut, a block overwritten, repeated, left out, made extreme."""
    rng = random.Random(seed)
    broken = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(broken) or 1)
        # headers are short and matter most
        at = rng.randrange(min(64, len(broken) or 1)) if rng.random() < 0.4 else at
        length = rng.choice((1, 2, 4, 16, 200))
        match rng.randrange(6):
            case 0:
                for _ in range(rng.randint(1, 8)):
                    spot = rng.randrange(len(broken) or 1)
                    broken[spot : spot + 1] = bytes([rng.randrange(256)])
            case 1:
                del broken[max(1, at) :]
            case 2:
                broken[at : at + length] = rng.randbytes(length)
            case 3:
                broken[at:at] = broken[at : at + length]
            case 4:
                del broken[at : at + length]
            case _:
                extreme = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80"))
                broken[at : at + length] = extreme * length
    return bytes(broken)


def check_picture(data: bytes) -> None:
    """What must hold of any bytes."""
    with tempfile.NamedTemporaryFile(suffix=".img") as file:
        file.write(data)
        file.flush()
        try:
            image, notes = read_image(Path(file.name), max_pixels=MOST_PIXELS)
        except InputError as error:
            check_message(error)
            return
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.dtype == np.uint8
    assert 0 < image.shape[0] * image.shape[1] <= MOST_PIXELS
    assert all(note and "\n" not in note for note in notes)


def check_video(data: bytes) -> None:
    """What must hold of any bytes."""
    with tempfile.NamedTemporaryFile(suffix=".video") as file:
        file.write(data)
        file.flush()
        try:
            *frames, end = read_video(Path(file.name), "v", ReadOptions(max_pixels=MOST_PIXELS))
        except InputError as error:
            check_message(error)
            return
    assert isinstance(end, EndOfVideo)
    assert "\n" not in end.failure
    assert frames
    last = -1
    for frame in frames:
        assert isinstance(frame, Frame)
        assert frame.image.dtype == np.uint8
        assert frame.image.ndim == 3
        assert frame.pts > last
        last = frame.pts


def check_message(error: ErrsegError) -> None:
    text = str(error)
    assert text
    assert "\n" not in text
    assert len(text) < 2000


def supported(kind: str) -> bool:
    name = kind.split(maxsplit=1)[0]
    return {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}.get(name) is None or bool(
        features.check({"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}[name])
    )


quickly = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize("kind", [kind for kind in PICTURES if supported(kind)])
@quickly
@given(seed=st.integers(0, 2**32))
def test_corrupted_pictures(kind: str, seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        check_picture(corrupted(picture_bytes(kind), seed))


@pytest.mark.parametrize("suffix", VIDEOS)
@quickly
@given(seed=st.integers(0, 2**32))
def test_corrupted_videos(suffix: str, seed: int) -> None:
    check_video(corrupted(video_bytes(suffix), seed))


@quickly
@given(data=st.binary(max_size=400))
def test_any_bytes_as_a_vocabulary(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".txt") as file:
        file.write(data)
        file.flush()
        try:
            vocabulary = load_vocabulary(file.name)
        except VocabularyError as error:
            check_message(error)
            return
    assert len(vocabulary) > 0


@pytest.mark.parametrize("kind", [kind for kind in PICTURES if supported(kind)])
def test_the_pictures_are_whole_before(kind: str) -> None:
    with tempfile.NamedTemporaryFile(suffix=".img") as file:
        file.write(picture_bytes(kind))
        file.flush()
        image, _ = read_image(Path(file.name))
    assert image.shape == (48, 64, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "PPM", "TIFF", "GIF", "WEBP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_picture_is_never_taken_for_whole(kind: str, share: float) -> None:
    data = picture_bytes(kind)
    with tempfile.NamedTemporaryFile(suffix=".img") as file:
        file.write(data[: int(len(data) * share)])
        file.flush()
        with pytest.raises(InputError):
            read_image(Path(file.name))
