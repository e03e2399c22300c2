"""Where the time of one picture goes, stage by stage, picture in memory to label map.

    python bench/latency.py [--model errseg-base] [--classes 847] [--size 480x640 …] [--json]

Medians of interleaved runs after a warm-up, on `--threads` CPU threads, float32. errseg-base and
errseg-large run with random weights where no `--weights` is given: the arithmetic is the same.
The bound to compare with is the image encoder, which nothing can skip. `--batch 4` times so many
pictures at once beside one at a time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

from errseg.process import prepare_process

prepare_process()

import torch

from errseg.benchmark import Latency, Subject, latencies
from errseg.config import PRESETS
from errseg.model.err_seg import ErrSeg
from errseg.model.text_encoder import embed_classes
from errseg.stages import STAGES
from errseg.vocabulary import load_vocabulary
from errseg.weights import load_named_model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="errseg-base")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--classes", type=int, default=847, help="T, names of ADE20K-847")
    parser.add_argument("--size", nargs="+", default=["480x640", "1024x2048"], help="HxW")
    parser.add_argument("--batch", type=int, help="also time so many pictures at once")
    parser.add_argument("--keep", choices=["auto", "published"], default="published")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.weights is None and options.model != "errseg-mini":
        torch.manual_seed(0)
        model = ErrSeg(PRESETS[options.model]).eval()
    else:
        model = load_named_model(options.model, options.weights)
    names = load_vocabulary("ade20k-847").synonyms[: options.classes]
    with torch.inference_mode():
        start = time.perf_counter()
        text = embed_classes(model.text_encoder, names, model.config.prompt)
        text_seconds = time.perf_counter() - start
    alone = Subject(model, text, (0, 0), keep=options.keep)
    subjects = {
        size: dataclasses.replace(alone, size=tuple(map(int, size.split("x"))))
        for size in options.size
    }
    if options.batch:
        first = subjects[options.size[0]]
        subjects[f"batch of {options.batch}"] = dataclasses.replace(first, batch=options.batch)
    timed = latencies(list(subjects.values()), options.repeats)
    results = dict(zip(subjects, timed, strict=True))
    if options.json:
        report = {name: found.figures for name, found in results.items()}
        print(json.dumps({**report, f"text_{options.classes}": text_seconds}, indent=2))
        return
    print(f"{options.model}, T = {options.classes}, {options.threads} threads")
    for name, found in results.items():
        _print(name, found)
    encoder = results[options.size[0]].stages["encoder"]
    print(f"text, first time: {text_seconds:.2f} s, {text_seconds / encoder:.2f} x encoder")
    if options.batch:
        ratio = options.batch * timed[0].whole / timed[-1].whole
        print(f"batch of {options.batch}: {ratio:.2f} x as fast per picture as one at a time")


def _print(name: str, found: Latency) -> None:
    encoder = found.stages["encoder"]
    peak = "unknown" if found.peak_gb is None else f"{found.peak_gb:.2f} GB"
    print(
        f"{name}: whole {found.whole:.3f} s, {found.whole / encoder:.2f} x encoder, "
        f"ESCF {found.stages['escf'] / encoder:.2f} x encoder, peak {peak}"
    )
    for stage in STAGES:
        seconds = found.stages[stage]
        print(f"  {stage:11} {seconds:7.4f} s  {100 * seconds / found.whole:5.1f} %")


if __name__ == "__main__":
    main()
