"""Losses against the obvious way to write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from errseg.model.err_seg import DROPPED_LOGIT, Prediction
from errseg.training.loss import classes_present, cost_loss, segmentation_loss

CLASSES = 5


def example() -> tuple[Prediction, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    kept = torch.tensor([[0, 2, 4], [1, 2, 3]])
    labels = torch.stack([kept[i][torch.randint(3, (16, 16), generator=generator)] for i in (0, 1)])
    labels[:, :5] = -1
    logits = torch.randn(2, 3, 4, 4, generator=generator)
    return Prediction(logits, kept, torch.randn(2, 1, 1, CLASSES, generator=generator)), labels


def test_as_published_over_all_t_channels() -> None:
    prediction, labels = example()
    full = torch.full((2, CLASSES, 4, 4), DROPPED_LOGIT)
    for picture in range(2):
        full[picture, prediction.classes[picture]] = prediction.logits[picture]
    target = labels[:, 2::4, 2::4]
    total = 0.0
    for picture in range(2):
        for y in range(4):
            for x in range(4):
                if target[picture, y, x] < 0:
                    continue
                hot = F.one_hot(target[picture, y, x], CLASSES).float()
                total += float(
                    F.binary_cross_entropy_with_logits(full[picture, :, y, x], hot, reduction="sum")
                )
    ours = segmentation_loss(prediction, labels, CLASSES, mask_ignored=False)
    torch.testing.assert_close(float(ours), total / (2 * CLASSES * 16))


def test_masked_mean_leaves_unlabelled_pixels_out() -> None:
    prediction, labels = example()
    masked = segmentation_loss(prediction, labels, CLASSES, mask_ignored=True)
    assert float(masked) > float(segmentation_loss(prediction, labels, CLASSES, mask_ignored=False))
    nothing = segmentation_loss(prediction, torch.full_like(labels, -1), CLASSES, mask_ignored=True)
    assert float(nothing) == 0.0


def test_cost_loss_prefers_the_true_class() -> None:
    labels = torch.zeros(1, 32, 32, dtype=torch.int64)
    right = torch.tensor([0.9, 0.1]).expand(1, 2, 2, 2)
    assert float(cost_loss(right, labels, 0.1)) < float(cost_loss(right.flip(-1), labels, 0.1))
    assert float(cost_loss(right, torch.full_like(labels, -1), 0.1)) == 0.0


def test_classes_present() -> None:
    labels = torch.tensor([[[0, 2], [-1, -1]], [[1, 1], [1, 1]]])
    assert classes_present(labels, 3).tolist() == [[True, False, True], [False, True, False]]
