"""A tiny checkpoint of the form in which ERR-Seg's authors publish theirs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from errseg.config import PRESETS
from errseg.model.err_seg import ErrSeg
from errseg.published import UNUSED, published_key

CONFIG = PRESETS["tiny-convnext"]
WIDTH = CONFIG.embedding_dim


def make_tiny(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In this test a model of the catalogue is a tiny one."""
    monkeypatch.setitem(PRESETS, name, dataclasses.replace(CONFIG, name=name))


def tiny_model() -> ErrSeg:
    torch.manual_seed(0)
    return ErrSeg(CONFIG).eval()


def published_state(model: ErrSeg) -> dict[str, Tensor]:
    """As published: their keys, and the one that nobody reads."""
    found = {published_key(key): tensor for key, tensor in model.state_dict().items()}
    return {**found, UNUSED: torch.tensor(4.6)}


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path
