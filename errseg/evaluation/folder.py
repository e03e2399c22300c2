"""Measure a model on a labelled folder."""

from __future__ import annotations

import numpy as np
import torch

from errseg.datasets import LabelledFolder, read_pair
from errseg.evaluation.metrics import ConfusionMatrix, Metrics, metrics
from errseg.inference import segment
from errseg.model.err_seg import ErrSeg
from errseg.model.text_encoder import embed_classes


def evaluate_folder(model: ErrSeg, folder: LabelledFolder, limit: int = 0) -> Metrics:
    """Segment the folder's pictures with its own class list and compare.

    Args:
        limit: evenly spaced pictures to measure on; 0 = all.
    """
    pairs = folder.pairs
    if 0 < limit < len(pairs):
        pairs = tuple(pairs[i * len(pairs) // limit] for i in range(limit))
    with torch.inference_mode():
        text = embed_classes(model.text_encoder, folder.vocabulary.synonyms, model.config.prompt)
    matrix = ConfusionMatrix(len(folder.vocabulary))
    for pair in pairs:
        image, truth = read_pair(pair)
        labels, _ = segment(model, [image], text.to(model.mean.device))[0]
        matrix.update(truth, labels.astype(np.int64))
    return metrics(matrix)
