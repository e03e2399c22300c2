"""Losses against the obvious way to write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from errseg.model.err_seg import DROPPED_LOGIT, Prediction
from errseg.training.loss import (
    classes_present,
    cost_loss,
    lovasz_loss,
    segmentation_loss,
    softmax_loss,
    united,
)

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


def test_parts_of_a_class_share_its_softmax_as_they_like() -> None:
    torch.manual_seed(0)
    # parts 0, 1 are of class 0, 2 of class 1, 3, 4 of class 2; the second picture keeps none of 2
    parts_of = torch.tensor([0, 0, 1, 2, 2])
    kept = torch.tensor([[0, 1, 2, 4], [0, 2, 3, 4]])
    logits = torch.randn(2, 4, 3, 3, requires_grad=True)
    cost = torch.rand(2, 2, 2, 5)
    found = united(Prediction(logits, kept, cost), parts_of, 4, 0.1)
    assert found.logits.shape == (2, 4, 3, 3)
    assert found.classes.tolist() == [[0, 1, 2, 3]] * 2
    shares, whole = logits.softmax(dim=1), found.logits.softmax(dim=1)
    torch.testing.assert_close(whole[0, 0], shares[0, 0] + shares[0, 1])
    torch.testing.assert_close(whole[0, 1:3], shares[0, 2:])
    torch.testing.assert_close(whole[1, 2], shares[1, 2] + shares[1, 3])
    # nothing is a part of class 3
    assert (found.logits[:, 3] == DROPPED_LOGIT).all()
    expected = (cost[..., 3:].double() / 0.1).exp().sum(dim=-1).log() * 0.1
    torch.testing.assert_close(found.cost[..., 2].double(), expected, rtol=1e-5, atol=1e-6)
    # the better of two parts gets more of the gradient; no part of another class any of this
    (gradient,) = torch.autograd.grad(found.logits[0, 0].sum(), logits)
    torch.testing.assert_close(gradient[0, :2].sum(dim=0), torch.ones(3, 3))
    assert ((gradient[0, 0] > gradient[0, 1]) == (logits[0, 0] > logits[0, 1])).all()
    assert (gradient[0, 2:] == 0).all() and (gradient[1] == 0).all()


def test_classes_of_one_part_each_are_as_they_were() -> None:
    prediction, labels = example()
    same = united(prediction, torch.arange(CLASSES), CLASSES, 0.05)
    for loss in (softmax_loss, lambda p, y: segmentation_loss(p, y, CLASSES, mask_ignored=False)):
        torch.testing.assert_close(loss(same, labels), loss(prediction, labels))
    torch.testing.assert_close(
        cost_loss(same.cost, labels, 0.05), cost_loss(prediction.cost, labels, 0.05)
    )


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


def test_softmax_loss_is_the_cross_entropy_among_the_kept_classes() -> None:
    prediction, labels = example()
    target = labels[:, 2::4, 2::4]
    place = torch.full_like(target, -1)
    for picture in range(2):
        for index, class_id in enumerate(prediction.classes[picture]):
            place[picture][target[picture] == class_id] = index
    expected = F.cross_entropy(prediction.logits, place, ignore_index=-1)
    torch.testing.assert_close(softmax_loss(prediction, labels), expected)
    assert float(softmax_loss(prediction, torch.full_like(labels, -1))) == 0.0


def test_lovasz_loss_of_hard_predictions_is_one_minus_iou() -> None:
    """Where the softmax is 0 or 1, the Lovász extension is the Jaccard loss itself."""
    prediction, _ = example()
    generator = torch.Generator().manual_seed(1)
    place = torch.randint(3, (2, 4, 4), generator=generator)
    hard = F.one_hot(place, 3).permute(0, 3, 1, 2).float() * 1000
    prediction = prediction._replace(logits=hard)
    # labels of 16 × 16; the loss reads the grid (10, 10), stride 8, of the logits' grid stride 4
    labels = torch.full((2, 16, 16), -1)
    truth = torch.tensor([[[0, 2], [4, 0]], [[3, -1], [1, 3]]])
    labels[:, 2::8, 2::8] = truth
    guess = prediction.classes.gather(1, place[:, ::2, ::2].flatten(1)).view(2, 2, 2)
    guess = torch.where(truth < 0, -1, guess)
    ious = [
        float(((guess == c) & (truth == c)).sum() / ((guess == c) | (truth == c)).sum())
        for c in truth[truth >= 0].unique()
    ]
    ours = lovasz_loss(prediction, labels, CLASSES)
    torch.testing.assert_close(float(ours), 1 - sum(ious) / len(ious))
    assert float(lovasz_loss(prediction, torch.full_like(labels, -1), CLASSES)) == 0.0


def test_lovasz_loss_has_a_gradient_towards_the_truth() -> None:
    prediction, labels = example()
    logits = prediction.logits.requires_grad_()
    before = lovasz_loss(prediction, labels, CLASSES)
    before.backward()
    assert logits.grad is not None
    better = prediction._replace(logits=logits.detach() - logits.grad)
    assert float(lovasz_loss(better, labels, CLASSES)) < float(before.detach())
