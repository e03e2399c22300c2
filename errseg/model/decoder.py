"""Upsampling decoder (design section 7): three guided steps from stride 16 to stride 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from errseg.config import DECODER_GROUP_WIDTH
from errseg.model.layers import in_blocks


class DecoderStep(nn.Module):
    """(Up)conv, concat with projected guidance, 2 × (3×3 conv, GroupNorm, ReLU)."""

    def __init__(
        self, in_channels: int, out_channels: int, feature: int, guidance: int, *, upsample: bool
    ) -> None:
        super().__init__()
        self.up: nn.Module = (
            nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
            if upsample
            else nn.Conv2d(in_channels, out_channels, 1)
        )
        self.guidance = nn.Conv2d(feature, guidance, 3, padding=1)
        groups = out_channels // DECODER_GROUP_WIDTH
        self.conv1 = nn.Conv2d(out_channels + guidance, out_channels, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(groups, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, out_channels)

    def of_guidance(self, feature: Tensor) -> Tensor:
        """The guidance's part of the first conv: (B, Cf, sH, sW) → (B, 1, Co, sH, sW).

        conv([x; g]) = conv_x(x) + conv_g(g), and g has one copy per picture, not per class.
        """
        guidance = F.relu6(self.guidance(feature))
        weight = self.conv1.weight[:, -guidance.shape[1] :]
        return F.conv2d(guidance, weight, padding=1).unsqueeze(1)

    def forward(self, x: Tensor, of_guidance: Tensor) -> Tensor:
        """x (B·K, Ci, H, W), of_guidance (B, 1, Co, sH, sW) → (B·K, Co, sH, sW)."""
        x = self.up(x)
        of_x = F.conv2d(x, self.conv1.weight[:, : x.shape[1]], padding=1)
        x = (of_x.unflatten(0, (len(of_guidance), -1)) + of_guidance).flatten(0, 1)
        x = F.relu(self.norm1(x))
        return F.relu(self.norm2(self.conv2(x)))


class Decoder(nn.Module):
    """Class maps at stride 16 → logits at stride 4."""

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        features: Sequence[int],
        guidance: Sequence[int],
    ) -> None:
        super().__init__()
        widths = (in_channels, *channels)
        self.steps = nn.ModuleList(
            DecoderStep(widths[i], widths[i + 1], features[i], guidance[i], upsample=i > 0)
            for i in range(len(channels))
        )
        self.head = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, x: Tensor, features: Sequence[Tensor]) -> Tensor:
        """x (B, K, H16, W16, C), features at strides 16, 8, 4 → (B, K, H4, W4) logits."""
        steps = cast(Sequence[DecoderStep], self.steps)
        guidance = [
            step.of_guidance(feature) for step, feature in zip(steps, features, strict=True)
        ]

        def decode(x: Tensor) -> Tensor:
            maps = x.flatten(0, 1).permute(0, 3, 1, 2)
            for step, of_guidance in zip(steps, guidance, strict=True):
                maps = step(maps, of_guidance)
            logits: Tensor = self.head(maps)
            return logits.view(*x.shape[:2], *logits.shape[2:])

        return in_blocks(decode, 1, x)
