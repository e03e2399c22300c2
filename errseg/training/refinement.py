"""Sharper label maps for pictures of which one class is known (ImageNet samples).

The ImageNet classifier says where the class is, coarsely: at the most telling part, and beyond its
outline. A model that has learnt to segment, told the class and what else a picture may show, sees
the whole thing; where both agree is the start for GrabCut (Rother et al. 2004), which finds the
outline in the picture's own colours. The next run learns from the result: self-training, as in
"noisy student" (Xie et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from errseg.datasets import UNLABELLED_16BIT, open_folder, read_pair
from errseg.encoding import label_png_bytes
from errseg.files import write_bytes_atomic
from errseg.inference import segment
from errseg.model.err_seg import ErrSeg
from errseg.model.text_encoder import embed_classes
from errseg.records import ImageArray, LabelMap
from errseg.training.augmentation import resized_labels
from errseg.training.pseudo_labels import begin_labels
from errseg.weights import load_model

SURROUNDINGS = (
    ("sky",),
    ("tree",),
    ("grass",),
    ("person",),
    ("water", "sea"),
    ("road", "pavement"),
    ("building",),
    ("wall",),
    ("floor",),
    ("sand",),
    ("rock", "mountain"),
    ("snow",),
    ("plant", "leaves"),
    ("table",),
    ("fence",),
)
"""What may be around the thing: a region is the thing's only if it looks less like these."""

LONG_SIDE = 320
"""Pixels of the picture that GrabCut works on."""
GRABCUT_ROUNDS = 3
SURE_WIDTH = 9
"""Pixels; nearer than half of it to the outline nothing is sure."""
DOUBT_WIDTH = 5
"""Pixels of the stripe along the new outline that stay unlabelled, half of them inside."""
LEAST_AGREED = 0.15
"""Of the classifier's region; where the model agrees with less of it, the labels stay…"""
LEAST_AGREED_OF_PICTURE = 0.005
"""…as where that is less than this share of the picture."""
LEAST_SURROUNDINGS = 0.02
"""Of the picture: with less, GrabCut has nothing to tell the thing from."""
LEAST_KEPT = 0.5
"""IoU of GrabCut's region with the model's; with less it went astray."""

Mask = NDArray[np.bool_]
Segment = Callable[[Sequence[ImageArray]], Sequence[LabelMap]]


def refine_labels(weights: Path, coarse: Path, out: Path) -> Path:
    """Label the pictures of the data set `coarse` anew and write a data set to `out`.

    Takes half a second a picture on two CPU cores; label maps that are there already are left
    alone.

    Args:
        weights: of the model that segments the pictures.
        coarse: a data set with one class in each label map, in 16-bit files.
        out: gets `images` (a link), `labels/NAME.png` (16-bit) and `classes.txt`.

    Returns:
        `out`.

    Raises:
        ConfigError: `coarse` is no data set.
        InputError: a pair of it cannot be read.
        WeightsError: there are no such weights.
    """
    classes = out / "classes.txt"
    if classes.is_file():
        return out
    folder = open_folder(coarse)
    model = load_model(weights)
    prompt = model.config.prompt
    with torch.inference_mode():
        things = embed_classes(model.text_encoder, folder.vocabulary.synonyms, prompt)
        around = embed_classes(model.text_encoder, SURROUNDINGS, prompt)
    begin_labels(coarse, out)
    for pair in folder.pairs:
        target = out / "labels" / pair[1].name
        if target.exists():
            continue
        image, labels = read_pair(folder, pair)
        known = labels >= 0
        refined = np.full(labels.shape, UNLABELLED_16BIT, np.uint16)
        if known.any():
            class_id = int(labels[known][0])
            text = torch.cat([things[class_id : class_id + 1], around])
            refined[refine(partial(_labels, model, text), image, known)] = class_id
        write_bytes_atomic(target, label_png_bytes(refined, None))
    write_bytes_atomic(classes, (coarse / "classes.txt").read_bytes())
    return out


def _labels(model: ErrSeg, text: Tensor, images: Sequence[ImageArray]) -> list[LabelMap]:
    return [labels for labels, _ in segment(model, images, text)]


def refine(find: Segment, image: ImageArray, coarse: Mask) -> Mask:
    """Where a thing is, if it can be told better than `coarse` says.

    Args:
        find: pictures in, label maps out; the thing is class 0, the others may be around it.
        image: (H, W, 3) uint8 RGB.
        coarse: (H, W), where the thing is known to be, more or less.

    Returns:
        (H, W), a stripe along the outline left out; or `coarse`, where `find` sees something else.
    """
    height, width = coarse.shape
    scale = min(1.0, LONG_SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    small = np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    known = resized_labels(coarse, size) > 0
    plain, mirrored = find([small, np.ascontiguousarray(small[:, ::-1])])
    views = np.stack([plain, mirrored[:, ::-1]]) == 0
    surely, perhaps = views.all(axis=0), views.any(axis=0)
    agreed = surely & known
    if agreed.sum() < max(LEAST_AGREED * known.sum(), LEAST_AGREED_OF_PICTURE * known.size):
        return coarse
    region = _outlined(small, surely, perhaps, known)
    return resized_labels(_eroded(region, DOUBT_WIDTH), (height, width)) > 0


def _outlined(image: ImageArray, surely: Mask, perhaps: Mask, known: Mask) -> Mask:
    """The thing's region, by the model in all views and in any, and by the classifier."""
    agreed = surely & known
    if (~perhaps).mean() < LEAST_SURROUNDINGS:
        return surely
    seeds = np.full(agreed.shape, cv2.GC_PR_BGD, np.uint8)
    seeds[~_dilated(perhaps | known, SURE_WIDTH)] = cv2.GC_BGD
    seeds[perhaps] = cv2.GC_PR_FGD
    seeds[_eroded(agreed, SURE_WIDTH)] = cv2.GC_FGD
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(bgr, seeds, None, *models, GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
    region: Mask = (seeds == cv2.GC_FGD) | (seeds == cv2.GC_PR_FGD)
    overlap = (region & perhaps).sum() / (region | perhaps).sum()
    return region if overlap >= LEAST_KEPT else agreed


def _eroded(mask: Mask, width: int) -> Mask:
    return np.asarray(cv2.erode(mask.astype(np.uint8), np.ones((width, width))), np.bool_)


def _dilated(mask: Mask, width: int) -> Mask:
    return np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((width, width))), np.bool_)
