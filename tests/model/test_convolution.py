"""Convolutions that keep their weights arranged, against torch's own."""

from __future__ import annotations

import gc
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from errseg.model import convolution
from errseg.model.convolution import Pair, convolve
from errseg.model.image_encoder import SameConv


class Case(NamedTuple):
    """A convolution: its channels, and how it goes over the picture."""

    inputs: int
    outputs: int
    kernel: int
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    zeros_before: Pair = (0, 0)
    groups: int = 1


CASES = (
    Case(5, 7, 1),
    Case(24, 48, 1),
    Case(16, 16, 5, padding=(2, 2), groups=16),
    Case(16, 16, 3, (2, 2), (1, 1), (1, 1), 16),
    Case(16, 16, 5, (2, 2), (2, 2), (1, 0), 16),
    Case(3, 8, 3, (2, 2), (1, 1), (0, 1)),
)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("relu6", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_as_torch_does_it(case: Case, relu6: bool, channels_last: bool) -> None:
    inputs, outputs, kernel, stride, padding, (top, left), groups = case
    weight = nn.Parameter(torch.randn(outputs, inputs // groups, kernel, kernel))
    bias = nn.Parameter(torch.randn(outputs))
    extended = F.pad(weight, (left, 0, top, 0))
    # several shapes through one weight, as with pictures of many sizes
    for batch, size in ((1, (13, 18)), (3, (13, 18)), (1, (6, 6)), (1, (13, 18))):
        x = 4 * torch.randn(batch, inputs, *size)
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        with torch.inference_mode():
            expected = F.conv2d(x, extended, bias, stride, padding, 1, groups)
            expected = F.relu6(expected) if relu6 else expected
            found = convolve(
                x,
                weight,
                bias,
                stride=stride,
                padding=padding,
                zeros_before=(top, left),
                groups=groups,
                relu6=relu6,
            )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_weight_that_changed_is_arranged_again() -> None:
    weight, x = nn.Parameter(torch.randn(8, 8, 1, 1)), torch.randn(1, 8, 5, 5)

    def check() -> None:
        with torch.no_grad():
            torch.testing.assert_close(convolve(x, weight, None), F.conv2d(x, weight))

    check()
    with torch.no_grad():
        weight.mul_(2)
    check()
    weight.data = torch.randn(8, 8, 1, 1)
    check()


def test_gradients_flow_and_what_is_packed_goes_with_its_weight() -> None:
    before = len(convolution._packed)
    layer, x = SameConv(4, 4, 3, 2, groups=4), torch.randn(1, 4, 8, 9)
    with torch.no_grad():
        fast = layer(x)
    slow = layer(x)
    torch.testing.assert_close(fast, slow)
    slow.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.shape == layer.weight.shape
    assert len(convolution._packed) == before + convolution._AVAILABLE
    del layer, slow
    gc.collect()
    assert len(convolution._packed) == before


def test_without_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = nn.Parameter(torch.randn(8, 8, 1, 1)), torch.randn(1, 8, 5, 5)
    with torch.no_grad():
        fast = convolve(x, weight, None, relu6=True)
        monkeypatch.setattr(convolution, "_AVAILABLE", False)
        torch.testing.assert_close(fast, convolve(x, weight, None, relu6=True))
