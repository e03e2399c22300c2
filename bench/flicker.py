"""How much labels flicker from frame to frame, with and without `--steady`.

    python bench/flicker.py --videos DIR --labelled FOLDER… [--strengths 0 0.5 0.7 1] [--json]

Flicker: the share of pixels whose label changes from one frame to the next, among those where
optical flow says that nothing moved (less than half a pixel). Measured on real clips, and on clips
made from labelled pictures: the picture is panned and zoomed with sub-pixel steps, under the noise
and the brightness changes of a camera, and its label map with it, so that the mean IoU is measured,
too. Pixels close to a class border are measured apart: if `--steady` lagged, it would show there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from errseg import Segmenter
from errseg.datasets import open_folder, read_pair
from errseg.evaluation.metrics import ConfusionMatrix, metrics
from errseg.read_options import ReadOptions
from errseg.records import Frame
from errseg.steady import Steadier
from errseg.videos import read_video

STREET = "person, dog, road, pavement, grass, tree, building, wall, floor, sky, door, ball, fence"
STILL_PX = 0.5
LONG_SIDE_PX = 480
EDGE_PX = 8

Image = NDArray[np.uint8]
Labels = NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path)
    parser.add_argument("--labelled", type=Path, nargs="*", default=[])
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 0.5, 0.7, 1.0])
    parser.add_argument("--frames", type=int, default=40, help="of each real clip")
    parser.add_argument("--scenes", type=int, default=5, help="of each labelled folder")
    parser.add_argument("--scene-frames", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for path in sorted(options.videos.glob("*.mp4")) if options.videos else ():
        rows += real_clip(path, options)
    for folder in options.labelled:
        rows += made_clips(folder, options)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'clip':44} {'steady':>6} {'flicker':>8} {'mIoU':>6} {'mIoU near borders':>18}")
    for row in rows:
        miou = f"{row['miou']:6.1%} {row['miou_near_borders']:18.1%}" if "miou" in row else ""
        print(f"{row['clip']:44} {row['steady']:6.1f} {row['flicker']:8.3%} {miou}")


def real_clip(path: Path, options: argparse.Namespace) -> list[dict[str, object]]:
    reader = read_video(path, path.name, ReadOptions())
    frames = [reduced(f.image) for f in islice(reader, options.frames) if isinstance(f, Frame)]
    segmenter = Segmenter(classes=STREET)
    still = [still_between(a, b) for a, b in pairwise(frames)]
    rows: list[dict[str, object]] = []
    for strength in options.strengths:
        labels = segmented(segmenter, frames, strength)
        rows.append({"clip": path.name, "steady": strength, "flicker": flicker(labels, still)})
    return rows


def made_clips(path: Path, options: argparse.Namespace) -> list[dict[str, object]]:
    folder = open_folder(path)
    segmenter = Segmenter(classes=folder.vocabulary)
    count = options.scenes
    pairs = [folder.pairs[i * len(folder.pairs) // count] for i in range(count)]
    clips = [
        list(moving(*read_pair(folder, pair), options.scene_frames, seed))
        for seed, pair in enumerate(pairs)
    ]
    rows: list[dict[str, object]] = []
    for strength in options.strengths:
        whole, moved = (ConfusionMatrix(len(folder.vocabulary)) for _ in range(2))
        shares = []
        for clip in clips:
            frames = [image for image, _ in clip]
            found = segmented(segmenter, frames, strength)
            still = [still_between(a, b) for a, b in pairwise(frames)]
            shares.append(flicker(found, still))
            # the first frames have no past yet
            for (_, truth), labels in list(zip(clip, found, strict=True))[2:]:
                whole.update(truth, labels)
                moved.update(np.where(near_borders(truth), truth, -1), labels)
        rows.append(
            {
                "clip": f"{count} scenes of {path.name}",
                "steady": strength,
                "flicker": float(np.mean(shares)),
                "miou": metrics(whole).mean_iou,
                "miou_near_borders": metrics(moved).mean_iou,
            }
        )
    return rows


def segmented(segmenter: Segmenter, frames: list[Image], strength: float) -> list[Labels]:
    steadier = Steadier(strength) if strength > 0 else None
    return [segmenter(frame, steadier=steadier).labels.astype(np.int64) for frame in frames]


def flicker(labels: list[Labels], still: list[NDArray[np.bool_]]) -> float:
    pairs = zip(labels, labels[1:], still, strict=False)
    changed = [(one != other)[where].mean() for one, other, where in pairs if where.any()]
    return float(np.mean(changed)) if changed else float("nan")


def still_between(one: Image, other: Image) -> NDArray[np.bool_]:
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (one, other)]
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = search.calc(grey[0], grey[1], np.zeros((*grey[0].shape, 2), np.float32))
    return np.asarray(np.hypot(flow[..., 0], flow[..., 1]) < STILL_PX)


def near_borders(truth: Labels) -> NDArray[np.bool_]:
    values = truth.astype(np.float32)
    kernel = np.ones((2 * EDGE_PX + 1, 2 * EDGE_PX + 1), np.uint8)
    return np.asarray(cv2.dilate(values, kernel) != cv2.erode(values, kernel))


def reduced(image: Image) -> Image:
    scale = LONG_SIDE_PX / max(image.shape)
    return np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))


def moving(image: Image, labels: Labels, count: int, seed: int) -> Iterator[tuple[Image, Labels]]:
    """A pan with a slow zoom over a picture, as a camera sees it, and the label map with it.

    Half of the scenes hold still for their first half: there, flicker is noise alone.
    """
    rng = np.random.default_rng(seed)
    height, width = labels.shape
    step = rng.uniform(-0.8, 0.8, 2)
    shift = np.zeros(2)
    for index in range(count):
        holds = seed % 2 == 0 and index < count // 2
        shift = shift if holds else shift + step
        zoom = 1.15 + 0.002 * (0 if holds else index)
        matrix = np.array(
            [
                [zoom, 0, (1 - zoom) * width / 2 + shift[0]],
                [0, zoom, (1 - zoom) * height / 2 + shift[1]],
            ]
        )
        seen = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
        truth = cv2.warpAffine(
            labels.astype(np.int16),
            matrix,
            (width, height),
            flags=cv2.INTER_NEAREST,
            borderValue=-1,
        )
        noisy = seen * rng.uniform(0.97, 1.03) + rng.normal(0, 4, seen.shape)
        yield np.clip(noisy, 0, 255).astype(np.uint8), truth.astype(np.int64)


if __name__ == "__main__":
    main()
