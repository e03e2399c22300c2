"""Checkpoints: find, verify, load, save, and translate published keys.

Our format is safetensors with the model's configuration in its metadata. Large matrices of the
text tower may be stored as int8 with one scale per row, the rest as float16 ("compact"); they are
float32 again once loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from errseg.catalogue import find_weights
from errseg.config import ModelConfig
from errseg.download import download
from errseg.errors import ConfigError, WeightsError
from errseg.files import atomic_write
from errseg.model.err_seg import ErrSeg
from errseg.published import read_published, recognise, translate

FORMAT = "errseg-1"
"""The one entry of the metadata: its value is the configuration."""
SCALE_SUFFIX = "#scale"
"""Name of an int8 tensor's per-row scales: the tensor's own name and this."""
INT8_LIMIT = 127
QUANTISED_PREFIX = "text_encoder."


def save_model(model: ErrSeg, path: Path, *, compact: bool = False) -> None:
    """Write weights and configuration; the file appears whole or not at all."""
    from safetensors.torch import save

    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    packed = _pack(state) if compact else state
    # one entry: safetensors shuffles several, and equal weights should give equal files
    metadata = {FORMAT: model.config.to_json()}
    with atomic_write(path) as file:
        file.write(save(packed, metadata))


def _pack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(QUANTISED_PREFIX) and tensor.ndim == 2:
            scale = tensor.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / INT8_LIMIT
            packed[name] = (tensor / scale).round().to(torch.int8)
            packed[name + SCALE_SUFFIX] = scale.half()
        else:
            packed[name] = tensor.half()
    return packed


def _unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, tensor in packed.items():
        if name.endswith(SCALE_SUFFIX) and name.removesuffix(SCALE_SUFFIX) in packed:
            continue
        scale = packed.get(name + SCALE_SUFFIX)
        if scale is not None and scale.shape != (len(tensor), 1):
            raise WeightsError(f"{name + SCALE_SUFFIX!r} is {tuple(scale.shape)}, not one per row.")
        state[name] = tensor.float() if scale is None else tensor.float() * scale.float()
    return state


def load_model(path: Path) -> ErrSeg:
    """Rebuild a model from a file of ours: on the CPU, float32, in evaluation mode.

    Raises:
        WeightsError: the file is missing, damaged, of another format, or does not fit its config.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise WeightsError(f"there is no checkpoint {path}.") from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file: {error}.") from error
    if FORMAT not in metadata:
        raise WeightsError(f"{path} was not written by errseg: its metadata lacks {FORMAT!r}.")
    try:
        config = ModelConfig.from_json(metadata[FORMAT])
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from error
    model = build_empty(config)
    fill(model, _unpack(packed), str(path))
    return model.eval()


class _SkipInit(TorchFunctionMode):
    """Leaves out the random initialisation of layers.

    Building on the "meta" device would too, but it makes torch import its compiler: two seconds.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def build_empty(config: ModelConfig) -> ErrSeg:
    """The model with whatever its memory holds, for `fill`: no time goes into random numbers."""
    with _SkipInit():
        return ErrSeg(config)


def fill(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load a state dict; a missing, unexpected or misshapen key is an error that names it.

    Raises:
        WeightsError: as said.
    """
    check_keys(model.state_dict(), state, origin)
    model.load_state_dict(state, assign=True)


def check_keys(own: Mapping[str, Tensor], state: Mapping[str, Tensor], origin: str) -> None:
    """Whether a state dict holds the tensors that a model wants, and no others.

    Raises:
        WeightsError: a key is missing, unexpected or misshapen; it is named.
    """
    missing = sorted(set(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    if missing:
        raise WeightsError(f"{origin} lacks {missing[0]!r} ({len(missing)} keys missing).")
    if unexpected:
        raise WeightsError(f"{origin} holds {unexpected[0]!r} ({len(unexpected)} keys unknown).")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise WeightsError(
                f"{origin}: {name!r} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}."
            )


# --- models by name -------------------------------------------------------------------------


def load_named_model(name: str | None = None, weights: str | Path | None = None) -> ErrSeg:
    """A model by its name, with its own weights or those of a file.

    Args:
        name: "errseg-mini", "errseg-base" or "errseg-large"; None takes what `weights` holds, or
            errseg-mini. The weights of the other two are downloaded the first time.
        weights: a file of ours (.safetensors), or one as published (.pth).

    Raises:
        ConfigError: no model of this name.
        WeightsError: the weights are missing, damaged, of another model or cannot be downloaded.
    """
    path = find_weights(name, weights)
    if path is None:
        assert name is not None  # only a model that was named is ever downloaded
        path = download(name)
    return load_weights(path, name)


def load_weights(path: Path, name: str | None = None) -> ErrSeg:
    """The model that a file holds, of ours (.safetensors) or as published.

    Args:
        name: the model that it must be; None takes any.

    Raises:
        WeightsError: the file is missing, damaged, or of another model.
    """
    if path.suffix != ".safetensors":
        return load_published(path, name)
    model = load_model(path)
    _check_name(path, model.config, name)
    return model


def load_published(path: Path, name: str | None = None) -> ErrSeg:
    """The model that a checkpoint of ERR-Seg's authors holds; its shapes tell which.

    Args:
        name: as for `load_weights`.

    Raises:
        WeightsError: the file is missing, damaged, or of another model.
    """
    published = read_published(path)
    config = recognise(published, str(path))
    _check_name(path, config, name)
    model = build_empty(config)
    fill(model, translate(published, model, str(path)), str(path))
    return model.eval()


def _check_name(path: Path, config: ModelConfig, name: str | None) -> None:
    if name not in (None, config.name):
        raise WeightsError(
            f"{path} holds {config.name}, not {name}; name the model {config.name}, or none at all."
        )
