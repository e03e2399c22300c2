"""Small layers that several parts share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resize(x: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Bilinear resize of (N, C, H, W) to `size` (H, W); the tensor itself if it fits already."""
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def guided_linear(layer: nn.Linear, x: Tensor, guidance: Tensor) -> Tensor:
    """A linear over [x; guidance], where guidance has one copy and x has many.

    W [x; g] = W_x x + W_g g: the guidance's part is computed once and broadcast over axis 1.

    Args:
        x: (B, N, ..., C).
        guidance: (B, ..., G), as x without its axis 1.
    """
    width = x.shape[-1]
    of_guidance = F.linear(guidance, layer.weight[:, width:], layer.bias)
    return F.linear(x, layer.weight[:, :width]) + of_guidance.unsqueeze(1)


class DropPath(nn.Module):
    """Stochastic depth: in training, drops the whole branch of a sample with this probability.

    Attributes:
        share: (i, n): x is the i-th of n parts of a batch; what is drawn is the whole batch's.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.share = (0, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        kept = 1.0 - self.probability
        part, parts = self.share
        shape = (x.shape[0] * parts,) + (1,) * (x.ndim - 1)
        drawn = torch.empty(shape, device=x.device, dtype=x.dtype).bernoulli_(kept)
        return x * drawn.chunk(parts)[part] / kept


class GatedMLP(nn.Module):
    """ReLU6(fc1 x) · fc2 x → fc3, over the last axis."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(channels, hidden)
        self.fc3 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = self.fc3(F.relu6(self.fc1(x)) * self.fc2(x))
        return gated
