"""What `errseg run` was asked to do, checked without the model: wrong usage is told at once."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from errseg.catalogue import find_weights
from errseg.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from errseg.records import Failure
    from errseg.sources import SourceFile
    from errseg.vocabulary import Vocabulary


@dataclass(frozen=True)
class RunOptions:
    """What decides the results of a run, as the user gave it."""

    inputs: list[str]
    classes: str
    out: Path
    outputs: str
    overwrite: bool
    opacity: float
    model: str
    weights: Path | None
    device: str
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    batch_size: int | None
    max_pixels: int
    keep: str
    threshold: float
    synonyms: Literal["mean", "first"]


@dataclass(frozen=True)
class Job:
    """The options checked, and what they name found."""

    options: RunOptions
    vocabulary: Vocabulary
    sources: list[SourceFile]
    failures: list[Failure]
    kinds: list[str]
    weights: Path
    keep: int | None


def prepare(options: RunOptions) -> Job:
    """Check everything that can be checked without the model.

    Raises:
        UsageError, WeightsError: what was asked cannot be done; nothing was written.
    """
    keep = _parse_keep(options.keep)
    _check_values(options)
    weights = find_weights(options.model, options.weights)
    # After the checks that need no numpy, in the order in which a person would correct them.
    from errseg.outputs import plan_outputs, refuse_leftovers
    from errseg.sources import find_sources
    from errseg.vocabulary import load_vocabulary

    kinds = [kind.strip() for kind in options.outputs.split(",")]
    vocabulary = load_vocabulary(options.classes)
    listed = _listed_paths() if "-" in options.inputs else None
    sources, failures = find_sources(options.inputs, listed=listed, exclude=options.out)
    names = [source.source for source in sources]
    plan_outputs(options.out, names, kinds, options.overwrite)
    if options.overwrite:
        refuse_leftovers(options.out, names, kinds, vocabulary.hash)
    return Job(options, vocabulary, sources, failures, kinds, weights, keep)


def _parse_keep(text: str) -> int | None:
    if text == "auto":
        return None
    try:
        keep = int(text)
    except ValueError:
        keep = 0
    if keep < 1:
        raise UsageError(f"--keep is {text!r}; it must be auto, or a whole number of at least 1.")
    return keep


def _check_values(options: RunOptions) -> None:
    for name, share in (("--opacity", options.opacity), ("--threshold", options.threshold)):
        if math.isnan(share) or not 0 <= share <= 1:
            raise UsageError(f"{name} is {share}; it must lie between 0 and 1.")
    for name, count in (("--batch-size", options.batch_size), ("--max-pixels", options.max_pixels)):
        if count is not None and count < 1:
            raise UsageError(f"{name} is {count}; it must be at least 1.")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", options.device):
        raise DeviceError(
            f"--device is {options.device!r}; it must be auto, cpu, cuda, cuda:N or mps."
        )


def _listed_paths() -> Iterator[str] | None:
    """The lines of standard input; bytes that are not UTF-8 survive, as in all file names."""
    if sys.stdin is None:
        return None
    return (os.fsdecode(line) for line in sys.stdin.buffer)
