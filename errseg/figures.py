"""Plots as pictures, by matplotlib: the extra `plots`, imported where something is drawn."""

from __future__ import annotations

import importlib.util
import io
from typing import TYPE_CHECKING

from errseg.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGE = "matplotlib"
DOTS_PER_INCH = 130


def can_plot() -> bool:
    """Whether the extra `plots` is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, of no window.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(PACKAGE, "plots", "drawing a plot") from error
    return Figure(figsize=(width, height), layout="constrained")


def png_of(figure: Figure, dots_per_inch: int = DOTS_PER_INCH) -> bytes:
    """A finished figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch)
    return buffer.getvalue()
