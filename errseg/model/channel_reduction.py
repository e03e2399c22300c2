"""CRM — Channel Reduction Module (paper section on CRM; part of RRHC in v2). Training-free.

Each pixel votes for its three best classes; the K classes with the most votes stay.
"""

from __future__ import annotations

import torch
from torch import Tensor

RANK_VOTES = (100, 10, 1)
"""Votes for ranks 1, 2, 3: the paper's 1, 0.1, 0.01 in hundredths, so that sums are exact."""

LEAST_VOTES = 0.004
"""Share of the pixels that must have a class first, or of votes worth as much, for it to be kept
where K is chosen per picture."""


def count_votes(cost: Tensor) -> Tensor:
    """Votes of all pixels for all classes.

    Args:
        cost: (B, H, W, T) cosine similarities at stride 16.

    Returns:
        (B, T) int64, in hundredths of a rank-1 vote. Ties go to the lower class index.
    """
    batch, _, _, classes = cost.shape
    remaining = cost.flatten(1, 2).clone()
    counters = torch.zeros(batch, classes, dtype=torch.int64, device=cost.device)
    for votes in RANK_VOTES[:classes]:
        # argmax takes the first of equals; topk would take any, and names that mean the same tie
        best = remaining.argmax(dim=-1, keepdim=True)
        counters.scatter_add_(1, best.squeeze(-1), torch.full_like(best.squeeze(-1), votes))
        remaining.scatter_(-1, best, -torch.inf)
    return counters


def worthwhile(votes: Tensor, pixels: int) -> Tensor:
    """How many classes of each picture have votes enough to be worth a map.

    Not in the paper: its K depends on the vocabulary's size alone, and most pictures show fewer
    classes.

    Args:
        votes: (B, T) from `count_votes`.
        pixels: that voted.

    Returns:
        (B,) int64, at least 1.
    """
    least = LEAST_VOTES * RANK_VOTES[0] * pixels
    return (votes >= least).sum(dim=1).clamp(min=1)


def select_classes(
    votes: Tensor, keep: int, required: Tensor | None = None, counts: Tensor | None = None
) -> Tensor:
    """The classes that stay, per picture.

    Args:
        votes: (B, T) from `count_votes`.
        keep: K; at most T classes are kept.
        required: (B, T) bool, classes that win over any number of votes (those in the ground
            truth, in training).
        counts: (B,) at most K; classes of a picture beyond its count are there to fill the batch.

    Returns:
        (B, K) int64, ascending; those that fill come last. Ties go to the lower class index.
    """
    if required is not None:
        votes = votes + required.to(votes.dtype) * (votes.max() + 1)
    order = votes.sort(dim=1, descending=True, stable=True).indices[:, :keep]
    if counts is None:
        return order.sort(dim=1).values
    classes = votes.shape[1]
    fills = filling(counts, order.shape[1])
    return (order + fills * classes).sort(dim=1).values % classes


def filling(counts: Tensor, keep: int) -> Tensor:
    """(B, K) bool: which of K classes only fill the batch, given how many are each picture's."""
    return torch.arange(keep, device=counts.device) >= counts.unsqueeze(1)
