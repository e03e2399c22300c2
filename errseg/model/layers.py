"""Small layers that several parts share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK_TOKENS = 4096
"""Per CPU thread: what becomes of so many tokens on their way through a layer stays in its cache,
and the memory that it takes is used again for the next ones."""


def in_blocks(
    function: Callable[..., Tensor], axis: int, x: Tensor, *others: Tensor, in_place: bool = False
) -> Tensor:
    """`function` of x, on a CPU piece by piece along `axis`, which it must treat one by one.

    Args:
        function: keeps the length of `axis`.
        x: tokens (B, ..., C).
        others: what `function` takes besides, as long as x along `axis`.
        in_place: the result may take the place of x: memory that is new costs page faults.
    """
    tokens = x.numel() // (x.shape[-1] * x.shape[axis])
    length = max(1, BLOCK_TOKENS * torch.get_num_threads() // tokens)
    if x.device.type != "cpu" or torch.is_grad_enabled() or length >= x.shape[axis]:
        return function(x, *others)
    blocks = zip(*(tokens.split(length, axis) for tokens in (x, *others)), strict=True)
    if not in_place:
        return torch.cat([function(*block) for block in blocks], axis)
    for block in blocks:
        result = function(*block)
        if result is not block[0]:
            block[0].copy_(result)
    return x


def added(x: Tensor, branch: Tensor) -> Tensor:
    """x + branch, in the place of x where no gradient is wanted."""
    if torch.is_grad_enabled() or x.dtype != branch.dtype:
        return x + branch
    return x.add_(branch)


LEAST_TOKENS = 256
"""For fewer a convolution is not worth its way in and out."""

CONVOLUTION_PAYS = (
    torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
)
"""oneDNN computes with AVX-512 on any CPU that has it; MKL, behind `F.linear`, on Intel's alone."""


def suits_onednn(x: Tensor) -> bool:
    """Whether oneDNN may be called by hand: float32 on a CPU, no gradients, no autocast."""
    plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
    return not plain and x.device.type == "cpu" and x.dtype == torch.float32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, on some CPUs as the 1×1 convolution that it is: twice as fast there.

    The bias is added in the same pass, which `F.linear` first writes to where the result goes.

    Args:
        x: (..., C) of any layout; tokens one after another need no copy.
    """
    tokens = x.numel() // x.shape[-1]
    if not CONVOLUTION_PAYS or tokens < LEAST_TOKENS or not suits_onednn(x):
        return F.linear(x, weight, bias)
    maps = x.reshape(1, 1, tokens, -1).permute(0, 3, 1, 2)
    out = F.conv2d(maps, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def take_over_linears(module: nn.Module) -> None:
    """Let the linears of a module that others wrote be computed by `linear`, in place."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear


def resize(x: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Bilinear resize of (N, C, H, W) to `size` (H, W); the tensor itself if it fits already."""
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def guidance_part(layer: nn.Linear, guidance: Tensor) -> Tensor:
    """The guidance's share of a linear over [x; guidance]: W [x; g] + b = W_x x + (W_g g + b).

    Guidance has one copy where x has many: its share is computed once and broadcast.

    Args:
        guidance: (..., G).
    """
    return linear(guidance, layer.weight[:, -guidance.shape[-1] :], layer.bias)


def guided_linear(layer: nn.Linear, x: Tensor, of_guidance: Tensor) -> Tensor:
    """A linear over [x; guidance], whose second share is known.

    Args:
        x: (..., C).
        of_guidance: from `guidance_part`, in a shape that can be added to the layer's output.
    """
    return linear(x, layer.weight[:, : x.shape[-1]]).add_(of_guidance)


class DropPath(nn.Module):
    """Stochastic depth: in training, drops the whole branch of a sample with this probability.

    Attributes:
        share: (i, n): x is the i-th of n parts of a batch; what is drawn is the whole batch's.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.share = (0, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        kept = 1.0 - self.probability
        part, parts = self.share
        shape = (x.shape[0] * parts,) + (1,) * (x.ndim - 1)
        drawn = torch.empty(shape, device=x.device, dtype=x.dtype).bernoulli_(kept)
        return x * drawn.chunk(parts)[part] / kept


class GatedMLP(nn.Module):
    """ReLU6(fc1 x) · fc2 x → fc3, over the last axis."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(channels, hidden)
        self.fc2 = Linear(channels, hidden)
        self.fc3 = Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate, values = F.relu6(self.fc1(x), inplace=True), self.fc2(x)
        # autograd needs both factors as they were
        gated = gate * values if torch.is_grad_enabled() else gate.mul_(values)
        out: Tensor = self.fc3(gated)
        return out
