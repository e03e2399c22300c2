"""Real files of every kind, good and bad, through `read_image`."""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from errseg.errors import InputError
from errseg.images import IMAGE_SUFFIXES, read_image

HEIGHT, WIDTH = 3, 5
GREY = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) * 17
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=2)
GREY_STRETCHED = np.stack([np.rint(GREY * (255 / 238))] * 3, axis=2)
GREY_AS_RGB = np.stack([GREY] * 3, axis=2)
DEEP = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
DEEP_AS_RGB = np.stack([DEEP // 257] * 3, axis=2)
DEEP_RGB = np.stack([DEEP, DEEP[::-1], 65535 - DEEP], axis=2)

DEEP_WARNING = ("16-bit values divided by 257 to fit 8 bits",)
ALPHA_WARNING = ("transparent pixels shown on white",)

# What each orientation does to the stored picture, by the EXIF standard, as (H, W, C) operations.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


def alpha_of(value: int) -> Image.Image:
    """Opaque but for the upper left pixel."""
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[0, 0] = value
    return Image.fromarray(alpha)


def with_alpha(image: Image.Image, value: int) -> Image.Image:
    image.putalpha(alpha_of(value))
    return image


def white_corner(pixels: np.ndarray) -> np.ndarray:
    changed = pixels.copy()
    changed[0, 0] = 255
    return changed


def palette(transparent: bool) -> Image.Image:
    image = Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH), "P")
    image.putpalette(RGB.reshape(-1, 3).flatten().tolist())
    if transparent:
        image.info["transparency"] = bytes([0] + [255] * 14)
    return image


def ints(*values: int) -> Image.Image:
    return Image.fromarray(np.array([values], np.int32))


def floats(*values: float) -> Image.Image:
    return Image.fromarray(np.array([values], np.float32))


def grey_pixels(*values: int) -> np.ndarray:
    return np.repeat(np.array([values], np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize(
    ("name", "image", "expected", "warnings"),
    [
        ("rgb.png", Image.fromarray(RGB), RGB, ()),
        ("rgb.bmp", Image.fromarray(RGB), RGB, ()),
        ("rgb.ppm", Image.fromarray(RGB), RGB, ()),
        ("rgb.tif", Image.fromarray(RGB), RGB, ()),
        ("rgb.TIFF", Image.fromarray(RGB), RGB, ()),
        ("l.png", Image.fromarray(GREY), GREY_AS_RGB, ()),
        ("l.pgm", Image.fromarray(GREY), GREY_AS_RGB, ()),
        ("bits.png", Image.fromarray(GREY > 99), np.where(GREY_AS_RGB > 99, 255, 0), ()),
        ("bits.pbm", Image.fromarray(GREY > 99), np.where(GREY_AS_RGB > 99, 255, 0), ()),
        ("p.png", palette(False), RGB, ()),
        ("p.gif", palette(False), RGB, ()),
        ("p_alpha.png", palette(True), white_corner(RGB), ALPHA_WARNING),
        ("la.png", with_alpha(Image.fromarray(GREY), 0), white_corner(GREY_AS_RGB), ALPHA_WARNING),
        ("rgba.png", with_alpha(Image.fromarray(RGB), 0), white_corner(RGB), ALPHA_WARNING),
        ("rgba.tif", with_alpha(Image.fromarray(RGB), 0), white_corner(RGB), ALPHA_WARNING),
        ("opaque.png", with_alpha(Image.fromarray(RGB), 255), RGB, ()),
        ("grey16.png", Image.fromarray(DEEP), DEEP_AS_RGB, DEEP_WARNING),
        ("grey16.tif", Image.fromarray(DEEP), DEEP_AS_RGB, DEEP_WARNING),
        ("grey16.pgm", Image.fromarray(DEEP), DEEP_AS_RGB, DEEP_WARNING),
        ("low16.png", Image.fromarray(GREY.astype(np.uint16)), GREY_AS_RGB, ()),
        ("int32.tif", ints(0, 257, 65535), grey_pixels(0, 1, 255), DEEP_WARNING),
        (
            "signed.tif",
            ints(-100, 0, 100),
            grey_pixels(0, 128, 255),
            ("values -100..100 stretched to 0..255",),
        ),
        (
            "float.tif",
            floats(0.0, 0.5, 1.0),
            grey_pixels(0, 128, 255),
            ("values 0..1 stretched to 0..255",),
        ),
        (
            "nan.tif",
            floats(float("nan"), float("inf"), -2.0, 2.0),
            grey_pixels(0, 0, 0, 255),
            ("values -2..2 stretched to 0..255",),
        ),
        ("flat.tif", floats(7.0, 7.0), grey_pixels(0, 0), ("values 7..7 stretched to 0..255",)),
        ("one.png", Image.new("RGB", (1, 1), (9, 8, 7)), np.array([[[9, 8, 7]]]), ()),
        ("tall.png", Image.new("RGB", (1, 5000), "red"), np.full((5000, 1, 3), (255, 0, 0)), ()),
    ],
)
def test_modes(
    tmp_path: Path, name: str, image: Image.Image, expected: np.ndarray, warnings: tuple[str, ...]
) -> None:
    path = tmp_path / name
    image.save(path)

    pixels, said = read_image(path)

    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, expected)
    assert said == warnings


def test_half_transparent_pixel_is_mixed_with_white(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    Image.new("RGBA", (1, 1), (0, 100, 200, 128)).save(path)
    pixels, said = read_image(path)
    np.testing.assert_allclose(pixels[0, 0], (127, 177, 227), atol=1)
    assert said == ALPHA_WARNING


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "YCbCr"])
@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_flat_colour_survives_colour_spaces(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"flat{suffix}"
    Image.new("RGB", (16, 8), (200, 40, 90)).convert(mode).save(path)
    pixels, _ = read_image(path)
    assert pixels.shape == (8, 16, 3)
    np.testing.assert_allclose(pixels[4, 8], (200, 40, 90), atol=6)


def test_lab(tmp_path: Path) -> None:
    path = tmp_path / "lab.tif"
    Image.new("LAB", (2, 2), (255, 128, 128)).save(path)
    np.testing.assert_allclose(read_image(path)[0], np.full((2, 2, 3), 255), atol=2)


@pytest.mark.parametrize("suffix", [".webp", ".jp2", ".avif"])
def test_newer_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"flat{suffix}"
    Image.new("RGB", (40, 20), (200, 40, 90)).save(path)
    pixels, said = read_image(path)
    assert pixels.shape == (20, 40, 3)
    np.testing.assert_allclose(pixels[10, 20], (200, 40, 90), atol=6)
    assert said == ()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_colour(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep{suffix}"
    cv2.imwrite(str(path), DEEP_RGB[..., ::-1])
    pixels, _ = read_image(path)
    np.testing.assert_array_equal(pixels, DEEP_RGB >> 8)


def tiff(planes: np.ndarray, sample_format: int, planar: bool, orientation: int = 1) -> bytes:
    """An uncompressed little-endian TIFF, by hand: `planes` is (C, H, W)."""
    channels, height, width = planes.shape
    data = (planes if planar else planes.transpose(1, 2, 0)).tobytes()
    bits, plane_size = planes.itemsize * 8, len(data) // channels
    strips = channels if planar else 1
    entries = 12
    extra = 8 + 2 + entries * 12 + 4
    body = extra + 6 * 2 + 2 * 4 * 3
    offsets = [body + index * plane_size for index in range(strips)]
    counts = [len(data) // strips] * strips
    many = channels > 1

    def shorts(tag: int, value: int, at: int) -> bytes:
        return struct.pack("<HHII", tag, 3, channels, at if many else value)

    def longs(tag: int, values: list[int], at: int) -> bytes:
        return struct.pack("<HHII", tag, 4, len(values), at if len(values) > 1 else values[0])

    directory = b"".join(
        [
            struct.pack("<HHII", 256, 4, 1, width),
            struct.pack("<HHII", 257, 4, 1, height),
            shorts(258, bits, extra),
            struct.pack("<HHII", 259, 3, 1, 1),
            struct.pack("<HHII", 262, 3, 1, 2 if many else 1),
            longs(273, offsets, extra + 12),
            struct.pack("<HHII", 274, 3, 1, orientation),
            struct.pack("<HHII", 277, 3, 1, channels),
            struct.pack("<HHII", 278, 4, 1, height),
            longs(279, counts, extra + 24),
            struct.pack("<HHII", 284, 3, 1, 2 if planar else 1),
            shorts(339, sample_format, extra + 6),
        ]
    )
    tables = struct.pack("<6H", *[bits] * 3, *[sample_format] * 3)
    tables += struct.pack("<6I", *(offsets * 3)[:3], *(counts * 3)[:3])
    header = struct.pack("<2sHIH", b"II", 42, 8, entries)
    return header + directory + bytes(4) + tables + data


@pytest.mark.parametrize(
    ("planes", "kind", "expected"),
    [
        (DEEP_RGB.transpose(2, 0, 1), (1, True), DEEP_RGB >> 8),
        (DEEP_RGB.transpose(2, 0, 1), (1, False), DEEP_RGB >> 8),
        (RGB.transpose(2, 0, 1).astype(np.float32) / 255, (3, False), RGB),
        (GREY[None].astype(np.float64) / 238 - 1000, (3, False), GREY_STRETCHED),
    ],
    ids=["planes16", "colour16", "colour-float", "grey-double"],
)
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
def test_rare_tiffs(
    tmp_path: Path,
    planes: np.ndarray,
    kind: tuple[int, bool],
    expected: np.ndarray,
    orientation: int,
) -> None:
    path = tmp_path / "rare.tif"
    path.write_bytes(tiff(planes, *kind, orientation))
    pixels, _ = read_image(path)
    np.testing.assert_array_equal(pixels, UPRIGHT[orientation](expected))


def test_float_planes_are_refused_not_scrambled(tmp_path: Path) -> None:
    path = tmp_path / "planes.tif"
    path.write_bytes(tiff(RGB.transpose(2, 0, 1).astype(np.float32) / 255, 3, True))
    with pytest.raises(InputError, match=r"a rare kind of TIFF \(bits \(32, 32, 32\)\)"):
        read_image(path)


@pytest.mark.parametrize("kept", [40, 150, 250])
def test_truncated_rare_tiff_is_an_error_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kept: int
) -> None:
    path = tmp_path / "cut.tif"
    path.write_bytes(tiff(np.zeros((3, 4, 5), np.float32), 3, False)[:kept])
    level = cv2.utils.logging.getLogLevel()
    with pytest.raises(InputError, match=r"cut\.tif': damaged"):
        read_image(path)
    assert capfd.readouterr() == ("", "")
    assert cv2.utils.logging.getLogLevel() == level


def test_rare_tiff_over_the_limit_is_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "rare.tif"
    path.write_bytes(tiff(np.zeros((3, 4, 5), np.float32), 3, False)[:200])  # no pixels in it
    with pytest.raises(InputError, match=r"5 x 4 = 20 pixels, expected at most 19"):
        read_image(path, max_pixels=19)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_orientations(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"turned{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(RGB).save(path, exif=exif, **options)
    pixels, said = read_image(path)
    np.testing.assert_array_equal(pixels, UPRIGHT[orientation](RGB))
    assert pixels.flags.c_contiguous
    assert said == ()


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientations_of_a_jpeg(tmp_path: Path, orientation: int) -> None:
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :16] = (255, 0, 0)
    stored[16:, 32:] = (0, 0, 255)
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(path, exif=exif, quality=95, subsampling=0)
    pixels, _ = read_image(path)
    np.testing.assert_allclose(pixels, UPRIGHT[orientation](stored).astype(int), atol=8)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_leaves_the_picture_as_stored(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "odd.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path)[0], RGB)


def test_damaged_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "exif.png"
    Image.fromarray(RGB).save(path, exif=b"Exif\0\0not a TIFF header")
    pixels, said = read_image(path)
    np.testing.assert_array_equal(pixels, RGB)
    assert said == ("EXIF data damaged, shown as stored",)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_first_of_several_frames(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"many{suffix}"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    pixels, said = read_image(path)
    np.testing.assert_array_equal(pixels, np.full((8, 8, 3), (255, 0, 0)))
    assert said == ("3 frames, only the first is used",)


def png_header_only(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def picture_bytes(path: Path, noisy: bool = False) -> bytes:
    image = Image.effect_noise((64, 64), 90).convert("RGB") if noisy else Image.fromarray(RGB)
    image.save(path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("zero.jpg", b"", r"empty file \(0 bytes\)"),
        ("text.jpg", b"not a picture\n" * 50, r"not a picture.*expected one of JPEG"),
        ("eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n", "not a picture"),
        ("tiff.tif", b"II*\0\xff\xff\xff\x7f", "damaged"),
        ("magic.png", b"\x89PNG\r\n\x1a\n", "not a picture"),
        (
            "huge.png",
            png_header_only(60000, 60000),
            r"60000 x 60000 = 3600000000 pixels, expected at most 500000000",
        ),
        ("short.png", png_header_only(1000, 1000), "damaged or truncated picture"),
    ],
)
def test_bad_bytes(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_image(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp", ".gif", ".ppm"])
def test_truncated_file_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    content = picture_bytes(path, noisy=True)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cut.*damaged or truncated picture"):
        read_image(path)


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - {".pbm", ".pgm", ".pnm"}))
def test_random_damage_gives_a_picture_or_an_input_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"hurt{suffix}"
    content = np.frombuffer(picture_bytes(path), np.uint8)
    random = np.random.default_rng(0)
    outcomes = []
    for _ in range(30):
        damaged = content.copy()
        damaged[random.integers(0, len(damaged), 4)] = random.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        try:
            pixels, _ = read_image(path, max_pixels=10_000)
        except InputError as error:
            outcomes.append(path.name in str(error))
        else:
            outcomes.append(pixels.ndim == 3 and pixels.shape[2] == 3)
    assert outcomes == [True] * 30


def test_size_limit_is_inclusive(tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    Image.fromarray(RGB).save(path)
    assert read_image(path, max_pixels=15)[0].shape == RGB.shape
    with pytest.raises(InputError, match="5 x 3 = 15 pixels, expected at most 14"):
        read_image(path, max_pixels=14)


@pytest.mark.filterwarnings("error")
def test_own_limit_replaces_that_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.tif"
    Image.fromarray(RGB).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    assert read_image(path)[0].shape == RGB.shape
    assert Image.MAX_IMAGE_PIXELS == 2


def test_pillow_limit_is_put_back_after_a_failure(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(InputError):
        read_image(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no")
    with pytest.raises(InputError):
        read_image(tmp_path / "text.png")
    assert before == Image.MAX_IMAGE_PIXELS


def test_missing_folder_and_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    cases = {
        "missing.jpg": "No such file",
        "": "it is a folder",
        "pipe.jpg": "it is a device or a pipe",
        "nul\0.jpg": "null byte",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            read_image(tmp_path / name)


def test_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "closed.png"
    Image.fromarray(RGB).save(path)
    path.chmod(0)

    def refuse(self: Path, mode: str) -> None:
        # What the system does, unless the tests run as root, who may read anything.
        assert stat.S_IMODE(self.stat().st_mode) == 0
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"closed\.png.*Permission denied"):
        read_image(path)


def test_odd_names_stay_on_one_line_and_printable(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"new\nline \xff.png")
    path.write_bytes(b"")
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    str(caught.value).encode("utf-8")


def test_drawn_picture_keeps_its_place(tmp_path: Path) -> None:
    """(H, W) order and RGB order at once, through a lossy format."""
    path = tmp_path / "drawn.jpg"
    image = Image.new("RGB", (64, 32))
    ImageDraw.Draw(image).rectangle((48, 0, 63, 15), fill=(255, 0, 0))
    image.save(path, quality=95)
    pixels, _ = read_image(path)
    assert pixels.shape == (32, 64, 3)
    assert pixels[4, 60, 0] > 200
    assert pixels[4, 60, 2] < 50
    assert pixels[28, 4].max() < 50
