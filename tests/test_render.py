from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from errseg import render
from errseg.errors import UsageError
from errseg.records import UNLABELLED, ImageArray, LabelMap, Segmentation
from errseg.render import colourise, overlay

COLOURS = np.array([(230, 40, 40), (40, 200, 60), (60, 80, 230), (240, 220, 60)], np.uint8)
NAMES = ("sky", "car", "grass", "road")
GREY = 100


def grey_picture(height: int, width: int) -> ImageArray:
    return np.full((height, width, 3), GREY, np.uint8)


def segmentation_of(labels: LabelMap, names: tuple[str, ...] = NAMES) -> Segmentation:
    return Segmentation(labels, np.ones(labels.shape, np.float32), names)


def quarters(height: int, width: int) -> LabelMap:
    labels = np.zeros((height, width), np.uint16)
    labels[height // 2 :] = 2
    labels[:, width // 2 :] += 1
    return labels


def plain_blend(labels: LabelMap, opacity: float) -> NDArray[np.float64]:
    """Slow and obvious: what every pixel is without outlines and names."""
    blended = np.empty((*labels.shape, 3))
    for place, label in np.ndenumerate(labels):
        blended[place] = GREY if label == UNLABELLED else GREY * (1 - opacity)
        if label != UNLABELLED:
            blended[place] += COLOURS[label] * opacity
    return blended


def differing(canvas: ImageArray, labels: LabelMap, opacity: float = 0.55) -> NDArray[np.bool_]:
    """(H, W) bool: where something was drawn over the plain blend."""
    return np.asarray(np.abs(canvas - plain_blend(labels, opacity)).max(axis=2) > 1)


# Colours


@pytest.mark.parametrize("count", [1, 4, 255, 300, 65535])
def test_colourise_equals_a_lookup_per_pixel(count: int) -> None:
    rng = np.random.default_rng(count)
    colours = rng.integers(1, 256, (count, 3)).astype(np.uint8)
    labels = rng.integers(0, count, (7, 13)).astype(np.uint16)
    labels[0, :5] = UNLABELLED
    painted = colourise(labels, colours)
    assert painted.dtype == np.uint8
    expected = colours[np.minimum(labels, count - 1)]
    expected[labels == UNLABELLED] = 0
    np.testing.assert_array_equal(painted, expected)


def test_colourise_paints_ids_without_a_colour_black() -> None:
    assert not colourise(np.full((2, 3), 4, np.uint16), COLOURS).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1)])
def test_colourise_keeps_any_size(shape: tuple[int, int]) -> None:
    assert colourise(np.zeros(shape, np.uint16), COLOURS).shape == (*shape, 3)


def test_colourise_takes_views() -> None:
    labels = quarters(20, 30)
    np.testing.assert_array_equal(
        colourise(labels[::-2, ::3].T, COLOURS),
        colourise(labels, COLOURS)[::-2, ::3].swapaxes(0, 1),
    )


# Blending and outlines


@pytest.mark.parametrize("opacity", [0.0, 0.3, 1.0])
def test_away_from_outlines_and_names_pixels_are_blended(opacity: float) -> None:
    # Too small for names.
    labels = quarters(24, 36)
    labels[:12, :18] = UNLABELLED
    canvas = overlay(grey_picture(24, 36), segmentation_of(labels), COLOURS, opacity=opacity)
    drawn = differing(canvas, labels, opacity)
    assert not drawn[:9, :15].any()
    assert not drawn[:9, 21:].any()
    assert not drawn[15:, :15].any()
    assert not drawn[15:, 21:].any()


@pytest.mark.parametrize("size", [(40, 60), (480, 640), (1500, 2000)])
def test_borders_carry_a_line_whose_width_follows_the_picture(size: tuple[int, int]) -> None:
    labels = np.zeros(size, np.uint16)
    labels[:, size[1] // 2 :] = 1
    canvas = overlay(grey_picture(*size), segmentation_of(labels), COLOURS)
    # The uppermost row is free of names.
    row = canvas[0].astype(int)
    light = np.flatnonzero(row.min(axis=1) > 150)
    share = 0.0022 * (size[0] * size[1]) ** 0.5
    assert share <= len(light) <= 3 * share + 3
    assert abs(light.mean() - size[1] / 2) <= share + 1


def test_one_region_has_no_outline() -> None:
    labels = np.full((40, 60), UNLABELLED, np.uint16)
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    np.testing.assert_array_equal(overlay(picture, segmentation_of(labels), COLOURS), picture)


def test_the_unlabelled_side_of_a_border_keeps_the_picture() -> None:
    labels = np.full((40, 600), UNLABELLED, np.uint16)
    labels[:, 300:] = 0
    canvas = overlay(grey_picture(40, 600), segmentation_of(labels), COLOURS)
    assert (canvas[:, :300] >= GREY).all()


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 2), (2, 1), (1, 5000), (5000, 1), (3, 700), (67, 131)]
)
def test_any_size(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    labels = rng.integers(0, 4, size).astype(np.uint16)
    labels[rng.random(size) < 0.2] = UNLABELLED
    for labels_now in (labels, np.zeros_like(labels)):
        canvas = overlay(picture, segmentation_of(labels_now), COLOURS)
        assert canvas.shape == picture.shape
        assert canvas.dtype == np.uint8


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (131, 67), (199, 310)])
@pytest.mark.parametrize("tile_side", [7, 50, 192])
@pytest.mark.parametrize("line_share", [0.0022, 0.02, 0.05])
def test_tiles_equal_the_whole(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], tile_side: int, line_share: float
) -> None:
    rng = np.random.default_rng(size)
    picture = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    coarse = rng.choice([0, 0, 0, 1, 2, UNLABELLED], (4, 5)).astype(np.uint16)
    labels = np.repeat(np.repeat(coarse, -(-size[0] // 4), axis=0), -(-size[1] // 5), axis=1)
    labels = labels[: size[0], : size[1]]
    monkeypatch.setattr(render, "_LINE_SHARE", line_share)
    monkeypatch.setattr(render, "_TILE_SIDE_PX", 10_000)
    whole = overlay(picture, segmentation_of(labels), COLOURS)
    monkeypatch.setattr(render, "_TILE_SIDE_PX", tile_side)
    np.testing.assert_array_equal(overlay(picture, segmentation_of(labels), COLOURS), whole)


def test_inputs_stay_as_they_are_and_may_be_read_only_views() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (240, 320, 3)).astype(np.uint8)
    labels = quarters(240, 320)
    labels[100:] = UNLABELLED
    inputs = (picture[:, ::-1], labels[:, ::-1], COLOURS.copy())
    copies = [array.copy() for array in inputs]
    for array in inputs:
        array.flags.writeable = False
    canvas = overlay(inputs[0], segmentation_of(inputs[1]), inputs[2])
    for array, copy in zip(inputs, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    np.testing.assert_array_equal(canvas, overlay(copies[0], segmentation_of(copies[1]), COLOURS))


def test_equal_inputs_give_equal_overlays() -> None:
    arguments = (grey_picture(200, 300), segmentation_of(quarters(200, 300)), COLOURS)
    np.testing.assert_array_equal(overlay(*arguments), overlay(*arguments))


@pytest.mark.parametrize("opacity", [-0.1, 1.1, float("nan")])
def test_opacity_out_of_range_is_refused(opacity: float) -> None:
    with pytest.raises(UsageError, match="from 0 to 1"):
        overlay(grey_picture(4, 6), segmentation_of(quarters(4, 6)), COLOURS, opacity=opacity)


@pytest.mark.parametrize("shape", [(6, 4, 3), (4, 6, 4), (4, 6)])
def test_pictures_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="same size"):
        overlay(np.zeros(shape, np.uint8), segmentation_of(quarters(4, 6)), COLOURS)


# Names


def tag_boxes(labels: LabelMap, names: tuple[str, ...] = NAMES) -> NDArray[np.bool_]:
    """(H, W) bool: what the names change, by drawing once with and once without room for them."""
    picture = grey_picture(*labels.shape)
    with_names = overlay(picture, segmentation_of(labels, names), COLOURS)
    # A name this long fits into no region.
    without = overlay(picture, segmentation_of(labels, ("m" * 28,) * len(names)), COLOURS)
    return np.asarray((with_names != without).any(axis=2))


def test_names_lie_inside_their_own_regions() -> None:
    labels = quarters(240, 320)
    changed = tag_boxes(labels)
    for class_id in range(4):
        inside = changed & (labels == class_id)
        rows, columns = np.nonzero(inside)
        assert inside.sum() > 300
        assert inside.sum() >= 0.85 * (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_names_of_odd_shapes_lie_in_the_shape_and_not_in_its_centre() -> None:
    labels = np.full((300, 300), UNLABELLED, np.uint16)
    labels[:, :90] = 0
    labels[210:, :] = 0
    rows, columns = np.nonzero(tag_boxes(labels))
    assert len(rows) > 100
    assert (labels[rows, columns] == 0).all()


def test_small_and_narrow_regions_carry_no_name() -> None:
    labels = np.full((300, 400), UNLABELLED, np.uint16)
    labels[5:17, 5:17] = 0
    labels[:, 200:206] = 1
    labels[250:256] = 2
    assert not tag_boxes(labels).any()


def test_a_class_in_many_regions_is_named_three_times() -> None:
    labels = np.full((400, 600), UNLABELLED, np.uint16)
    for left in range(5, 600, 100):
        labels[100:200, left : left + 80] = 1
    columns = np.flatnonzero(tag_boxes(labels).any(axis=0))
    assert 1 + np.count_nonzero(np.diff(columns) > 20) == 3


@pytest.mark.parametrize(
    ("name", "as_written"),
    [
        ("空", None),
        ("Straße", None),
        ("трава", None),
        ("cafe\u0301", "café"),
        ("dog \N{DOG FACE}", "#1"),
        ("lone \udcff surrogate", "#1"),
        ("two\nlines", "#1"),
        ("a" * 40, "a" * 27 + "…"),
    ],
)
def test_names_outside_ascii(name: str, as_written: str | None) -> None:
    labels = np.ones((300, 1200), np.uint16)
    picture = grey_picture(*labels.shape)

    def drawn(text: str) -> ImageArray:
        return overlay(picture, segmentation_of(labels, ("x", text)), COLOURS)

    canvas = drawn(name)
    assert (canvas != canvas[0, 0]).any()
    if as_written is None:
        assert not np.array_equal(canvas, drawn("#1"))
        assert not np.array_equal(canvas, drawn("?" * len(name)))
    else:
        np.testing.assert_array_equal(canvas, drawn(as_written))


def test_text_is_dark_on_light_colours_and_light_on_dark_ones() -> None:
    labels = np.zeros((300, 400), np.uint16)
    for colour, ink in [((240, 230, 90), 0), ((60, 20, 120), 255)]:
        canvas = overlay(
            grey_picture(300, 400), segmentation_of(labels), np.array([colour], np.uint8)
        )
        assert (canvas == ink).all(axis=2).sum() > 20
        assert (canvas == 255 - ink).all(axis=2).sum() == 0
