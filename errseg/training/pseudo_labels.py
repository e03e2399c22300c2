"""Label maps for pictures of which only the class is known (ImageNet samples).

The ImageNet classifier, read at every position instead of after pooling, says where the class is;
only positions it is sure of are labelled. The trunk keeps its 1000 classes this way while it learns
from real label maps.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from errseg.config import MINI
from errseg.datasets import UNLABELLED_16BIT
from errseg.encoding import label_png_bytes
from errseg.errors import ConfigError
from errseg.files import write_bytes_atomic
from errseg.model.image_encoder import EfficientNetLiteEncoder, build_efficientnet
from errseg.training.mini_init import imagenet_names, init_trunk, load_classifier

LONG_SIDE = 448
SURE_SHARE = 0.35
"""A position is labelled where the class's probability is at least this share of its maximum…"""
SURE_PROBABILITY = 0.2
"""…and at least this."""


def make_pseudo_labels(folder: Path, out: Path) -> Path:
    """Label the pictures of `folder/images` and write a data set to `out`.

    The n-th picture by name is of the n-th ImageNet class (names start with the synset id, whose
    order is the classifier's). Takes minutes; label maps that are there already are left alone.

    Args:
        folder: holds `images/`, one picture per ImageNet class.
        out: gets `images` (a link), `labels/NAME.png` (16-bit) and `classes.txt`.

    Returns:
        `out`.

    Raises:
        ConfigError: the folder does not hold one picture per class.
    """
    images = sorted((folder / "images").glob("*.jpg"))
    names = imagenet_names()
    if len(images) != len(names):
        raise ConfigError(f"{folder} holds {len(images)} pictures; expected one per class, 1000.")
    classes = out / "classes.txt"
    if classes.is_file():
        return out
    begin_labels(folder, out)
    tensors = load_classifier()
    encoder = build_efficientnet(MINI).eval()
    init_trunk(encoder, tensors)
    dense = encoder.make_dense_downsample().eval()
    for index, path in enumerate(images):
        target = out / "labels" / f"{path.stem}.png"
        if not target.exists():
            labels = _label(encoder, dense, (tensors[-2], tensors[-1]), path, index)
            write_bytes_atomic(target, label_png_bytes(labels, None))
    lines = [f"{index} = {', '.join(synonyms)}\n" for index, synonyms in enumerate(names)]
    classes.write_text("".join(lines), "utf-8")
    return out


def begin_labels(folder: Path, out: Path) -> None:
    """Make `out` a place for new label maps of the pictures in `folder/images`."""
    (out / "labels").mkdir(parents=True, exist_ok=True)
    if not (out / "images").exists():
        (out / "images").symlink_to((folder / "images").resolve())


@torch.inference_mode()
def _label(
    encoder: EfficientNetLiteEncoder,
    dense: torch.nn.Module,
    classifier: tuple[Tensor, Tensor],
    path: Path,
    class_id: int,
) -> NDArray[np.uint16]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ConfigError(f"cannot decode {path}.")
    height, width = image.shape[:2]
    scale = LONG_SIDE / max(height, width)
    size = [max(32, round(side * scale / 32) * 32) for side in (height, width)]
    small = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    batch = torch.from_numpy(small).permute(2, 0, 1)[None].float()
    stride16 = encoder.features((batch - MINI.mean[0]) / MINI.std[0])[2]
    probability = torch.zeros(1, 1, height, width)
    for downsample in (encoder.downsample, dense):
        wide = encoder.widen(encoder.last_stage(downsample(stride16)))
        logits = torch.einsum("kc,bchw->bkhw", classifier[0], wide)
        share = (logits + classifier[1][:, None, None]).softmax(dim=1)[:, class_id : class_id + 1]
        probability += F.interpolate(share, size=(height, width), mode="bilinear") / 2
    limit = max(float(probability.max()) * SURE_SHARE, SURE_PROBABILITY)
    sure = probability[0, 0].numpy() >= limit
    return np.where(sure, class_id, UNLABELLED_16BIT).astype(np.uint16)
