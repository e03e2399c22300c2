"""The checkpoints that ERR-Seg's authors publish (design section 10): their keys, and ours.

They hold both CLIP towers: nothing else has to be loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errseg.catalogue import PUBLISHED_NAMES
from errseg.config import PRESETS, ModelConfig
from errseg.errors import WeightsError
from errseg.model.err_seg import ErrSeg

PREFIX = "sem_seg_head."

# our key → the published one, without `PREFIX`; the first pattern that matches is used
_ATTENTION = "decoder.aggregator_layers"
_RULES = tuple(
    (re.compile(pattern + r"\."), replacement)
    for pattern, replacement in (
        (r"image_encoder\.encoder\.trunk", "clip_model.visual.trunk."),
        (r"image_encoder\.encoder\.projection", "clip_model.visual.head."),
        (r"image_encoder\.dense_downsample\.norm", "clip_model.visual.modify_downsample.0."),
        (r"image_encoder\.dense_downsample\.conv", "clip_model.visual.modify_downsample.2."),
        (r"text_encoder", "clip_model."),
        (r"cost_embedding\.level_convs\.(\d)", r"decoder.corr_proj_convs.\1.0."),
        (r"cost_embedding\.fusion", "decoder.low_corr_fusion."),
        (r"image_guidance\.level_convs\.(\d)", r"decoder.img_guidance_projection_agg.\1.0."),
        (r"image_guidance\.fusion", "decoder.low_img_fusion."),
        (r"text_guidance\.proj", "decoder.text_guidance_projection.0."),
        (
            r"context_fusion\.(\d)\.spatial\.attention\.reduce_([kv])\.conv",
            rf"{_ATTENTION}.\1.spatial_fusion.sa.attention.sr_\2.",
        ),
        (
            r"context_fusion\.(\d)\.spatial\.attention\.reduce_([kv])\.norm",
            rf"{_ATTENTION}.\1.spatial_fusion.sa.attention.norm_\2.",
        ),
        (
            r"context_fusion\.(\d)\.spatial\.depthwise",
            rf"{_ATTENTION}.\1.spatial_fusion.sa.mlp.dwconv.dwconv.",
        ),
        (r"context_fusion\.(\d)\.spatial", rf"{_ATTENTION}.\1.spatial_fusion.sa."),
        (r"context_fusion\.(\d)\.classes", rf"{_ATTENTION}.\1.class_fusion.sa."),
        (r"decoder\.steps\.(\d)\.guidance", r"decoder.img_guidance_projection_dec.\1.0."),
        (r"decoder\.steps\.(\d)\.up", r"decoder.up_decoder{step}.up_conv."),
        (r"decoder\.steps\.(\d)\.conv1", "decoder.up_decoder{step}.textual_fusion.0."),
        (r"decoder\.steps\.(\d)\.norm1", "decoder.up_decoder{step}.textual_fusion.1."),
        (r"decoder\.steps\.(\d)\.conv2", "decoder.up_decoder{step}.textual_fusion.3."),
        (r"decoder\.steps\.(\d)\.norm2", "decoder.up_decoder{step}.textual_fusion.4."),
        (r"decoder\.head", "decoder.head."),
    )
)

UNUSED = PREFIX + "clip_model.logit_scale"
"""A published tensor that the method never reads."""

WIDTH_KEY = PREFIX + "clip_model.text_projection"
"""A published tensor whose last dimension, D, tells the models apart."""


def published_key(key: str) -> str:
    """Our state-dict key → the published one, prefix included."""
    for pattern, replacement in _RULES:
        if match := pattern.match(key):
            translated = match.expand(replacement) + key[match.end() :]
            if "{step}" in translated:  # they count the decoder's steps from 1
                translated = translated.replace("{step}", str(int(match.group(1)) + 1))
            return PREFIX + translated
    raise KeyError(key)


def translate(published: Mapping[str, Tensor], model: ErrSeg, origin: str) -> dict[str, Tensor]:
    """A published state dict with our keys.

    Raises:
        WeightsError: a key is missing or unknown.
    """
    state: dict[str, Tensor] = {}
    remaining = dict(published)
    for key in model.state_dict():
        name = published_key(key)
        if name not in remaining:
            raise WeightsError(f"{origin} lacks {name!r}.")
        state[key] = remaining.pop(name).float()
    unknown = [name for name in remaining if name != UNUSED]
    if unknown:
        raise WeightsError(f"{origin} holds {unknown[0]!r}, which no part of the model uses.")
    return state


def recognise(published: Mapping[str, Tensor], origin: str) -> ModelConfig:
    """Which model a published state dict is of, by its shapes.

    Raises:
        WeightsError: none of `PUBLISHED_NAMES`.
    """
    configs = [PRESETS[name] for name in PUBLISHED_NAMES]
    expected = " or ".join(f"{config.name} ({config.embedding_dim} wide)" for config in configs)
    if WIDTH_KEY not in published:
        raise WeightsError(f"{origin} lacks {WIDTH_KEY!r}; a checkpoint of {expected} has it.")
    shape = published[WIDTH_KEY].shape
    for config in configs:
        if shape[-1:] == (config.embedding_dim,):
            return config
    raise WeightsError(f"{origin}: {WIDTH_KEY!r} is {tuple(shape)}; expected is {expected}.")


def read_published(path: Path) -> dict[str, Tensor]:
    """The state dict of a published checkpoint.

    It is a detectron2 dict's `model` entry, or lies bare in the file; training by several processes
    puts "module." before every key.

    Raises:
        WeightsError: missing, damaged, or not such a dict.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise WeightsError(f"there is no checkpoint {path}.") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes suggest
        raise WeightsError(
            f"{path} is not a whole PyTorch checkpoint of tensors alone; download it again."
        ) from error
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path} has no state dict under 'model'; was it published by ERR-Seg?")
    return {str(key).removeprefix("module."): tensor for key, tensor in state.items()}
