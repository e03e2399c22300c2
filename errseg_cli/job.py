"""What `errseg run` was asked to do, checked without the model: wrong usage is told at once."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from errseg.catalogue import file_hash, find_weights
from errseg.errors import DeviceError, UsageError
from errseg_cli.downloading import downloaded
from errseg_cli.options import parse_keep, parse_window, whole_number

if TYPE_CHECKING:
    from errseg.config import Keep as Budget
    from errseg.outputs import Medium
    from errseg.read_options import ReadOptions
    from errseg.records import Failure
    from errseg.sources import SourceFile
    from errseg.vocabulary import Vocabulary

NO_OUTPUTS = "none"


@dataclass(frozen=True)
class RunOptions:
    """What decides the results of a run, as the user gave it."""

    inputs: list[str]
    classes: str
    out: Path
    outputs: str
    overwrite: bool
    resume: bool
    opacity: float
    model: str | None
    weights: Path | None
    device: str
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    compiled: bool
    batch_size: str
    max_pixels: int
    keep: str
    threshold: float
    synonyms: Literal["mean", "first"]
    window: str
    steady: float
    every: int
    fps: float | None
    start: float
    end: float | None
    video_labels: Literal["png", "ffv1"]
    shard: str | None
    null: bool


@dataclass(frozen=True)
class Job:
    """The options checked, and what they name found.

    Attributes:
        identity: everything that decides the results, by what the user calls it.
        weights, weights_hash: the file that the model is read from, and its SHA-256.
        keep, window, batch_size: parsed; None as by default, "auto" to be found out.
        resuming: OUT holds a run that is to be continued.
    """

    options: RunOptions
    vocabulary: Vocabulary
    sources: list[SourceFile]
    failures: list[Failure]
    kinds: list[str]
    identity: dict[str, object]
    weights: Path
    weights_hash: str
    keep: Budget
    window: int | Literal["auto"] | None
    batch_size: int | Literal["auto"] | None
    reading: ReadOptions
    resuming: bool

    @property
    def video_medium(self) -> Medium:
        return "ffv1" if self.options.video_labels == "ffv1" else "video"


def prepare(options: RunOptions, *, quiet: bool) -> Job:
    """Check everything that can be checked without the model; download its weights where needed.

    Args:
        quiet: say nothing of a download.

    Raises:
        UsageError, WeightsError: what was asked cannot be done; nothing was written.
    """
    _check_values(options)
    keep = parse_keep(options.keep)
    window = parse_window(options.window)
    batch_size = whole_number("--batch-size", options.batch_size, "auto", "default")
    weights = find_weights(options.model, options.weights)
    # After the checks that need no numpy, in the order in which a person would correct them.
    from errseg.outputs import RUN_FILE, plan_outputs, refuse_leftovers
    from errseg.read_options import ReadOptions
    from errseg.resume import refuse_other_run
    from errseg.vocabulary import load_vocabulary

    kinds = [kind.strip() for kind in options.outputs.split(",")]
    kinds = [] if kinds == [NO_OUTPUTS] else kinds
    vocabulary = load_vocabulary(options.classes)
    sources, failures = _find(options)
    resuming = options.resume and bool(kinds) and (options.out / RUN_FILE).is_file()
    if kinds:
        names = [source.source for source in sources]
        mediums = _Mediums(sources, "ffv1" if options.video_labels == "ffv1" else "video")
        plan_outputs(options.out, names, kinds, options.overwrite or resuming, mediums)
        if options.overwrite:
            refuse_leftovers(options.out, names, kinds, vocabulary.hash, mediums)
    weights = weights or downloaded(options.model, quiet=quiet)
    weights_hash = file_hash(weights)
    identity = _identity(options, kinds, vocabulary, weights_hash)
    if resuming:
        refuse_other_run(options.out, identity)
    return Job(
        options=options,
        vocabulary=vocabulary,
        sources=sources,
        failures=failures,
        kinds=kinds,
        identity=identity,
        weights=weights,
        weights_hash=weights_hash,
        keep=keep,
        window=window,
        batch_size=None
        if batch_size == "default"
        else "auto"
        if batch_size == "auto"
        else int(batch_size),
        reading=ReadOptions(
            options.max_pixels, options.every, options.fps, options.start, options.end
        ),
        resuming=resuming,
    )


class _Mediums:
    """What each source is, or may turn out to be."""

    def __init__(self, sources: Sequence[SourceFile], video: Medium) -> None:
        self._sources = {source.source: source for source in sources}
        self._video = video

    def __call__(self, name: str) -> Sequence[Medium]:
        source = self._sources[name]
        if source.is_video:
            return (self._video,)
        return ("picture",) if source.is_picture else ("picture", self._video)


def _find(options: RunOptions) -> tuple[list[SourceFile], list[Failure]]:
    from errseg.sources import find_sources, parse_shard, shard

    part = None if options.shard is None else parse_shard(options.shard)
    listed = _listed_paths(options.null) if "-" in options.inputs else None
    exclude = None if options.outputs == NO_OUTPUTS else options.out
    sources, failures = find_sources(options.inputs, listed=listed, exclude=exclude)
    return (sources, failures) if part is None else (shard(sources, *part), failures)


def _identity(
    options: RunOptions, kinds: Sequence[str], vocabulary: Vocabulary, weights_hash: str
) -> dict[str, object]:
    return {
        "the weights": weights_hash,
        "--classes": vocabulary.hash,
        "--outputs": ",".join(sorted(kinds)),
        "--opacity": options.opacity,
        "--threshold": options.threshold,
        "--keep": options.keep,
        "--synonyms": options.synonyms,
        "--precision": options.precision,
        "--compile": options.compiled,
        "--batch-size": options.batch_size,
        "--window": options.window,
        "--steady": options.steady,
        "--every": options.every,
        "--fps": options.fps,
        "--start": options.start,
        "--end": options.end,
        "--video-labels": options.video_labels,
    }


def _check_values(options: RunOptions) -> None:
    shares = {
        "--opacity": options.opacity,
        "--threshold": options.threshold,
        "--steady": options.steady,
    }
    for name, share in shares.items():
        if math.isnan(share) or not 0 <= share <= 1:
            raise UsageError(f"{name} is {share}; it must lie between 0 and 1.")
    for name, count in (("--every", options.every), ("--max-pixels", options.max_pixels)):
        if count < 1:
            raise UsageError(f"{name} is {count}; it must be at least 1.")
    if options.fps is not None and not 0 < options.fps < math.inf:
        raise UsageError(f"--fps is {options.fps}; it must be more than 0.")
    if options.every > 1 and options.fps is not None:
        raise UsageError("--every and --fps were both given; choose one.")
    if not 0 <= options.start < math.inf:
        raise UsageError(f"--start is {options.start}; it must be seconds from 0 on.")
    if options.end is not None and not options.end > options.start:
        raise UsageError(f"--end is {options.end}; it must lie after --start ({options.start}).")
    if options.overwrite and options.resume:
        raise UsageError("--overwrite starts anew and --resume goes on; choose one.")
    if options.null and "-" not in options.inputs:
        raise UsageError("-0 is for a list of paths on standard input; give - as the input.")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", options.device):
        raise DeviceError(
            f"--device is {options.device!r}; it must be auto, cpu, cuda, cuda:N or mps."
        )


def _listed_paths(null: bool) -> Iterator[str] | None:
    from errseg.sources import split_list

    return None if sys.stdin is None else split_list(sys.stdin.buffer, null)
