"""Cost maps, their embedding, and the guidance of the context fusion (design section 5).

The 7×7 conv of a level, the average of the levels, the resize and the 1×1 conv are all linear
with nothing between them, so each level runs as one 7×7 conv, 1 → C, whose weights are folded
from the published ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errseg.model.layers import Linear, resize

COST_KERNEL = 7


def cosine_cost(embedding: Tensor, text: Tensor) -> Tensor:
    """Cosine similarity of every pixel with every class.

    Args:
        embedding: (B, H, W, D) pixel embeddings, any length.
        text: (T, D), or (B, K, D) where each picture has its own classes; L2-normalised.

    Returns:
        (B, H, W, T or K), -1..1.
    """
    # float32 whatever the autocast: in half precision near classes tie, and CRM keeps others
    with torch.autocast(embedding.device.type, enabled=False):
        embedding = F.normalize(embedding.float(), dim=-1)
        if text.ndim == 2:
            return embedding @ text.T
        return torch.einsum("bhwd,bkd->bhwk", embedding, text)


class CostEmbedding(nn.Module):
    """Embeds each class's cost maps, fusing the levels."""

    def __init__(self, levels: int, cost_channels: int, channels: int) -> None:
        super().__init__()
        self.level_convs = nn.ModuleList(
            nn.Conv2d(1, cost_channels, COST_KERNEL, padding=COST_KERNEL // 2)
            for _ in range(levels)
        )
        self.fusion = nn.Conv2d(cost_channels, channels, 1)

    def _folded(self, level: int) -> tuple[Tensor, Tensor]:
        """One level's conv followed by its share of the average and the 1×1 conv."""
        conv = self.level_convs[level]
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        mixing = self.fusion.weight.flatten(1) / len(self.level_convs)
        weight = (mixing @ conv.weight.flatten(1)).unflatten(1, (1, COST_KERNEL, COST_KERNEL))
        assert self.fusion.bias is not None
        share = self.fusion.bias / len(self.level_convs)
        return weight, mixing @ conv.bias + share

    def forward(self, costs: Sequence[Tensor]) -> Tensor:
        """
        Args:
            costs: per level (B, K, Hi, Wi), the finest first.

        Returns:
            (B, K, C, H16, W16).
        """
        batch, classes, height, width = costs[0].shape
        levels = [
            resize(self._embed(level, cost), (height, width)) for level, cost in enumerate(costs)
        ]
        return sum(levels[1:], levels[0]).view(batch, classes, -1, height, width)

    def _embed(self, level: int, cost: Tensor) -> Tensor:
        """(B, K, H, W) → (B·K, C, H, W)."""
        weight, bias = self._folded(level)
        maps = cost.flatten(0, 1).unsqueeze(1)
        return F.conv2d(maps, weight, bias, padding=COST_KERNEL // 2)


class ImageGuidance(nn.Module):
    """Guidance of the spatial fusion from the features at strides 32 and 16."""

    def __init__(self, in_channels: Sequence[int], guidance_channels: int, channels: int) -> None:
        super().__init__()
        self.level_convs = nn.ModuleList(
            nn.Conv2d(width, guidance_channels, 3, padding=1) for width in in_channels
        )
        self.fusion = nn.Conv2d(guidance_channels, channels, 1)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """(B, Ci, Hi, Wi) per level → (B, C, H16, W16)."""
        levels = [
            resize(F.relu6(conv(feature)), size)
            for conv, feature in zip(self.level_convs, features, strict=True)
        ]
        guidance: Tensor = self.fusion(torch.stack(levels).mean(dim=0))
        return guidance


class TextGuidance(nn.Module):
    """Guidance of the class fusion from the text embeddings of the kept classes."""

    def __init__(self, embedding_dim: int, channels: int) -> None:
        super().__init__()
        self.proj = Linear(embedding_dim, channels)

    def forward(self, text: Tensor) -> Tensor:
        """(B, K, D) → (B, K, C)."""
        return F.gelu(self.proj(text))
