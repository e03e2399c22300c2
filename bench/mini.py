"""The figures of errseg-mini's model card: accuracy, names, calibration, objects, time, size.

    python bench/mini.py --data ../shared/data [--weights FILE] [--json]

Each figure is measured as the command measures it (`errseg eval`, `errseg run`). `--limit` takes
fewer pictures of each set, `--objects` fewer of the ImageNet pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

from errseg.process import prepare_process

prepare_process()

import numpy as np
import torch

from errseg import Segmenter
from errseg.catalogue import embedded_path
from errseg.datasets import open_folder
from errseg.evaluation.folder import Evaluation, evaluate, new_evaluation
from errseg.evaluation.metrics import CALIBRATION_BINS
from errseg.images import read_image
from errseg.training.mini_init import imagenet_names
from errseg.vocabulary import load_vocabulary, vocabulary_from_names

SETS = ("facade", "idd", "clothing")
SYNONYMS = Path(__file__).parents[1] / "tests" / "synonyms"
DISTRACTORS = 10
REPEATS = 15
FEW_PIXELS = 0.002
"""Of a set: bins with a smaller share of its pixels say little."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="holds train/ and val/")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--objects", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    segmenter = Segmenter(classes=["sky", "sea"], weights=options.weights, device="cpu")
    found: dict[str, object] = {}
    for name in SETS:
        folder = options.data / "val" / name
        own = measured(segmenter, folder, None, options.limit)
        other = measured(segmenter, folder, SYNONYMS / f"{name}.txt", options.limit)
        found[f"{name}: mIoU"] = own.metrics.mean_iou
        found[f"{name}: mIoU by other names"] = other.metrics.mean_iou
        found[f"{name}: probability against share right"] = calibration(own)
    found["idd: mIoU with each thing named apart"] = apart(
        segmenter, options.data / "val" / "idd", options.limit
    )
    if options.objects:
        folder = options.data / "train" / "imagenet1k-samples"
        found["objects that are the largest region"] = objects(segmenter, folder, options.objects)
    found["seconds per 640x480 picture"] = latency(segmenter, options.data)
    found["megabytes"] = (options.weights or embedded_path()).stat().st_size / 1e6
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for title, value in found.items():
        shown = f"{value:.3f}" if isinstance(value, float) else value
        print(f"{title:50} {shown}")


def measured(segmenter: Segmenter, path: Path, names: Path | None, limit: int) -> Evaluation:
    folder = open_folder(path, None if names is None else load_vocabulary(str(names)))
    segmenter.set_classes(folder.vocabulary)
    return evaluate(segmenter, folder, new_evaluation(folder), limit=limit)


def apart(segmenter: Segmenter, path: Path, limit: int) -> float:
    """mIoU where every name of a class is one of its own, and counts as the class."""
    folder = open_folder(path)
    names = [(name, index) for index, own in enumerate(folder.vocabulary.synonyms) for name in own]
    split = dataclasses.replace(
        folder,
        vocabulary=vocabulary_from_names([name for name, _ in names]),
        measured_as=tuple(index for _, index in names),
    )
    segmenter.set_classes(split.vocabulary)
    return evaluate(segmenter, split, new_evaluation(split), limit=limit).metrics.mean_iou


def calibration(evaluation: Evaluation) -> str:
    """Per filled bin: its middle, the share that is right, and ! where they are too far apart."""
    pixels, right = evaluation.calibration.pixels, evaluation.calibration.right
    as_said = evaluation.calibration.as_said()
    words = []
    for index in np.flatnonzero(pixels):
        share, low = right[index] / pixels[index], index / CALIBRATION_BINS
        mark = "" if as_said[index] else "!"
        few = "(few)" if pixels[index] < FEW_PIXELS * pixels.sum() else ""
        words.append(f"{low:.1f}:{share:.2f}{mark}{few}")
    return " ".join(words)


def objects(segmenter: Segmenter, folder: Path, count: int) -> float:
    """Share of the ImageNet pictures whose class is the largest region among ten distractors."""
    paths = sorted((folder / "images").glob("*.jpg"))
    names = imagenet_names()
    rng = np.random.default_rng(0)
    hits = 0
    chosen = [i * len(paths) // count for i in range(count)]
    for index in chosen:
        others = rng.choice(np.delete(np.arange(len(names)), index), DISTRACTORS, replace=False)
        # one name may be of two classes: the class itself comes with an id of its own
        segmenter.set_classes([names[index], *(names[i] for i in others)])
        image, _ = read_image(paths[index])
        areas = np.bincount(segmenter(image).labels.flatten(), minlength=DISTRACTORS + 1)
        hits += int(areas[: DISTRACTORS + 1].argmax()) == 0
    return hits / count


def latency(segmenter: Segmenter, data: Path) -> float:
    """Median seconds of one 640x480 picture, in memory to label map, with the facade classes."""
    folder = open_folder(data / "val" / "facade")
    segmenter.set_classes(folder.vocabulary)
    image, _ = read_image(folder.pairs[0][0])
    rows, columns = (np.arange(n) * s // n for n, s in zip((480, 640), image.shape, strict=False))
    picture = np.ascontiguousarray(image[np.ix_(rows, columns)])
    seconds = []
    for _ in range(REPEATS + 2):
        begun = time.perf_counter()
        segmenter(picture)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[2:])


if __name__ == "__main__":
    main()
