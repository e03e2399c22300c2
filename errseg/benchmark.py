"""How fast a model is on a device: latency by stage, memory, and what CRM and ESCF save."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from errseg.config import Keep
from errseg.inference import segment
from errseg.model.err_seg import ErrSeg
from errseg.records import ImageArray
from errseg.stages import STAGES, Stopwatch, watched

WARM_UPS = 2

_BLOBS = (9, 12)
"""Rows and columns of coloured blobs in the test picture."""


@dataclasses.dataclass(frozen=True)
class Latency:
    """What a batch of pictures takes, medians over the repeats.

    Attributes:
        stages: seconds by stage, in the order of `STAGES`.
        whole: seconds, pictures in memory to label maps.
        peak_gb: the largest memory so far in 10⁹ bytes: on CUDA devices what torch held, else what
            the process held, weights and libraries included; None where the system does not tell.
    """

    stages: dict[str, float]
    whole: float
    peak_gb: float | None

    @property
    def figures(self) -> dict[str, float | None]:
        """All of them, by name."""
        return {**self.stages, "whole": self.whole, "peak_gb": self.peak_gb}


def sample_picture(size: tuple[int, int]) -> ImageArray:
    """A picture (H, W, 3) uint8 of coloured blobs under a little noise, always the same."""
    rng = np.random.default_rng(0)
    height, width = size
    blobs = cv2.resize(
        rng.uniform(0, 255, (*_BLOBS, 3)), (width, height), interpolation=cv2.INTER_CUBIC
    )
    picture: ImageArray = (blobs + rng.normal(0, 6, (height, width, 1))).clip(0, 255).astype("u1")
    return picture


@dataclasses.dataclass
class Subject:
    """One thing to be timed.

    Attributes:
        text: (T, D) class embeddings on the model's device.
        size: (H, W) of the pictures.
        batch: pictures at once.
    """

    model: ErrSeg
    text: Tensor
    size: tuple[int, int]
    batch: int = 1
    keep: Keep = None
    precision: torch.dtype = torch.float32


def latencies(
    subjects: Sequence[Subject], repeats: int, progress: Callable[[], None] = lambda: None
) -> list[Latency]:
    """Time the subjects in turn, over and over: what else the machine does falls on all alike.

    Args:
        repeats: timed runs of each, after `WARM_UPS` untimed ones.
        progress: called after every run; there are (repeats + WARM_UPS) · len(subjects).
    """
    stages: list[list[dict[str, float]]] = [[] for _ in subjects]
    wholes: list[list[float]] = [[] for _ in subjects]
    peaks: list[float | None] = [None] * len(subjects)
    pictures = {size: sample_picture(size) for size in {subject.size for subject in subjects}}
    for turn in range(WARM_UPS + repeats):
        for index, subject in enumerate(subjects):
            device = subject.text.device
            batch = [pictures[subject.size]] * subject.batch
            seconds, whole = _timed(subject, batch, _waiter(device))
            if turn == 0:
                peaks[index] = peak_gigabytes(device)
            if turn >= WARM_UPS:
                stages[index].append(seconds)
                wholes[index].append(whole)
            progress()
    return [
        Latency(
            {name: statistics.median(one.get(name, 0.0) for one in rows) for name in STAGES},
            statistics.median(whole),
            peak,
        )
        for rows, whole, peak in zip(stages, wholes, peaks, strict=True)
    ]


def _timed(
    subject: Subject, pictures: list[ImageArray], wait: Callable[[], None]
) -> tuple[dict[str, float], float]:
    stopwatch = Stopwatch(wait)
    with watched(stopwatch):
        start = time.perf_counter()
        segment(
            subject.model, pictures, subject.text, keep=subject.keep, precision=subject.precision
        )
        wait()
        whole = time.perf_counter() - start
    return stopwatch.seconds, whole


def _waiter(device: torch.device) -> Callable[[], None]:
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    if device.type == "mps":
        return torch.mps.synchronize
    return lambda: None


def peak_gigabytes(device: torch.device) -> float | None:
    """The largest memory so far; see `Latency`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = process_memory("VmHWM")  # ru_maxrss may be that of the process that started this one
    if peak is not None:
        return peak / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # bytes on a Mac


def process_memory(field: str) -> int | None:
    """Bytes that Linux gives in a field of /proc/self/status; None on other systems."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def without(model: ErrSeg, **switches: bool | int) -> ErrSeg:
    """The same model with parts of the paper turned off by `ModelConfig`'s switches.

    For timing: what a part did is not learnt anew by the others.
    """
    config = dataclasses.replace(model.config, **switches)  # type: ignore[arg-type]
    other = ErrSeg(config).eval()
    other.load_state_dict(model.state_dict(), strict=False)
    return other.to(model.mean.device)
