"""ESCF — Efficient Semantic Context Fusion (design section 6; RRCA in the paper's v2).

Tokens stay in one layout, (B, K, H, W, C), through a layer. Guidance has one copy per picture
(spatial) or per class (class fusion) while x has K or H·W: its part of each linear over
[x; guidance] is computed once and broadcast.

Both attentions are pre-norm (LN → attention → residual). The design document leaves that LN out;
the published checkpoints hold it as `norm1`, and the reference vectors need it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from errseg.model.layers import DropPath, GatedMLP, guided_linear, resize

DEPTHWISE_KERNEL = 7


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention over (N, L, C), split into heads and joined again."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    fused: Tensor = F.scaled_dot_product_attention(query, key, value)
    return fused.transpose(1, 2).flatten(2)


class SequenceReduction(nn.Module):
    """Strided conv (kernel = stride) and layer norm: the spatial-level sequence reduction."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, stride, stride)
        self.norm = nn.LayerNorm(channels)

    def project(self, x: Tensor, inputs: slice, *, bias: bool) -> Tensor:
        """The conv's part for the input channels `inputs`.

        A conv with kernel = stride is a linear over non-overlapping patches:
        (N, H, W, C) → (N, H/s, W/s, channels).
        """
        stride = self.conv.stride[0]
        patches = x.unflatten(2, (-1, stride)).unflatten(1, (-1, stride))
        patches = patches.permute(0, 1, 3, 2, 4, 5).flatten(3)
        weight = self.conv.weight[:, inputs].permute(0, 2, 3, 1).flatten(1)
        return F.linear(patches, weight, self.conv.bias if bias else None)


class GuidedAttention(nn.Module):
    """What both attentions learn: queries and keys from [x; guidance], values from x."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(2 * channels, channels)
        self.k = nn.Linear(2 * channels, channels)
        self.v = nn.Linear(channels, channels)
        self.proj = nn.Linear(channels, channels)


class SpatialAttention(GuidedAttention):
    """Attention within one class map, over positions, keys and values at reduced resolution."""

    def __init__(self, channels: int, heads: int, stride: int) -> None:
        super().__init__(channels, heads)
        self.reduce_k = SequenceReduction(2 * channels, stride) if stride > 1 else None
        self.reduce_v = SequenceReduction(channels, stride) if stride > 1 else None

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x (B, K, H, W, C), guidance (B, H, W, C) → (B, K, H, W, C)."""
        batch, classes, height, width, channels = x.shape
        query = guided_linear(self.q, x, guidance)
        if self.reduce_k is None or self.reduce_v is None:
            key, value = guided_linear(self.k, x, guidance), self.v(x)
        else:
            maps = x.flatten(0, 1)
            of_x = self.reduce_k.project(maps, slice(channels), bias=False)
            of_guidance = self.reduce_k.project(guidance, slice(channels, None), bias=True)
            reduced = of_x.unflatten(0, (batch, classes)) + of_guidance.unsqueeze(1)
            key = self.k(self.reduce_k.norm(reduced))
            reduced = self.reduce_v.project(maps, slice(None), bias=True)
            value = self.v(self.reduce_v.norm(reduced))
        shape = (batch * classes, -1, channels)
        fused = _attend(query.reshape(shape), key.reshape(shape), value.reshape(shape), self.heads)
        out: Tensor = self.proj(fused)
        return out.view(batch, classes, height, width, channels)


class SpatialFusion(nn.Module):
    """Spatial attention, then a gated MLP with a depth-wise conv, each with a residual."""

    def __init__(self, channels: int, heads: int, hidden: int, stride: int, drop: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = SpatialAttention(channels, heads, stride)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = GatedMLP(channels, hidden)
        self.depthwise = nn.Conv2d(
            channels, channels, DEPTHWISE_KERNEL, padding=DEPTHWISE_KERNEL // 2, groups=channels
        )
        self.drop_path = DropPath(drop)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x (B, K, H, W, C), guidance (B, H, W, C) → (B, K, H, W, C)."""
        x = x + self.drop_path(self.attention(self.norm1(x), guidance))
        maps = self.mlp(self.norm2(x)).flatten(0, 1).permute(0, 3, 1, 2)
        hidden = self.depthwise(maps).permute(0, 2, 3, 1).view_as(x)
        out: Tensor = x + self.drop_path(hidden)
        return out


class ClassAttention(GuidedAttention):
    """Attention between the kept classes at one position."""

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x (B, L, K, C) with L positions, guidance (B, K, C) → (B, L, K, C)."""
        query, key = (guided_linear(layer, x, guidance) for layer in (self.q, self.k))
        value: Tensor = self.v(x)
        fused = _attend(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), self.heads)
        out: Tensor = self.proj(fused)
        return out.view_as(x)


class ClassFusion(nn.Module):
    """Class attention and gated MLP on pooled maps, upsampled and added to the input."""

    def __init__(self, channels: int, heads: int, hidden: int, pooling: int, drop: float) -> None:
        super().__init__()
        self.pooling = pooling
        self.norm1 = nn.LayerNorm(channels)
        self.attention = ClassAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = GatedMLP(channels, hidden)
        self.drop_path = DropPath(drop)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x (B, K, H, W, C), guidance (B, K, C) → (B, K, H, W, C)."""
        height, width = x.shape[2:4]
        pooled = self._pool(x)
        tokens = pooled.flatten(2, 3).transpose(1, 2)
        tokens = tokens + self.drop_path(self.attention(self.norm1(tokens), guidance))
        tokens = tokens + self.drop_path(F.relu6(self.mlp(self.norm2(tokens))))
        fused = tokens.transpose(1, 2).unflatten(2, pooled.shape[2:4])
        maps = fused.flatten(0, 1).permute(0, 3, 1, 2)
        maps = resize(maps, (height, width), align_corners=True)
        return x + maps.permute(0, 2, 3, 1).view_as(x)

    def _pool(self, x: Tensor) -> Tensor:
        if self.pooling == 1:
            return x
        maps = F.avg_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), self.pooling)
        return maps.permute(0, 2, 3, 1).view(*x.shape[:2], *maps.shape[2:], x.shape[-1])


class ContextFusionLayer(nn.Module):
    """One ESCF layer: spatial fusion, then class fusion."""

    def __init__(  # noqa: PLR0917 - the order of the config's fields
        self, channels: int, heads: int, hidden: int, stride: int, pooling: int, drop: float
    ) -> None:
        super().__init__()
        self.spatial = SpatialFusion(channels, heads, hidden, stride, drop)
        self.classes = ClassFusion(channels, heads, hidden, pooling, drop)

    def forward(self, x: Tensor, image_guidance: Tensor, text_guidance: Tensor) -> Tensor:
        """x (B, K, H, W, C), guidance (B, H, W, C) and (B, K, C) → (B, K, H, W, C)."""
        out: Tensor = self.classes(self.spatial(x, image_guidance), text_guidance)
        return out
