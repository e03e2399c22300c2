"""Devices and precisions: what the user names → what torch uses."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import nn

from errseg.errors import DeviceError

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str = "auto") -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU.

    Raises:
        DeviceError: no such device here.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(
            f"device is {name!r}; it must be auto, cpu, cuda, cuda:N or mps."
        ) from error
    if device.type == "cuda" and (not cuda or (device.index or 0) >= torch.cuda.device_count()):
        raise DeviceError(f"device {name!r} is not here; use --device auto or cpu.")
    if device.type == "mps" and not mps:
        raise DeviceError("device 'mps' is not here; use --device auto or cpu.")
    if device.type not in ("cpu", "cuda", "mps") or (device.type == "cpu" and device.index):
        raise DeviceError(f"device is {name!r}; it must be auto, cpu, cuda, cuda:N or mps.")
    return device


def arithmetic(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Within it the model computes in `dtype`: below float32 by autocast."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def resolve_precision(name: Precision, device: torch.device) -> torch.dtype:
    """`auto` is float32, on CUDA devices bfloat16 (float16 where they have none).

    Raises:
        DeviceError: unknown name, or float16 on a CPU.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if name not in _DTYPES:
        raise DeviceError(f"precision is {name!r}; it must be auto, fp32, bf16 or fp16.")
    if name == "fp16" and device.type == "cpu":
        raise DeviceError("precision fp16 does not work on a CPU; use fp32 or bf16.")
    return _DTYPES[name]


def compile_for(device: torch.device, module: nn.Module) -> None:
    """Put a module through torch.compile, in place: translated when it first runs.

    Raises:
        DeviceError: that does not work here.
    """
    require_compiler(device)
    module.compile()


def require_compiler(device: torch.device) -> None:
    """Try out whether torch.compile works here.

    Raises:
        DeviceError: it does not.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # of torch's compiler, of the C++ compiler, of Triton
        reason = str(error).strip().partition("\n")[0]
        raise DeviceError(
            f"models cannot be compiled here ({reason}): a CPU needs a C++ compiler such as g++, "
            "CUDA needs Triton. Install it, or do without compiling."
        ) from error
