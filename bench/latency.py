"""Where the time of one picture goes, stage by stage, picture in memory to label map.

    python bench/latency.py [--model errseg-mini] [--classes 150] [--size 480x640 …] [--json]

Medians over repeats after a warm-up, on `--threads` CPU threads, float32. errseg-base and
errseg-large run with random weights where no `--weights` is given: the arithmetic is the same.
The bound to compare with is the image encoder, which nothing can skip.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import errseg.inference
import errseg.model.err_seg
from errseg.config import PRESETS
from errseg.model.err_seg import ErrSeg
from errseg.model.text_encoder import embed_classes
from errseg.vocabulary import load_vocabulary
from errseg.weights import load_named_model

STAGES = ("preprocess", "encoder", "cost", "crm", "escf", "decoder", "resize")


class Clock:
    """Seconds by stage, of parts of the model that it is told to watch."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def watch(self, part: nn.Module, stage: str) -> None:
        started: list[float] = []

        def before(*_: object) -> None:
            started.append(time.perf_counter())

        def after(*_: object) -> None:
            self.seconds[stage] += time.perf_counter() - started.pop()

        part.register_forward_pre_hook(before)
        part.register_forward_hook(after)

    def timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds[stage] += time.perf_counter() - start
            return result

        return run


def watch(model: ErrSeg) -> Clock:
    clock = Clock()
    clock.watch(model.image_encoder, "encoder")
    clock.watch(model.cost_embedding, "cost")
    for layer in model.context_fusion:
        clock.watch(layer, "escf")
    clock.watch(model.decoder, "decoder")
    model_part: Any = errseg.model.err_seg
    model_part.cosine_cost = clock.timed(model_part.cosine_cost, "cost")
    model_part.count_votes = clock.timed(model_part.count_votes, "crm")
    model_part.select_classes = clock.timed(model_part.select_classes, "crm")
    inference: Any = errseg.inference
    inference.preprocess = clock.timed(inference.preprocess, "preprocess")
    inference.best_class = clock.timed(inference.best_class, "resize")
    return clock


def measure(
    model: ErrSeg, clock: Clock, text: torch.Tensor, size: str, repeats: int
) -> dict[str, float]:
    height, width = map(int, size.split("x"))
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    rows: list[dict[str, float]] = []
    for repeat in range(repeats + 2):
        clock.seconds.clear()
        start = time.perf_counter()
        errseg.inference.segment(model, [image], text)
        whole = time.perf_counter() - start
        if repeat >= 2:
            rows.append({**clock.seconds, "whole": whole})
    result = {
        name: statistics.median(row.get(name, 0.0) for row in rows) for name in (*STAGES, "whole")
    }
    result["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="errseg-mini")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--classes", type=int, default=150, help="T, names of ADE20K-847")
    parser.add_argument("--size", nargs="+", default=["480x640"], help="HxW of the pictures")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.weights is None and options.model != "errseg-mini":
        model = ErrSeg(PRESETS[options.model]).eval()
    else:
        model = load_named_model(options.model, options.weights)
    names = load_vocabulary("ade20k-847").synonyms[: options.classes]
    with torch.inference_mode():
        start = time.perf_counter()
        text = embed_classes(model.text_encoder, names, model.config.prompt)
        text_seconds = time.perf_counter() - start
    clock = watch(model)
    results = {size: measure(model, clock, text, size, options.repeats) for size in options.size}
    if options.json:
        print(json.dumps({**results, f"text_{options.classes}": text_seconds}, indent=2))
        return
    print(f"{options.model}, T = {options.classes}, {options.threads} threads")
    print(f"text embeddings, once: {text_seconds:.2f} s")
    for size, row in results.items():
        print(
            f"{size}: whole {row['whole']:.3f} s, {row['whole'] / row['encoder']:.2f} x encoder, "
            f"peak {row['peak_gb']:.2f} GB"
        )
        for stage in STAGES:
            print(f"  {stage:11} {row[stage]:7.4f} s  {100 * row[stage] / row['whole']:5.1f} %")


if __name__ == "__main__":
    main()
