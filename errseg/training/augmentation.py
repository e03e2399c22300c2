"""Random views of labelled pictures.

What is random is drawn before a pixel is read, so that a process that takes its share of a batch
draws as all others do, and reads its own pictures only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from errseg.training.recipe import Augmentation, DataSource

Sample = tuple[NDArray[np.float32], NDArray[np.int64]]

PADDING_VALUE = 128
"""Of pixels outside the picture, which are unlabelled."""


class View(Protocol):
    """One way to look at a picture; all randomness is in it."""

    def __call__(self, image: NDArray[np.uint8], labels: NDArray[np.int64]) -> Sample:
        """(H, W, 3) uint8 RGB and (H, W) → (h, w, 3) float32 RGB 0..255 and (h, w) int64."""


DrawView = Callable[[tuple[int, int], tuple[int, int], DataSource, np.random.Generator], View]
"""(picture's size (H, W), size wanted (h, w), its data set's settings, generator) → view."""


# --- squash: ours ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Squash:
    """A crop squashed to `size` (h, w), perhaps flipped; colours a little off."""

    size: tuple[int, int]
    window: tuple[slice, slice]
    flip: bool
    colours: Jitter

    def __call__(self, image: NDArray[np.uint8], labels: NDArray[np.int64]) -> Sample:
        target = labels[self.window]
        picture = _resized(image[self.window], self.size).astype(np.float32)
        target = resized_labels(target, self.size)
        if self.flip:
            picture, target = picture[:, ::-1], target[:, ::-1]
        return np.ascontiguousarray(self.colours(picture)), np.ascontiguousarray(target)


@dataclass(frozen=True)
class Jitter:
    """Brightness, contrast, saturation and colour cast, each a little; hue, in degrees."""

    brightness: float
    contrast: float
    saturation: float
    cast: NDArray[np.float32]
    hue: float

    def __call__(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        picture = picture * self.brightness
        mean = picture.mean()
        picture = (picture - mean) * self.contrast + mean
        grey = picture.mean(axis=2, keepdims=True)
        picture = (picture - grey) * self.saturation + grey
        if self.hue:
            picture = picture @ _turn(self.hue)
        jittered: NDArray[np.float32] = np.clip(picture * self.cast, 0, 255)
        return jittered


def _draw_hue(limit: float, rng: np.random.Generator) -> float:
    return rng.uniform(-limit, limit) if limit and rng.random() < 0.5 else 0.0


def _turn(degrees: float) -> NDArray[np.float32]:
    """(3, 3), for rows of RGB on its left: turns colours about the axis of greys."""
    angle = np.deg2rad(degrees)
    cyclic = np.roll(np.eye(3), 1, axis=1)
    across = (cyclic - cyclic.T) / 3**0.5
    turned = np.cos(angle) * np.eye(3) + np.sin(angle) * across + (1 - np.cos(angle)) / 3
    return np.asarray(turned, np.float32)


def draw_squash(
    shape: tuple[int, int], size: tuple[int, int], source: DataSource, rng: np.random.Generator
) -> Squash:
    """A random crop of at least `min_scale` of the sides, flip, colour jitter."""
    height, width = shape
    scale_y, scale_x = np.clip(
        rng.uniform(source.min_scale, 1.15) * np.exp(rng.uniform(-0.15, 0.15) * np.array([1, -1])),
        0.2,
        1.0,
    )
    crop_h, crop_w = max(1, round(height * scale_y)), max(1, round(width * scale_x))
    top, left = rng.integers(height - crop_h + 1), rng.integers(width - crop_w + 1)
    return Squash(
        size,
        (slice(top, top + crop_h), slice(left, left + crop_w)),
        rng.random() < 0.5,
        Jitter(
            rng.uniform(0.75, 1.25),
            rng.uniform(0.75, 1.25),
            rng.uniform(0.6, 1.4),
            rng.uniform(0.93, 1.07, 3).astype(np.float32),
            _draw_hue(source.hue, rng),
        ),
    )


# --- published (design section 8) -----------------------------------------------------------


@dataclass(frozen=True)
class PublishedView:
    """Resized, cropped, colours as in SSD (Liu et al. 2016), perhaps flipped, padded.

    Attributes:
        resized: (H, W) before the crop.
        start: (top, left) of the crop.
        size: (h, w) of the crop; what lies outside the picture is grey and unlabelled.
    """

    resized: tuple[int, int]
    start: tuple[int, int]
    size: tuple[int, int]
    flip: bool
    colours: SsdJitter

    def __call__(self, image: NDArray[np.uint8], labels: NDArray[np.int64]) -> Sample:
        (top, left), (height, width) = self.start, self.size
        window = np.s_[top : top + height, left : left + width]
        picture = self.colours(_resized(image, self.resized)[window])
        target = resized_labels(labels, self.resized)[window]
        if self.flip:
            picture, target = picture[:, ::-1], target[:, ::-1]
        whole = np.full((height, width, 3), PADDING_VALUE, np.float32)
        known = np.full((height, width), -1, np.int64)
        whole[: target.shape[0], : target.shape[1]] = picture
        known[: target.shape[0], : target.shape[1]] = target
        return whole, known


@dataclass(frozen=True)
class SsdJitter:
    """Brightness, contrast, saturation and hue, each changed in half of the pictures.

    Attributes:
        brightness: added, in 0..255.
        contrast, saturation: factors.
        hue: added, in OpenCV's half degrees.
        contrast_first: before saturation and hue, or after.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: int
    contrast_first: bool

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        picture = _scaled(picture, 1.0, self.brightness)
        if self.contrast_first:
            picture = _scaled(picture, self.contrast)
        if self.saturation != 1 or self.hue:
            hsv = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2HSV), np.uint8)
            hsv[..., 0] = (hsv[..., 0].astype(np.int16) + self.hue) % 180
            hsv[..., 1] = _scaled(hsv[..., 1], self.saturation)
            picture = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)
        return picture if self.contrast_first else _scaled(picture, self.contrast)


def draw_published(
    shape: tuple[int, int],
    size: tuple[int, int],
    source: DataSource,  # noqa: ARG001 - one way for all
    rng: np.random.Generator,
) -> PublishedView:
    """The short side resized to the crop's, a random crop, colour jitter as in SSD, flip."""
    factor = min(size) / min(shape)
    height, width = (max(min(size), round(side * factor)) for side in shape)
    top = int(rng.integers(max(0, height - size[0]) + 1))
    left = int(rng.integers(max(0, width - size[1]) + 1))
    changed = rng.random(4) < 0.5
    drawn = (rng.uniform(-32, 32), rng.uniform(0.5, 1.5), rng.uniform(0.5, 1.5))
    brightness, contrast, saturation = np.where(changed[:3], drawn, (0.0, 1.0, 1.0)).tolist()
    hue = int(rng.integers(-18, 19)) if changed[3] else 0
    colours = SsdJitter(brightness, contrast, saturation, hue, bool(rng.random() < 0.5))
    return PublishedView((height, width), (top, left), size, bool(rng.random() < 0.5), colours)


DRAW_VIEW: dict[Augmentation, DrawView] = {"squash": draw_squash, "published": draw_published}


# --- both -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Degradation:
    """What lenses, sensors and files do to a picture, in this order.

    Attributes:
        blur: standard deviation of a Gaussian, in pixels; 0 = none.
        noise: standard deviation, in 0..255, of each channel's own noise; 0 = none.
        noise_seed: of that noise.
        jpeg_quality: 1..100; None = not compressed.
    """

    blur: float
    noise: float
    noise_seed: int
    jpeg_quality: int | None

    def __call__(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        """(H, W, 3) float32 RGB 0..255 → the same, degraded."""
        if self.blur:
            picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), self.blur), np.float32)
        if self.noise:
            rng = np.random.default_rng(self.noise_seed)
            noise = rng.standard_normal(picture.shape, np.float32) * np.float32(self.noise)
            picture = np.clip(picture + noise, 0, 255)
        if self.jpeg_quality is not None:
            quality = [cv2.IMWRITE_JPEG_QUALITY, self.jpeg_quality]
            # in OpenCV's own order of colours: JPEG keeps green better than blue
            bgr = cv2.cvtColor(np.rint(picture).astype(np.uint8), cv2.COLOR_RGB2BGR)
            _, file = cv2.imencode(".jpg", bgr, quality)
            picture = np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR_RGB), np.float32)
        return picture


def draw_degradation(share: float, rng: np.random.Generator) -> Degradation | None:
    """Of `share` of the pictures half are blurred, most noisy, half compressed; some neither."""
    # nothing is drawn in vain: recipes of before there was this setting go on as they began
    if not share:
        return None
    degraded = rng.random() < share
    blurred, noisy, compressed = rng.random(3) < (0.5, 0.7, 0.5)
    blur, noise = rng.uniform(0.4, 1.6), rng.uniform(2, 20)
    seed, quality = int(rng.integers(2**32)), int(rng.integers(20, 95))
    if not degraded:
        return None
    return Degradation(
        blur if blurred else 0.0, noise if noisy else 0.0, seed, quality if compressed else None
    )


def _resized(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    shrinks = image.shape[0] * image.shape[1] > size[0] * size[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size[::-1], interpolation=how), np.uint8)


def resized_labels(
    labels: NDArray[np.int64] | NDArray[np.bool_], size: tuple[int, int]
) -> NDArray[np.int64]:
    """(H, W) → (h, w): of each of the new pixels the label at its middle."""
    narrow = labels.astype(np.int16)
    resized = cv2.resize(narrow, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(resized, np.int64)


def _scaled(values: NDArray[np.uint8], factor: float, offset: float = 0.0) -> NDArray[np.uint8]:
    if factor == 1 and offset == 0:
        return values
    scaled = np.clip(values.astype(np.float32) * factor + offset, 0, 255)
    return np.asarray(scaled, np.uint8)
