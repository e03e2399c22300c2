"""How busy the model is while a whole run goes on: pictures per second and where the time goes.

    python bench/throughput.py                    # 12-megapixel JPEGs
    python bench/throughput.py --size 480 640
    python bench/throughput.py --video FILE       # a clip

The model is busy while the loop is inside it; a share below 1 is time in which the loop waited for
a reader, a writer or the encoder. `cores` is how many cores the process kept busy on average: where
that is all there are, the machine bounds the run, and not the loop.

The stages alone (`--stages`) are measured one after the other with one thread, in CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from skimage import data

from errseg import Segmenter
from errseg.encoding import jpeg_bytes, label_png_bytes
from errseg.images import read_image
from errseg.inference import best_class, predict
from errseg.journal import Journal
from errseg.pipeline import run
from errseg.plan import Plan, Steadying
from errseg.read_options import ReadOptions
from errseg.records import Segmentation
from errseg.render import overlay
from errseg.sinks import make_sinks
from errseg.sources import find_sources
from errseg.vocabulary import load_vocabulary

CLASSES = "cat, person, coffee, rocket, sky, table, wall, floor, motorcycle, fur, brick, cup"
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(3000, 4000), metavar=("H", "W"))
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--end", type=float, help="seconds of the video")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steady", type=float, default=0.0)
    parser.add_argument("--classes", default=CLASSES)
    parser.add_argument("--stages", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1 if options.stages else options.threads)
    with tempfile.TemporaryDirectory() as work:
        found = (stages if options.stages else whole)(options, Path(work))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:28} {value:10.3f}")


def whole(options: argparse.Namespace, work: Path) -> dict[str, float]:
    """A real run, reading and writing included."""
    vocabulary = load_vocabulary(options.classes)
    segmenter = Segmenter(classes=vocabulary)
    inputs = str(options.video or pictures(work / "in", tuple(options.size), options.count))
    sources, _ = find_sources([inputs])
    out = work / "out"
    journal = Journal(out)
    plan = Plan(
        journal=journal,
        reading=ReadOptions(end_s=options.end),
        steadying=steadying(segmenter, options.steady),
    )
    sinks = make_sinks(out, vocabulary, ["overlays", "labels", "areas"])
    segmenter(np.zeros((64, 64, 3), np.uint8))
    cpu = time.process_time()
    summary = run(segmenter, vocabulary.names, sources, sinks, plan)
    cpu = time.process_time() - cpu
    journal.close()
    seconds = summary.seconds
    return {
        "frames": summary.frames,
        "frames per second": summary.frames_per_second,
        "model busy, share": seconds.model / seconds.total,
        "waiting for input, share": seconds.read / seconds.total,
        "writing in the loop, share": seconds.write / seconds.total,
        "cores": cpu / seconds.total,
        "cores there are": float(len(os.sched_getaffinity(0))),
    }


def steadying(segmenter: Segmenter, strength: float) -> Steadying | None:
    if strength == 0:
        return None
    from errseg.steady import Steadier

    return Steadying(
        lambda images, steady: segmenter(images, steadier=steady), lambda: Steadier(strength)
    )


def stages(options: argparse.Namespace, work: Path) -> dict[str, float]:
    """Each stage alone, one thread, CPU seconds a picture."""
    cv2.setNumThreads(1)
    vocabulary = load_vocabulary(options.classes)
    segmenter = Segmenter(classes=vocabulary)
    path = next(pictures(work / "in", tuple(options.size), 1).iterdir())
    image, _ = read_image(path)
    (maps,) = predict(segmenter.model, [image], segmenter.text)
    with torch.inference_mode():
        labels, scores = best_class(maps.probabilities, maps.classes, image.shape[:2])
    result = Segmentation(labels, scores, vocabulary.names)
    picture = overlay(image, result, vocabulary.colours)
    small, palette = labels.astype(np.uint8), bytes(768)
    with torch.inference_mode():
        return {
            "read": cpu_of(lambda: read_image(path)),
            "model": cpu_of(lambda: predict(segmenter.model, [image], segmenter.text)),
            "resize and argmax": cpu_of(
                lambda: best_class(maps.probabilities, maps.classes, image.shape[:2])
            ),
            "areas": cpu_of(result.areas),
            "overlay": cpu_of(lambda: overlay(image, result, vocabulary.colours)),
            "overlay as JPEG": cpu_of(lambda: jpeg_bytes(picture)),
            "labels as PNG": cpu_of(lambda: label_png_bytes(small, palette)),
        }


def cpu_of(work: Callable[[], object], repeats: int = 3) -> float:
    work()
    start = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - start) / repeats


def pictures(folder: Path, size: tuple[int, int], count: int) -> Path:
    """Real photographs enlarged, with the noise of a camera."""
    folder.mkdir(parents=True)
    for number in range(count):
        photograph = getattr(data, PHOTOGRAPHS[number % len(PHOTOGRAPHS)])()
        large = cv2.resize(photograph, size[::-1], interpolation=cv2.INTER_CUBIC)
        noise = np.zeros(large.shape, np.int8)
        cv2.randn(noise, 0, 4)
        noisy = cv2.add(large, noise, dtype=cv2.CV_8U)
        cv2.imwrite(str(folder / f"{number}.jpg"), cv2.cvtColor(noisy, cv2.COLOR_RGB2BGR))
    return folder


if __name__ == "__main__":
    main()
