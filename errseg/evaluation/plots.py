"""Pictures of an evaluation: confusion matrix and reliability. Needs the extra `plots`."""

from __future__ import annotations

import numpy as np

from errseg.evaluation.folder import Evaluation
from errseg.figures import new_figure, png_of

NAMED_CLASSES = 80
"""With more classes their names would overlap."""

NUMBERED_CLASSES = 16
"""With more classes the percentages would not fit into their cells."""


def confusion_png(evaluation: Evaluation, title: str) -> bytes:
    """The confusion matrix as a PNG: a row per true class, shares of its pixels in percent.

    Classes without a pixel in the data set are left out.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    counts = evaluation.confusion.counts
    present = np.flatnonzero(counts.sum(axis=1))
    shares = counts[np.ix_(present, present)] / counts[present].sum(axis=1, keepdims=True)
    names = [evaluation.names[index] for index in present]
    side = float(np.clip(2.5 + 0.32 * len(names), 5, 18))
    figure = new_figure(side, side)
    axes = figure.add_subplot()
    shown = axes.imshow(shares * 100, vmin=0, vmax=100, cmap="Blues")
    axes.set_xlabel("labelled as")
    axes.set_ylabel("true class")
    axes.set_title(f"{title}: mean IoU {evaluation.metrics.mean_iou:.1%}")
    if len(names) <= NAMED_CLASSES:
        places = np.arange(len(names))
        axes.set_xticks(places, names, rotation=90)
        axes.set_yticks(places, names)
    if len(names) <= NUMBERED_CLASSES:
        for row, column in np.ndindex(*shares.shape):
            share = shares[row, column]
            colour = "white" if share > 0.6 else "black"
            axes.text(column, row, f"{share:.0%}"[:-1], ha="center", va="center", color=colour)
    figure.colorbar(shown, ax=axes, shrink=0.7, label="percent of the true class's pixels")
    return png_of(figure)


def reliability_png(evaluations: dict[str, Evaluation]) -> bytes:
    """A reliability diagram as a PNG: share of right pixels by probability, a line per data set.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure = new_figure(5.2, 5)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1)
    for name, evaluation in evaluations.items():
        pixels, right = evaluation.calibration.pixels, evaluation.calibration.right
        filled = np.flatnonzero(pixels)
        middles = (filled + 0.5) / len(pixels)
        # a dot grows with the share of the pixels that fall into its bin
        sizes = 12 + 300 * pixels[filled] / pixels.sum()
        line = axes.plot(middles, right[filled] / pixels[filled], linewidth=1)[0]
        axes.scatter(
            middles, right[filled] / pixels[filled], sizes, color=line.get_color(), label=name
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.set_xlabel("probability of the best class")
    axes.set_ylabel("share of these pixels that are right")
    for handle in axes.legend(loc="upper left").legend_handles:
        if handle is not None:
            handle.set_sizes([40])  # type: ignore[attr-defined]
    return png_of(figure)
