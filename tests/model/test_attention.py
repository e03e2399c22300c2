"""Attention by convolutions, against attention as it is defined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from errseg.model import attention
from errseg.model.attention import attend, attend_by_convolution


def tokens(queries: int, keys: int, channels: int) -> list[Tensor]:
    torch.manual_seed(0)
    # large scores: one key then has nearly all of the weight
    return [3 * torch.randn(2, length, channels) for length in (queries, keys, keys)]


def by_definition(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    parts = []
    for q, k, v in zip(
        *(x.double().chunk(heads, dim=-1) for x in (query, key, value)), strict=True
    ):
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        parts.append(scores.softmax(dim=-1) @ v)
    return torch.cat(parts, dim=-1).float()


@pytest.mark.parametrize(
    ("queries", "keys", "channels", "heads"),
    [(1600, 400, 128, 4), (33, 48, 64, 2), (5, 7, 24, 4), (1, 1, 8, 1)],
)
def test_both_ways_are_attention(queries: int, keys: int, channels: int, heads: int) -> None:
    query, key, value = tokens(queries, keys, channels)
    expected = by_definition(query, key, value, heads)
    with torch.inference_mode():
        for way in (attend, attend_by_convolution):
            found = way(query, key, value, heads=heads)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


def test_tokens_that_do_not_lie_one_after_another() -> None:
    query, key, value = (x.transpose(1, 2).contiguous() for x in tokens(33, 48, 64))
    transposed = [x.transpose(1, 2) for x in (query, key, value)]
    expected = by_definition(*transposed, heads=2)
    with torch.inference_mode():
        found = attend_by_convolution(*transposed, heads=2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "by_convolution"),
    [
        ({}, True),
        ({"keys": 399}, False),
        ({"channels": 96}, False),
        ({"queries": 8}, False),
        ({"gradient": True}, False),
        ({"dtype": torch.bfloat16}, False),
        ({"allowed": True}, False),
        ({"pays": False}, False),
    ],
)
def test_when_convolutions_are_taken(
    change: dict[str, Any], by_convolution: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(query: Tensor, key: Tensor, value: Tensor, *, heads: int) -> Tensor:
        calls.append(heads)
        return attend_by_convolution(query, key, value, heads=heads)

    monkeypatch.setattr(attention, "attend_by_convolution", counted)
    monkeypatch.setattr(attention, "CONVOLUTION_PAYS", change.get("pays", True))
    keys = change.get("keys", 400)
    query, key, value = (
        x.to(change.get("dtype", torch.float32))
        for x in tokens(change.get("queries", 200), keys, change.get("channels", 128))
    )
    allowed = torch.ones(2, 1, 1, keys, dtype=torch.bool) if "allowed" in change else None
    with torch.set_grad_enabled("gradient" in change):
        attend(query, key, value, heads=4, allowed=allowed)
    assert bool(calls) == by_convolution
