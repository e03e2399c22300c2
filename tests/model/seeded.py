"""Seeded models and inputs for the tests of this folder."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errseg.config import PRESETS
from errseg.model.err_seg import ErrSeg

EMBEDDING_DIM = PRESETS["tiny"].embedding_dim


@torch.no_grad()
def stir(module: nn.Module) -> nn.Module:
    """Move gains from 1, biases from 0 and layer scales from 1e-6, so that no part can hide.

    Convs are drawn anew, large enough for signals to reach both ends of ReLU6.
    """
    for parameter in module.parameters():
        if parameter.ndim < 2:
            parameter.add_(torch.randn_like(parameter) * 0.2)
        if parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter)
    return module.eval()


def build_model(name: str, **switches: Any) -> ErrSeg:
    """A preset with some of its settings changed, always with the same weights."""
    torch.manual_seed(1)
    model = ErrSeg(dataclasses.replace(PRESETS[name], **switches))
    stir(model)
    return model


def random_text(count: int) -> Tensor:
    """(T, D) float32, L2-normalised."""
    return F.normalize(torch.randn(count, EMBEDDING_DIM), dim=-1)


def random_images(count: int, height: int = 64, width: int = 64) -> Tensor:
    """(B, 3, H, W) float32, 0..255: smooth patches, so that pixels differ in their best class."""
    coarse = torch.rand(count, 3, height // 16 + 1, width // 16 + 1) * 255
    return F.interpolate(coarse, size=(height, width), mode="nearest")
