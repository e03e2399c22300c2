"""The method a second time, slow and obvious, from the design document's sections 3 to 7.

Nothing here is shared with `errseg.model` but the weights: one picture at a time, class maps as
(K, C, H, W), real convs over concatenated [x; guidance], explicit softmax, loops over pixels.
The document leaves out that both attentions of ESCF are pre-norm; the reference vectors say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from errseg.model.err_seg import ErrSeg
from errseg.model.image_encoder import ConvNeXtEncoder

RANK_VOTES = (Fraction(1), Fraction(1, 10), Fraction(1, 100))
DROPPED = -100.0

Size = tuple[int, int]


def resize(x: Tensor, size: Size, *, align_corners: bool = False) -> Tensor:
    """(C, H, W) or (N, C, H, W), bilinear."""
    batched = x if x.ndim == 4 else x[None]
    out = F.interpolate(batched, size=size, mode="bilinear", align_corners=align_corners)
    return out if x.ndim == 4 else out[0]


def layer_norm(vector: Tensor, norm: Any) -> Tensor:
    """Over the last axis."""
    centred = vector - vector.mean(dim=-1, keepdim=True)
    deviation = torch.sqrt(centred.square().mean(dim=-1, keepdim=True) + norm.eps)
    out: Tensor = centred / deviation * norm.weight + norm.bias
    return out


def linear(x: Tensor, layer: Any) -> Tensor:
    out: Tensor = x @ layer.weight.T
    return out if layer.bias is None else out + layer.bias


def relu6(x: Tensor) -> Tensor:
    return x.clamp(0, 6)


# --- section 3: HSM -------------------------------------------------------------------------


def hierarchical(hsm: Any, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Normalised image (3, H, W) → four features (C, H, W), and (D, H, W) embeddings, finest first.

    The trunk's own blocks are taken as they are.
    """
    encoder = hsm.encoder
    convnext = isinstance(encoder, ConvNeXtEncoder)
    blocks, dense_way = (
        (_convnext_last_stage, _convnext_dense) if convnext else (_lite_last_stage, _lite_dense)
    )
    embed = _convnext_embed if convnext else _lite_embed
    stride4, stride8, stride16 = (feature[0] for feature in encoder.features(image[None]))
    if convnext:
        norm, conv = encoder.trunk.stages[3].downsample
        entry = F.conv2d(_norm_maps(stride16, norm)[None], conv.weight, conv.bias, stride=2)[0]
    else:
        entry = encoder.downsample(stride16[None])[0]
    stride32 = blocks(encoder, entry)
    embeddings = [_every_pixel(stride32, lambda pixel: embed(encoder, pixel))]
    if hsm.dense_downsample is not None:
        dense = blocks(encoder, dense_way(hsm.dense_downsample, stride16))
        embeddings.insert(0, _every_pixel(dense, lambda pixel: embed(encoder, pixel)))
    return [stride4, stride8, stride16, stride32], embeddings


def _every_pixel(maps: Tensor, function: Any) -> Tensor:
    rows = [
        torch.stack([function(maps[:, y, x]) for x in range(maps.shape[2])], dim=1)
        for y in range(maps.shape[1])
    ]
    return torch.stack(rows, dim=1)


def _norm_maps(maps: Tensor, norm: Any) -> Tensor:
    return layer_norm(maps.permute(1, 2, 0), norm).permute(2, 0, 1)


def _convnext_dense(dense: Any, stride16: Tensor) -> Tensor:
    padded = F.pad(_norm_maps(stride16, dense.norm), (1, 1, 1, 1))
    larger = F.conv2d(padded[None], dense.conv.weight, dense.conv.bias, stride=1)[0]
    assert larger.shape[1:] == (stride16.shape[1] + 1, stride16.shape[2] + 1)
    return resize(larger, (stride16.shape[1], stride16.shape[2]))


def _convnext_last_stage(encoder: Any, x: Tensor) -> Tensor:
    x = x[None]
    for block in encoder.trunk.stages[3].blocks:
        x = block(x)
    out: Tensor = encoder.trunk.norm_pre(x)[0]
    return out


def _convnext_embed(encoder: Any, pixel: Tensor) -> Tensor:
    out: Tensor = encoder.projection(layer_norm(pixel, encoder.trunk.head.norm)[None])[0]
    return out


def _lite_dense(block: Any, stride16: Tensor) -> Tensor:
    kernel = block.depthwise.weight.shape[-1]
    x = relu6(F.conv2d(stride16[None], block.expand.weight, block.expand.bias))
    x = F.pad(x, (kernel // 2,) * 4)
    x = F.conv2d(x, block.depthwise.weight, block.depthwise.bias, groups=x.shape[1])
    return F.conv2d(relu6(x), block.project.weight, block.project.bias)[0]


def _lite_last_stage(encoder: Any, x: Tensor) -> Tensor:
    x = x[None]
    for block in encoder.late:
        x = block(x)
    return x[0]


def _lite_embed(encoder: Any, pixel: Tensor) -> Tensor:
    wide = relu6(encoder.widen.weight[:, :, 0, 0] @ pixel + encoder.widen.bias)
    return linear(wide, encoder.projection)


def cosine_costs(embedding: Tensor, text: Tensor) -> Tensor:
    """(D, H, W) and (T, D) → (T, H, W)."""
    return torch.stack([F.cosine_similarity(embedding, row[:, None, None], dim=0) for row in text])


# --- section 4: CRM -------------------------------------------------------------------------


def kept_classes(cost: Tensor, keep: int, required: Sequence[int] = ()) -> list[int]:
    """(T, H, W) → indices of the K classes that stay, ascending; `required` go first."""
    count, height, width = cost.shape
    counters = [Fraction(0)] * count
    for y in range(height):
        for x in range(width):
            values = cost[:, y, x].tolist()
            ranking = sorted(range(count), key=lambda index: (-values[index], index))
            for index, votes in zip(ranking, RANK_VOTES, strict=False):
                counters[index] += votes
    order = sorted(range(count), key=lambda c: (c not in required, -counters[c], c))
    return sorted(order[:keep])


# --- section 5: cost embedding and guidance -------------------------------------------------


def cost_embedding(module: Any, costs: Sequence[Tensor], size: Size) -> Tensor:
    """Per level (K, Hi, Wi) → (K, C, H16, W16): 7×7 conv, resize, average, 1×1 conv."""
    levels = []
    for conv, cost in zip(module.level_convs, costs, strict=True):
        maps = [F.conv2d(one[None, None], conv.weight, conv.bias, padding=3)[0] for one in cost]
        levels.append(torch.stack([resize(one, size) for one in maps]))
    average = sum(levels[1:], levels[0]) / len(levels)
    return F.conv2d(average, module.fusion.weight, module.fusion.bias)


def image_guidance(module: Any, features: Sequence[Tensor], size: Size) -> Tensor:
    """Features at strides 32 and 16, (Ci, Hi, Wi) → (C, H16, W16)."""
    levels = [
        resize(relu6(F.conv2d(feature[None], conv.weight, conv.bias, padding=1)[0]), size)
        for conv, feature in zip(module.level_convs, features, strict=True)
    ]
    average = (levels[0] + levels[1]) / 2
    return F.conv2d(average[None], module.fusion.weight, module.fusion.bias)[0]


def text_guidance(module: Any, text: Tensor) -> Tensor:
    """(K, D) → (K, C): linear, GELU."""
    x = linear(text, module.proj)
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


# --- section 6: ESCF ------------------------------------------------------------------------


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """One sequence: (L, C), (M, C), (M, C) → (L, C)."""
    width = query.shape[1] // heads
    outputs = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[:, part] @ key[:, part].T / width**0.5
        weights = torch.exp(scores - scores.amax(dim=1, keepdim=True))
        outputs.append(weights / weights.sum(dim=1, keepdim=True) @ value[:, part])
    return torch.cat(outputs, dim=1)


def gated_mlp(x: Tensor, module: Any) -> Tensor:
    return linear(relu6(linear(x, module.fc1)) * linear(x, module.fc2), module.fc3)


def _tokens(maps: Tensor) -> Tensor:
    """(C, H, W) → (H·W, C)."""
    return maps.flatten(1).T


def _maps(tokens: Tensor, size: Size) -> Tensor:
    """(H·W, C) → (C, H, W)."""
    return tokens.T.reshape(-1, *size)


def spatial_fusion(module: Any, x: Tensor, guidance: Tensor) -> Tensor:
    """x (K, C, H, W), guidance (C, H, W) → (K, C, H, W)."""
    return torch.stack([_spatial_fusion_of_class(module, one, guidance) for one in x])


def _spatial_fusion_of_class(module: Any, x: Tensor, guidance: Tensor) -> Tensor:
    size = (x.shape[1], x.shape[2])
    attend = module.attention
    normed = _norm_maps(x, module.norm1)
    guided = torch.cat([normed, guidance])
    key, value = guided, normed
    if attend.reduce_k is not None:
        key = _reduced(guided, attend.reduce_k)
        value = _reduced(normed, attend.reduce_v)
    fused = attention(
        linear(_tokens(guided), attend.q),
        linear(_tokens(key), attend.k),
        linear(_tokens(value), attend.v),
        attend.heads,
    )
    x = x + _maps(linear(fused, attend.proj), size)
    hidden = _maps(gated_mlp(layer_norm(_tokens(x), module.norm2), module.mlp), size)
    conv = module.depthwise
    return x + F.conv2d(hidden[None], conv.weight, conv.bias, padding=3, groups=len(hidden))[0]


def _reduced(maps: Tensor, reduction: Any) -> Tensor:
    reduced = F.conv2d(maps[None], reduction.conv.weight, reduction.conv.bias, stride=2)[0]
    return _norm_maps(reduced, reduction.norm)


def class_fusion(module: Any, x: Tensor, guidance: Tensor) -> Tensor:
    """x (K, C, H, W), guidance (K, C) → (K, C, H, W)."""
    pooled = x if module.pooling == 1 else F.avg_pool2d(x, module.pooling)
    fused = pooled.clone()
    for row in range(pooled.shape[2]):
        for column in range(pooled.shape[3]):
            fused[:, :, row, column] = _class_fusion_at(module, pooled[:, :, row, column], guidance)
    return x + resize(fused, (x.shape[2], x.shape[3]), align_corners=True)


def _class_fusion_at(module: Any, x: Tensor, guidance: Tensor) -> Tensor:
    """One pixel: (K, C) → (K, C)."""
    attend = module.attention
    normed = layer_norm(x, module.norm1)
    guided = torch.cat([normed, guidance], dim=1)
    fused = attention(
        linear(guided, attend.q), linear(guided, attend.k), linear(normed, attend.v), attend.heads
    )
    x = x + linear(fused, attend.proj)
    return x + relu6(gated_mlp(layer_norm(x, module.norm2), module.mlp))


# --- section 7: decoder and output ----------------------------------------------------------


def decoder(module: Any, x: Tensor, features: Sequence[Tensor]) -> Tensor:
    """x (K, C, H16, W16), features (Ci, Hi, Wi) at strides 16, 8, 4 → (K, H4, W4) logits."""
    return torch.stack([_decode_class(module, one, features) for one in x])


def _decode_class(module: Any, x: Tensor, features: Sequence[Tensor]) -> Tensor:
    x = x[None]
    for index, (step, feature) in enumerate(zip(module.steps, features, strict=True)):
        up = F.conv2d if index == 0 else F.conv_transpose2d
        x = up(x, step.up.weight, step.up.bias, stride=1 if index == 0 else 2)
        conv = step.guidance
        guidance = relu6(F.conv2d(feature[None], conv.weight, conv.bias, padding=1))
        x = torch.cat([x, guidance], dim=1)
        x = F.conv2d(x, step.conv1.weight, padding=1)
        x = _group_norm(x, step.norm1).clamp(min=0)
        x = F.conv2d(x, step.conv2.weight, padding=1)
        x = _group_norm(x, step.norm2).clamp(min=0)
    return F.conv2d(x, module.head.weight, module.head.bias)[0, 0]


def _group_norm(x: Tensor, norm: Any) -> Tensor:
    """(1, C, H, W) in groups of eight channels."""
    groups = []
    for group in x[0].split(8):
        variance, mean = torch.var_mean(group, correction=0)
        groups.append((group - mean) / torch.sqrt(variance + norm.eps))
    out: Tensor = torch.cat(groups) * norm.weight[:, None, None] + norm.bias[:, None, None]
    return out[None]


def best_class(logits: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """(T, H4, W4) logits → (H, W) class ids and probabilities, by way of all T channels."""
    scores, labels = resize(logits.sigmoid(), size).max(dim=0)
    return labels, scores


# --- section 1: the whole -------------------------------------------------------------------


def err_seg(
    model: ErrSeg, image: Tensor, text: Tensor, keep: int, required: Sequence[int] = ()
) -> Tensor:
    """Picture (3, H, W), RGB 0..255, at the model's size → (T, H4, W4) logits, −100 = dropped."""
    config = model.config
    mean = torch.tensor(config.mean)[:, None, None]
    std = torch.tensor(config.std)[:, None, None]
    features, embeddings = hierarchical(model.image_encoder, (image - mean) / std)
    return from_features(model, features, embeddings, text, keep, required)


def from_features(  # noqa: PLR0917 - the order of the figure
    model: ErrSeg,
    features: Sequence[Tensor],
    embeddings: Sequence[Tensor],
    text: Tensor,
    keep: int,
    required: Sequence[int] = (),
) -> Tensor:
    """What follows the image encoder."""
    size = (features[2].shape[1], features[2].shape[2])
    costs = [cosine_costs(level, text) for level in embeddings]
    voting = resize(costs[0], size)
    kept = list(range(len(text)))
    if model.config.channel_reduction:
        kept = kept_classes(voting, keep, required)
    x = cost_embedding(model.cost_embedding, [cost[kept] for cost in costs], size)
    stride4, stride8, stride16, stride32 = (feature.clamp(-16, 16) for feature in features)
    of_image = image_guidance(model.image_guidance, (stride32, stride16), size)
    of_text = text_guidance(model.text_guidance, text[kept])
    for layer in model.context_fusion:
        x = spatial_fusion(layer.spatial, x, of_image)
        x = class_fusion(layer.classes, x, of_text)
    guides = [stride16.detach(), stride8.detach(), stride4.detach()]
    maps = decoder(model.decoder, x, guides)
    logits = maps.new_full((len(text), *maps.shape[1:]), DROPPED)
    logits[kept] = maps
    return logits


# --- the sentence encoder of errseg-mini ------------------------------------------------------


def minilm(encoder: Any, tokens: Sequence[int]) -> Tensor:
    """One prompt without padding: ids with their [CLS] and [SEP] → (D,)."""
    x = encoder.token_embedding.weight[list(tokens)] + encoder.positional_embedding[: len(tokens)]
    x = layer_norm(x, encoder.norm)
    for block in encoder.blocks:
        query, key, value = linear(x, block.qkv).chunk(3, dim=1)
        fused = linear(attention(query, key, value, block.heads), block.proj)
        x = layer_norm(x + fused, block.norm1)
        hidden = linear(x, block.fc1)
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = layer_norm(x + linear(hidden, block.fc2), block.norm2)
    pooled = x.mean(dim=0)
    off_centre = pooled / pooled.norm() - encoder.centre
    return off_centre / off_centre.norm()
