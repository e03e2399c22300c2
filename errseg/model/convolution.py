"""Convolutions of the small image tower, on a CPU as oneDNN does them best.

One picture's convolutions are short. By itself torch rearranges a weight for oneDNN at every call,
pads pictures by copying them, and writes a result twice where a ReLU6 follows: half of the time.
Here a weight is arranged once and kept as long as it lives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from errseg.model.layers import suits_onednn

Pair = tuple[int, int]

# what torch.compile makes of a convolution; not part of torch's API, so it may be missing
_POINTWISE = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
_REORDER = getattr(torch._C._nn, "mkldnn_reorder_conv2d_weight", None)
_AVAILABLE = torch.backends.mkldnn.is_available() and None not in (_POINTWISE, _REORDER)

_packed = WeakTensorKeyDictionary()
"""Weight → (what it was made of, the weight as oneDNN wants it)."""


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    zeros_before: Pair = (0, 0),
    groups: int = 1,
    relu6: bool = False,
) -> Tensor:
    """`F.conv2d`, and `F.relu6` of it on demand.

    Args:
        x: (B, C, H, W).
        zeros_before: rows and columns of zeros that go before the kernel's own.
    """
    if not _pays(x, weight):
        weight = _extended(weight, zeros_before)
        out = F.conv2d(x, weight, bias, stride, padding, 1, groups)
        return F.relu6(out) if relu6 else out
    settings = (padding, stride, (1, 1), groups)
    source = (weight._version, weight.data_ptr(), zeros_before, *settings)
    known, packed = _packed.get(weight, (None, None))
    if known != source:
        assert _REORDER is not None
        plain = _extended(weight.detach(), zeros_before).to_mkldnn()
        # the shape is a hint: for another one oneDNN rearranges again where it must
        packed = _REORDER(plain, *settings, x.shape)
        _packed[weight] = (source, packed)
    assert _POINTWISE is not None
    then = ("hardtanh", (0.0, 6.0)) if relu6 else ("none", ())
    result: Tensor = _POINTWISE(x, packed, bias, *settings, *then, "")
    return result


def _pays(x: Tensor, weight: Tensor) -> bool:
    if not _AVAILABLE or torch.compiler.is_compiling() or weight.is_inference():
        return False
    return suits_onednn(x) and weight.dtype == torch.float32


def _extended(weight: Tensor, zeros_before: Pair) -> Tensor:
    top, left = zeros_before
    return F.pad(weight, (left, 0, top, 0)) if top or left else weight
