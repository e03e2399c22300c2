"""What a run looks like: curves of its figures, and validation pictures with their labels."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from errseg.datasets import LabelledFolder, read_pair
from errseg.evaluation.folder import chosen_pairs, segmenter_of
from errseg.figures import new_figure, png_of
from errseg.files import write_bytes_atomic
from errseg.model.err_seg import ErrSeg
from errseg.records import UNLABELLED, ImageArray, Segmentation
from errseg.render import overlay

AnyPixel = TypeVar("AnyPixel", np.uint8, np.uint16)

CURVES_DOTS_PER_INCH = 110
SAMPLE_HEIGHT = 320
"""Pixels."""
GAP = 6
"""Pixels between samples."""
SMOOTHED_SHARE = 50
"""A smoothed loss is a mean over this part of the steps."""


# --- curves ---------------------------------------------------------------------------------


def draw_curves(metrics: Path, out: Path) -> None:
    """Loss, and the mIoU of the validations, over the steps of a `metrics.csv`.

    Needs matplotlib.

    Args:
        metrics: with a column `step`.
        out: gets a PNG, whole or not at all.
    """
    columns = _columns(metrics)
    losses = {name: of for name, of in columns.items() if name.endswith("loss") and len(of[0])}
    measured = {name: of for name, of in columns.items() if name.startswith("miou_") and len(of[0])}
    rows = len(losses) + bool(measured)
    figure = new_figure(9, 3.4 * rows)
    axes = figure.subplots(rows, 1, squeeze=False, sharex=True)[:, 0]
    for axis, (name, (steps, values)) in zip(axes, losses.items(), strict=False):
        window = len(values) // SMOOTHED_SHARE
        if window < 2:
            axis.plot(steps, values, label="each step")
        else:
            axis.plot(steps, values, color="0.8", linewidth=0.8, label="each step")
            smooth = np.convolve(values, np.full(window, 1 / window), "valid")
            middles = steps[window // 2 :][: len(smooth)]
            axis.plot(middles, smooth, label=f"mean of {window} steps")
        # the first steps may be far above all others, and would flatten them
        low, high = values.min(), np.percentile(values, 99)
        margin = 0.1 * (high - low) + 1e-9
        axis.set(ylabel=name.replace("_", " "), ylim=(low - margin, high + margin))
    for name, (steps, values) in measured.items():
        axes[-1].plot(steps, 100 * values, marker="o", label=name.removeprefix("miou_"))
    if measured:
        axes[-1].margins(y=0.15)
        axes[-1].set_ylabel("mIoU (%)")
        axes[-1].set_ylim(bottom=0)
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    write_bytes_atomic(out, png_of(figure, CURVES_DOTS_PER_INCH))


def _columns(metrics: Path) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Per column its steps and values; cells that were not measured are left out."""
    with metrics.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for name in rows[0] if rows else ():
        pairs = [(float(row["step"]), float(row[name])) for row in rows if row[name]]
        table = np.array(pairs).reshape(-1, 2)
        table = table[np.isfinite(table[:, 1])]
        found[name] = (table[:, 0], table[:, 1])
    return found


# --- samples --------------------------------------------------------------------------------


def draw_samples(model: ErrSeg, folders: Sequence[LabelledFolder], per_set: int, out: Path) -> None:
    """Evenly spaced pictures of each set, one below the other.

    A row holds the picture, its true labels and the model's.

    Args:
        out: gets a JPEG, whole or not at all.
    """
    rows = [row for folder in folders for row in _rows(model, folder, per_set)]
    width = max(row.shape[1] for row in rows)
    padded = [_padded(row, (row.shape[0] + GAP, width)) for row in rows]
    sheet = cv2.cvtColor(np.concatenate(padded)[:-GAP], cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, 90])
    write_bytes_atomic(out, encoded.tobytes())


def _rows(model: ErrSeg, folder: LabelledFolder, count: int) -> Iterator[ImageArray]:
    vocabulary = folder.vocabulary
    segmenter = segmenter_of(model, folder)
    for pair in chosen_pairs(folder, count):
        image, truth = read_pair(folder, pair)
        found = segmenter(image)
        predicted, scores = found.labels, found.scores
        true = np.where(truth < 0, UNLABELLED, truth).astype(np.uint16)
        # shrunk first: the names on the overlays are then all of one size
        image, true, predicted = _at_height(image), _at_height(true), _at_height(predicted)
        overlays = [
            overlay(image, Segmentation(labels, scores, vocabulary.names), vocabulary.colours)
            for labels in (true, predicted)
        ]
        size = (image.shape[0], image.shape[1] + GAP)
        row = np.concatenate([_padded(part, size) for part in (image, *overlays)], axis=1)
        yield row[:, :-GAP]


def _at_height(part: NDArray[AnyPixel]) -> NDArray[AnyPixel]:
    """A picture or a label map, resized to the samples' height."""
    size = (max(1, round(part.shape[1] * SAMPLE_HEIGHT / part.shape[0])), SAMPLE_HEIGHT)
    how = cv2.INTER_AREA if part.ndim == 3 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(part, size, interpolation=how), part.dtype)


def _padded(image: ImageArray, size: tuple[int, int]) -> ImageArray:
    """White to the right and below."""
    whole = np.full((*size, 3), 255, np.uint8)
    whole[: image.shape[0], : image.shape[1]] = image
    return whole
