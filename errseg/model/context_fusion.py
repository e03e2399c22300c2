"""ESCF — Efficient Semantic Context Fusion (design section 6; RRCA in the paper's v2).

Tokens stay in one layout, (B, K, H, W, C), through a layer. Guidance has one copy per picture
(spatial) or per class (class fusion) while x has K or H·W: its part of each linear over
[x; guidance] is computed once and broadcast. Spatial fusion treats each class map alone and class
fusion each position alone, so on a CPU both go block by block through all of their steps.

Both attentions are pre-norm (LN → attention → residual). The design document leaves that LN out;
the published checkpoints hold it as `norm1`, and the reference vectors need it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from errseg.model.attention import attend
from errseg.model.layers import (
    DropPath,
    GatedMLP,
    Linear,
    added,
    guidance_part,
    guided_linear,
    in_blocks,
    linear,
    resize,
)

DEPTHWISE_KERNEL = 7


def _patches(x: Tensor, stride: int) -> Tensor:
    """Non-overlapping patches of maps: (..., H, W, C) → (..., H/s, W/s, s·s·C)."""
    patches: Tensor = x.unflatten(-2, (-1, stride)).unflatten(-4, (-1, stride))
    return patches.transpose(-4, -3).flatten(-3)


class SequenceReduction(nn.Module):
    """Strided conv (kernel = stride) and layer norm: the spatial-level sequence reduction."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, stride, stride)
        self.norm = nn.LayerNorm(channels)

    def matrix(self, inputs: slice) -> Tensor:
        """The conv's weight for the input channels `inputs`, over `_patches` of them.

        A conv with kernel = stride is a linear over non-overlapping patches.
        """
        return self.conv.weight[:, inputs].permute(0, 2, 3, 1).flatten(1)


class GuidedAttention(nn.Module):
    """What both attentions learn: queries and keys from [x; guidance], values from x."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(2 * channels, channels)
        self.k = Linear(2 * channels, channels)
        self.v = Linear(channels, channels)
        self.proj = Linear(channels, channels)


class SpatialAttention(GuidedAttention):
    """Attention within one class map, over positions, keys and values at reduced resolution."""

    def __init__(self, channels: int, heads: int, stride: int) -> None:
        super().__init__(channels, heads)
        self.stride = stride
        self.reduce_k = SequenceReduction(2 * channels, stride) if stride > 1 else None
        self.reduce_v = SequenceReduction(channels, stride) if stride > 1 else None

    def with_guidance(self, guidance: Tensor) -> Callable[[Tensor], Tensor]:
        """guidance (B, H, W, C) → the attention x (B, n, H, W, C) → same, for any n maps."""
        channels = guidance.shape[-1]
        of_query = guidance_part(self.q, guidance).unsqueeze(1)
        key_value = self._key_value(guidance)

        def attention(x: Tensor) -> Tensor:
            query = guided_linear(self.q, x, of_query)
            key, value = key_value(x)
            shape = (x.shape[0] * x.shape[1], -1, channels)
            fused = attend(*(part.reshape(shape) for part in (query, key, value)), heads=self.heads)
            out: Tensor = self.proj(fused)
            return out.view_as(x)

        return attention

    def _key_value(self, guidance: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Keys and values of maps x (B, n, H, W, C), (B, n, H/s, W/s, C) each."""
        reduce_k, reduce_v, stride = self.reduce_k, self.reduce_v, self.stride
        if reduce_k is None or reduce_v is None:
            of_key = guidance_part(self.k, guidance).unsqueeze(1)
            return lambda x: (guided_linear(self.k, x, of_key), self.v(x))
        channels = guidance.shape[-1]
        over_guidance = reduce_k.matrix(slice(channels, None))
        of_guidance = linear(_patches(guidance, stride), over_guidance, reduce_k.conv.bias)
        of_guidance = of_guidance.unsqueeze(1)
        key_matrix, value_matrix = reduce_k.matrix(slice(channels)), reduce_v.matrix(slice(None))

        def key_value(x: Tensor) -> tuple[Tensor, Tensor]:
            patches = _patches(x, stride)
            keys = linear(patches, key_matrix).add_(of_guidance)
            values = linear(patches, value_matrix, reduce_v.conv.bias)
            return self.k(reduce_k.norm(keys)), self.v(reduce_v.norm(values))

        return key_value


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
        """x (B, K, H, W, C), guidance (B, H, W, C) → (B, K, H, W, C), perhaps in the place of x."""
        attention = self.attention.with_guidance(guidance)

        def fuse(x: Tensor) -> Tensor:
            x = added(x, self.drop_path(attention(self.norm1(x))))
            maps = self.mlp(self.norm2(x)).flatten(0, 1).permute(0, 3, 1, 2)
            hidden = self.depthwise(maps).permute(0, 2, 3, 1).view_as(x)
            return added(x, self.drop_path(hidden))

        return in_blocks(fuse, 1, x, in_place=True)


class ClassAttention(GuidedAttention):
    """Attention between the kept classes at one position."""

    def with_guidance(self, guidance: Tensor, fills: Tensor | None) -> Callable[[Tensor], Tensor]:
        """guidance (B, K, C) → the attention x (B, n, K, C) → same, for any n positions.

        Args:
            fills: (B, K) bool, classes that no other one looks at.
        """
        of_query, of_key = (
            guidance_part(layer, guidance).unsqueeze(1) for layer in (self.q, self.k)
        )

        def attention(x: Tensor) -> Tensor:
            query, key = guided_linear(self.q, x, of_query), guided_linear(self.k, x, of_key)
            sequences = (part.flatten(0, 1) for part in (query, key, self.v(x)))
            allowed = None
            if fills is not None:
                allowed = ~fills.repeat_interleave(x.shape[1], dim=0)[:, None, None]
            out: Tensor = self.proj(attend(*sequences, heads=self.heads, allowed=allowed))
            return out.view_as(x)

        return attention


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

    def forward(self, x: Tensor, guidance: Tensor, fills: Tensor | None = None) -> Tensor:
        """x (B, K, H, W, C), guidance (B, K, C), fills (B, K) bool → (B, K, H, W, C).

        Without gradients the result may take the place of x.
        """
        height, width = x.shape[2:4]
        pooled = self._pool(x)
        attention = self.attention.with_guidance(guidance, fills)

        def fuse(tokens: Tensor) -> Tensor:
            tokens = added(tokens, self.drop_path(attention(self.norm1(tokens))))
            hidden = F.relu6(self.mlp(self.norm2(tokens)), inplace=True)
            return added(tokens, self.drop_path(hidden))

        tokens = pooled.flatten(2, 3).transpose(1, 2).contiguous()
        tokens = in_blocks(fuse, 1, tokens, in_place=True)
        fused = tokens.transpose(1, 2).contiguous().unflatten(2, pooled.shape[2:4])

        def add(x: Tensor, fused: Tensor) -> Tensor:
            maps = fused.flatten(0, 1).permute(0, 3, 1, 2)
            maps = resize(maps, (height, width), align_corners=True)
            return added(x, maps.permute(0, 2, 3, 1).view_as(x))

        return in_blocks(add, 1, x, fused, in_place=True)

    def _pool(self, x: Tensor) -> Tensor:
        if self.pooling == 1:
            return x.clone()  # x itself is still to be added to
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

    def forward(
        self,
        x: Tensor,
        image_guidance: Tensor,
        text_guidance: Tensor,
        fills: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            x: (B, K, H, W, C), used up where no gradient is wanted.
            image_guidance, text_guidance: (B, H, W, C), (B, K, C).
            fills: (B, K) bool, classes that only fill the batch: the others do not see them.

        Returns:
            (B, K, H, W, C).
        """
        out: Tensor = self.classes(self.spatial(x, image_guidance), text_guidance, fills)
        return out
