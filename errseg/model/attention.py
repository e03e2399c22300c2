"""Scaled dot-product attention, on some CPUs by convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from errseg.model.layers import CONVOLUTION_PAYS, suits_onednn

CHANNEL_BLOCK = 16
"""oneDNN's grouped convolutions are fast where each group has a multiple of so many channels."""

LEAST_SCORES = 1 << 16
"""Per sequence: for fewer products of a query with a key the calls cost more than they save."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, heads: int, allowed: Tensor | None = None
) -> Tensor:
    """Scaled dot-product attention, split into heads and joined again.

    Args:
        query: (N, L, C).
        key, value: (N, M, C).
        allowed: (N, 1, 1, M) bool, the keys that are looked at; None = all.

    Returns:
        (N, L, C).
    """
    if allowed is None and _convolutions_pay(query, key, heads):
        return attend_by_convolution(query, key, value, heads=heads)
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    fused: Tensor = F.scaled_dot_product_attention(query, key, value, allowed)
    return fused.transpose(1, 2).flatten(2)


def _convolutions_pay(query: Tensor, key: Tensor, heads: int) -> bool:
    (_, queries, channels), keys = query.shape, key.shape[1]
    whole_blocks = keys % CHANNEL_BLOCK == 0 and channels // heads % CHANNEL_BLOCK == 0
    return (
        CONVOLUTION_PAYS and whole_blocks and queries * keys >= LEAST_SCORES and suits_onednn(query)
    )


def attend_by_convolution(query: Tensor, key: Tensor, value: Tensor, *, heads: int) -> Tensor:
    """`attend`, each of its two products a 1×1 convolution with one group per head.

    Queries are the positions and keys, then values, the weights. So oneDNN computes, and tokens
    stay in their order: nothing as large as the scores is copied.
    """
    channels, keys = query.shape[2], key.shape[1]
    scale = (channels // heads) ** -0.5
    # (N, heads · M, C / heads, 1, 1) and (N, C, M, 1, 1)
    key = (key * scale).unflatten(-1, (heads, -1)).transpose(1, 2).flatten(1, 2)[..., None, None]
    value = value.transpose(1, 2)[..., None, None].contiguous()
    out = torch.empty_like(query)
    for tokens, one_key, one_value, into in zip(query, key, value, out, strict=True):
        scores = _convolved(tokens, one_key, heads).view(-1, heads, keys)
        torch.softmax(scores, dim=-1, out=scores)
        into.copy_(_convolved(scores.view(-1, heads * keys), one_value, heads))
    return out


def _convolved(tokens: Tensor, weight: Tensor, groups: int) -> Tensor:
    """(L, C) → (L, weight's outputs)."""
    maps = tokens.view(1, 1, *tokens.shape).permute(0, 3, 1, 2)
    return F.conv2d(maps, weight, groups=groups).permute(0, 2, 3, 1).view(len(tokens), -1)
