"""Losses (design section 8).

Each is a mean over a batch that several processes may share, and no mean of the processes' means
where they hold different numbers of labelled pixels. So each process divides its sum by its share
of the count over all: the average of what they return, and so of their gradients, is the loss of
the whole batch. The Lovász loss is no mean over pixels: there, all see the others' predictions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from errseg.model.err_seg import DROPPED_LOGIT, Prediction
from errseg.model.layers import resize
from errseg.training.distributed import ALONE, World


def united(
    prediction: Prediction, parts_of: Tensor, class_count: int, temperature: float
) -> Prediction:
    """What a prediction for parts of classes says of the classes.

    The logit of a class is the log of the sum of its parts' exponentials: its softmax is the sum of
    theirs. So where only the class is known, the parts may share it between them as they like.

    Args:
        prediction: of R parts.
        parts_of: (R,) int64, each part's class.
        class_count: T.
        temperature: cosine similarities are divided by this first.

    Returns:
        All T classes, in order; one without a kept part has the logit of a dropped class.
    """
    logits = prediction.logits.float()
    of_kept = parts_of[prediction.classes][:, :, None, None].expand_as(logits)
    cost = prediction.cost.permute(0, 3, 1, 2).float() / temperature
    of_all = parts_of[:, None, None].expand_as(cost)
    classes = torch.arange(class_count, device=logits.device).expand(len(logits), -1)
    united_cost = _logsumexp_by(cost, of_all, class_count) * temperature
    return Prediction(
        _logsumexp_by(logits, of_kept, class_count), classes, united_cost.permute(0, 2, 3, 1)
    )


def _logsumexp_by(values: Tensor, places: Tensor, count: int) -> Tensor:
    """(B, R, h, w) → (B, count, h, w): log of the sums of exponentials that have one place."""
    batch, _, height, width = values.shape
    shape = (batch, count, height, width)
    most = values.new_full(shape, DROPPED_LOGIT)
    most = most.scatter_reduce(1, places, values.detach(), "amax")
    shares = (values - most.gather(1, places)).exp()
    total = values.new_zeros(shape).scatter_add(1, places, shares)
    return torch.where(total > 0, most + total.clamp(min=1e-30).log(), DROPPED_LOGIT)


def segmentation_loss(
    prediction: Prediction,
    labels: Tensor,
    class_count: int,
    *,
    mask_ignored: bool,
    world: World = ALONE,
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
        world: the processes that share the batch; so in all the losses.
    """
    # the loss is taken at stride 4: a quarter of each side is what the decoder resolves
    logits = prediction.logits
    target = _subsample(labels, logits.shape[2])
    hot = (target.unsqueeze(1) == prediction.classes[:, :, None, None]).to(logits.dtype)
    known = (target >= 0).unsqueeze(1).to(logits.dtype)
    per_element = F.binary_cross_entropy_with_logits(logits, hot, reduction="none") * known
    if mask_ignored:
        return per_element.sum() / (_share_of_count(known, world) * logits.shape[1])
    return per_element.sum() / (known.numel() * class_count)


def softmax_loss(prediction: Prediction, labels: Tensor, world: World = ALONE) -> Tensor:
    """Cross-entropy over the K kept classes of each labelled pixel, which compete for it.

    Args:
        prediction: of the model; every class of `labels` is among the kept ones.
        labels: (B, H, W) int64, −1 = unlabelled.
    """
    target = _subsample(labels, prediction.logits.shape[2])
    hot = target.unsqueeze(1) == prediction.classes[:, :, None, None]
    known = target >= 0
    of_pixel = -(prediction.logits.log_softmax(dim=1) * hot).sum(dim=1)
    return of_pixel.sum() / _share_of_count(known, world)


def lovasz_loss(
    prediction: Prediction, labels: Tensor, class_count: int, world: World = ALONE
) -> Tensor:
    """Lovász-softmax (Berman et al. 2018): 1 − IoU, made convex, mean over the batch's classes.

    Taken at stride 8: the sorts cost more than they teach at stride 4. It sorts the pixels of the
    whole batch: each of several processes gathers the others' errors and computes the same loss,
    with the gradient of its own pictures.

    Args:
        prediction: of the model; every class of `labels` is among the kept ones.
        labels: (B, H, W) int64, −1 = unlabelled.
        class_count: T.
    """
    kept = prediction.logits[:, :, ::2, ::2].softmax(dim=1).flatten(2)
    target = _subsample(labels, prediction.logits.shape[2])[:, ::2, ::2].flatten(1)
    present = classes_present(target, class_count).any(dim=0)
    present = world.largest(present.int()).nonzero().flatten()
    if not len(present):
        return kept.sum() * 0.0
    batch, _, pixels = kept.shape
    classes = prediction.classes.unsqueeze(-1).expand(-1, -1, pixels)
    share = kept.new_zeros(batch, class_count, pixels).scatter(1, classes, kept)[:, present]
    truth = (target.unsqueeze(1) == present[:, None]).to(share.dtype)
    errors = (truth - share).abs() * (target >= 0).unsqueeze(1)
    # per class, over all pixels of the batch
    errors, truth = (world.gather(x).transpose(0, 1).flatten(1) for x in (errors, truth))
    errors, order = errors.sort(dim=1, descending=True)
    hits = truth.gather(1, order).cumsum(dim=1)
    total = hits[:, -1:]
    union = total + torch.arange(1, hits.shape[1] + 1, device=hits.device) - hits
    jaccard = 1 - (total - hits) / union
    steps = torch.cat([jaccard[:, :1], jaccard.diff(dim=1)], dim=1)
    loss: Tensor = (errors * steps).sum(dim=1).mean()
    return loss


def _subsample(labels: Tensor, height: int) -> Tensor:
    """Labels at the middles of a grid with `height` rows."""
    stride = labels.shape[1] // height
    return labels[:, stride // 2 :: stride, stride // 2 :: stride]


def cost_loss(cost: Tensor, labels: Tensor, temperature: float, world: World = ALONE) -> Tensor:
    """Cross-entropy of the cost maps themselves, so that pixel and class embeddings align.

    Args:
        cost: (B, H16, W16, T) cosine similarities.
        labels: (B, H, W) int64, −1 = unlabelled.
    """
    size = (cost.shape[1] * 2, cost.shape[2] * 2)
    scores = resize(cost.permute(0, 3, 1, 2), size) / temperature
    target = _subsample(labels, size[0])
    total = F.cross_entropy(scores, target, ignore_index=-1, reduction="sum")
    return total / _share_of_count(target >= 0, world)


def _share_of_count(known: Tensor, world: World) -> Tensor:
    """A process's equal share of the number of labelled pixels in the whole batch, at least 1."""
    return world.total(known.sum()).clamp(min=1) / world.size


def classes_present(labels: Tensor, class_count: int) -> Tensor:
    """(B, T) bool: which classes each label map holds."""
    present = torch.zeros(len(labels), class_count + 1, dtype=torch.bool, device=labels.device)
    flat = labels.flatten(1)
    present.scatter_(1, torch.where(flat < 0, class_count, flat), True)
    return present[:, :class_count]
