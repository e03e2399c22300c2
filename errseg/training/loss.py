"""Losses (design section 8)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from errseg.model.err_seg import Prediction
from errseg.model.layers import resize


def segmentation_loss(
    prediction: Prediction, labels: Tensor, class_count: int, *, mask_ignored: bool
) -> Tensor:
    """Binary cross-entropy over T channels, averaged over all elements.

    Channels that CRM dropped have logit −100 and, as the classes of the ground truth are always
    kept, target 0: their loss is 0 to rounding, so only the K kept ones are computed.

    Args:
        prediction: of the model; logits at stride 4.
        labels: (B, H, W) int64 at the model's input size, −1 = unlabelled.
        class_count: T.
        mask_ignored: average over labelled pixels and K classes; else, as in the published code,
            unlabelled pixels and dropped classes count as zeros.
    """
    # the loss is taken at stride 4: a quarter of each side is what the decoder resolves
    logits = prediction.logits
    stride = labels.shape[1] // logits.shape[2]
    target = labels[:, stride // 2 :: stride, stride // 2 :: stride]
    hot = (target.unsqueeze(1) == prediction.classes[:, :, None, None]).to(logits.dtype)
    known = (target >= 0).unsqueeze(1).to(logits.dtype)
    per_element = F.binary_cross_entropy_with_logits(logits, hot, reduction="none") * known
    if mask_ignored:
        return per_element.sum() / (known.sum().clamp(min=1) * logits.shape[1])
    return per_element.sum() / (known.numel() * class_count)


def cost_loss(cost: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the cost maps themselves, so that pixel and class embeddings align.

    Args:
        cost: (B, H16, W16, T) cosine similarities.
        labels: (B, H, W) int64, −1 = unlabelled.
    """
    size = (cost.shape[1] * 2, cost.shape[2] * 2)
    scores = resize(cost.permute(0, 3, 1, 2), size) / temperature
    stride = labels.shape[1] // size[0]
    target = labels[:, stride // 2 :: stride, stride // 2 :: stride]
    if not bool((target >= 0).any()):
        return scores.sum() * 0.0
    return F.cross_entropy(scores, target, ignore_index=-1)


def classes_present(labels: Tensor, class_count: int) -> Tensor:
    """(B, T) bool: which classes each label map holds."""
    present = torch.zeros(len(labels), class_count + 1, dtype=torch.bool, device=labels.device)
    flat = labels.flatten(1)
    present.scatter_(1, torch.where(flat < 0, class_count, flat), True)
    return present[:, :class_count]
