"""What a run starts from, and what of it is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from errseg.config import CALIBRATED
from errseg.errors import ConfigError
from errseg.model.err_seg import ErrSeg
from errseg.model.image_encoder import EfficientNetLiteEncoder
from errseg.model.text_encoder import MiniLMTextEncoder
from errseg.training.clip_init import init_clip
from errseg.training.mini_init import imagenet_names, init_mini, set_centre
from errseg.training.recipe import FROM_CLIP, FROM_IMAGENET, Recipe
from errseg.weights import load_model

TUNED_IN_IMAGE_TOWER = ("gamma", "conv_dw.weight", "mlp.fc1.weight", "mlp.fc2.weight")
TUNED_IN_TEXT_TOWER = ("attn.in_proj_weight", "mlp.c_fc.weight")
"""Ends of the names of what the published recipe trains in CLIP; the dense downsample's besides."""


def initial_model(recipe: Recipe, names: Sequence[str]) -> ErrSeg:
    """The model before the first step; what is not trained has no gradient.

    Args:
        names: of all classes of the recipe.
    """
    if recipe.init == FROM_IMAGENET:
        model = ErrSeg(recipe.model)
        every = {*names, *(name for group in imagenet_names() for name in group)}
        init_mini(model, sorted(every))
    elif recipe.init == FROM_CLIP:
        if recipe.clip_file is None:
            raise ConfigError(
                "the recipe starts from CLIP; name its open_clip checkpoint: --init FILE."
            )
        model = ErrSeg(recipe.model)
        init_clip(model, recipe.clip_file)
    elif recipe.init:
        model = load_model(Path(recipe.init))
        # the calibration goes with the weights
        model.config = dataclasses.replace(model.config, name=recipe.model.name)
        calibration = {name: getattr(model.config, name) for name in CALIBRATED}
        if model.config != dataclasses.replace(recipe.model, **calibration):
            raise ConfigError(f"{recipe.init} holds a model of another shape than the recipe's.")
    else:
        model = ErrSeg(recipe.model)
        if isinstance(model.text_encoder, MiniLMTextEncoder):
            set_centre(model.text_encoder, names, recipe.model.prompt)
    if recipe.tuning == "published":
        _tune_as_published(model)
    else:
        _freeze(model, recipe)
    return model


def _freeze(model: ErrSeg, recipe: Recipe) -> None:
    """Keep the text tower, and of the trunk what the recipe says, as they are."""
    if isinstance(model.text_encoder, nn.Module):
        model.text_encoder.requires_grad_(False)
    if recipe.trunk_rate == 0:
        model.image_encoder.requires_grad_(False)
    encoder = model.image_encoder.encoder
    if recipe.frozen_stages and isinstance(encoder, EfficientNetLiteEncoder):
        encoder.stem.requires_grad_(False)
        encoder.stages[: recipe.frozen_stages].requires_grad_(False)


def _tune_as_published(model: ErrSeg) -> None:
    """Of both towers of CLIP only some weights are trained (design section 8)."""
    assert isinstance(model.text_encoder, nn.Module)
    for name, parameter in model.text_encoder.named_parameters():
        parameter.requires_grad_(name.endswith(TUNED_IN_TEXT_TOWER))
    for name, parameter in model.image_encoder.named_parameters():
        block = ".blocks." in name and name.endswith(TUNED_IN_IMAGE_TOWER)
        dense = name.startswith("dense_downsample.") and name.endswith("weight")
        parameter.requires_grad_(block or dense)


def parameter_groups(model: ErrSeg, recipe: Recipe) -> list[dict[str, Any]]:
    """Towers and head at their own rates; no decay for norms and biases."""

    def of(part: Iterable[nn.Parameter], rate: float) -> list[dict[str, Any]]:
        trained = [parameter for parameter in part if parameter.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim > 1], "lr": rate},
            {"params": [p for p in trained if p.ndim <= 1], "lr": rate, "weight_decay": 0.0},
        ]

    towers = list(model.image_encoder.parameters())
    if isinstance(model.text_encoder, nn.Module):
        towers += model.text_encoder.parameters()
    inside = {id(parameter) for parameter in towers}
    head = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    groups = of(head, recipe.learning_rate)
    groups += of(towers, recipe.learning_rate * recipe.trunk_rate)
    return [{"weight_decay": recipe.weight_decay, **group} for group in groups]
