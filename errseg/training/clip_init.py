"""Where errseg-base and errseg-large start from: an open_clip checkpoint of both CLIP towers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errseg.errors import WeightsError
from errseg.model.err_seg import ErrSeg
from errseg.model.image_encoder import ConvNeXtEncoder, DenseDownsample
from errseg.weights import check_keys

UNUSED = "logit_scale"
"""CLIP's temperature, which the method never reads."""

_PREFIXES = (
    ("text_encoder.", ""),
    ("image_encoder.encoder.trunk.", "visual.trunk."),
    ("image_encoder.encoder.projection.", "visual.head."),
)
"""Of our keys, and of open_clip's."""


@torch.no_grad()
def init_clip(model: ErrSeg, path: Path) -> None:
    """Fill both towers; the dense downsample starts as a copy of the last stage's own.

    Args:
        path: an open_clip checkpoint, .safetensors or a PyTorch file of tensors alone.

    Raises:
        WeightsError: the file is missing, damaged, or of another CLIP.
    """
    theirs = _read(path)
    own = model.state_dict()
    ours = {key: name for key in own if (name := _open_clip_name(key)) is not None}
    theirs.pop(UNUSED, None)
    wanted = {name: own[key] for key, name in ours.items()}
    check_keys(wanted, theirs, f"{path} (as an open_clip {model.config.clip_model})")
    for name, tensor in wanted.items():
        tensor.copy_(theirs[name])
    dense, encoder = model.image_encoder.dense_downsample, model.image_encoder.encoder
    if dense is not None:
        assert isinstance(dense, DenseDownsample) and isinstance(encoder, ConvNeXtEncoder)
        assert isinstance(encoder.downsample, nn.Sequential)
        norm, conv = encoder.downsample
        dense.norm.load_state_dict(norm.state_dict())
        dense.conv.load_state_dict(conv.state_dict())


def _open_clip_name(key: str) -> str | None:
    """open_clip's key for one of ours; None for what CLIP does not have."""
    for ours, theirs in _PREFIXES:
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    return None


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = _load(path)
    except FileNotFoundError as error:
        raise WeightsError(f"there is no checkpoint {path}.") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes suggest
        raise WeightsError(f"{path} is not a whole checkpoint of tensors alone.") from error
    # open_clip's own training saves the state dict among others, and of a wrapped model
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path} holds no state dict; is it an open_clip checkpoint?")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _load(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    content: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return content
