"""Upsampling decoder (design section 7): three guided steps from stride 16 to stride 4."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from errseg.config import DECODER_GROUP_WIDTH


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

    def forward(self, x: Tensor, feature: Tensor, classes: int) -> Tensor:
        """x (B·K, Ci, H, W) with K = `classes`, feature (B, Cf, sH, sW) → (B·K, Co, sH, sW)."""
        x = self.up(x)
        width = x.shape[1]
        guidance = F.relu6(self.guidance(feature))
        # conv([x; g]) = conv_x(x) + conv_g(g), and g has one copy per picture, not per class
        of_x = F.conv2d(x, self.conv1.weight[:, :width], padding=1)
        of_guidance = F.conv2d(guidance, self.conv1.weight[:, width:], padding=1)
        x = (of_x.unflatten(0, (-1, classes)) + of_guidance.unsqueeze(1)).flatten(0, 1)
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
        batch, classes = x.shape[:2]
        maps = x.flatten(0, 1).permute(0, 3, 1, 2)
        for step, feature in zip(self.steps, features, strict=True):
            maps = step(maps, feature, classes)
        logits: Tensor = self.head(maps)
        return logits.view(batch, classes, *logits.shape[2:])
