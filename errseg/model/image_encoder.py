"""The image towers (design section 2): CLIP's ConvNeXt, and EfficientNet-Lite for errseg-mini.

Both offer the same four steps, so that HSM can run the last stage twice:
`features` (strides 4, 8, 16) → a downsample → `last_stage` → `embed`.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from errseg.config import ModelConfig
from errseg.model.convolution import convolve
from errseg.model.layers import Linear, resize, take_over_linears


class ImageEncoder(Protocol):
    """What HSM needs of an image tower; all features are (B, C, H, W)."""

    channels: tuple[int, int, int, int]
    """Channels at strides 4, 8, 16, 32."""

    @property
    def downsample(self) -> nn.Module:
        """Stride 16 → 32, the last stage's usual way in."""

    def features(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised image (B, 3, H, W) → features at strides 4, 8, 16."""

    def make_dense_downsample(self) -> nn.Module:
        """The second way into the last stage, at stride 16; weights copied from `downsample`."""

    def last_stage(self, x: Tensor) -> Tensor:
        """Blocks of the last stage, after either downsample."""

    def embed(self, x: Tensor) -> Tensor:
        """Last-stage features → (B, H, W, D) embeddings, each pixel treated as a pooled vector."""


# --- CLIP's ConvNeXt ------------------------------------------------------------------------


class DenseDownsample(nn.Module):
    """LayerNorm2d, zero-pad 1, 2×2 conv with stride 1, resize back to the input's size."""

    def __init__(self, norm: nn.Module, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = norm
        self.conv = nn.Conv2d(in_channels, out_channels, 2, stride=1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        return resize(self.conv(self.norm(x)), size)


class ConvNeXtEncoder(nn.Module):
    """Image tower of an open_clip ConvNeXt model, read at every stride."""

    def __init__(self, visual: Any) -> None:
        """
        Args:
            visual: open_clip's `TimmModel`: its `trunk` is timm's ConvNeXt, its `head` the
                projection into the shared space (linear or a two-layer MLP).
        """
        super().__init__()
        # timm's modules carry no types: Any is what they are
        self.trunk: Any = visual.trunk
        self.projection: Any = visual.head
        take_over_linears(self)
        widths = [stage.blocks[0].conv_dw.in_channels for stage in self.trunk.stages]
        self.channels = (widths[0], widths[1], widths[2], widths[3])

    @property
    def downsample(self) -> nn.Module:
        downsample: nn.Module = self.trunk.stages[3].downsample
        return downsample

    def features(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stages = self.trunk.stages
        stride4 = stages[0](self.trunk.stem(image))
        stride8 = stages[1](stride4)
        return stride4, stride8, stages[2](stride8)

    def make_dense_downsample(self) -> nn.Module:
        norm, conv = self.trunk.stages[3].downsample
        dense = DenseDownsample(copy.deepcopy(norm), conv.in_channels, conv.out_channels)
        dense.conv.load_state_dict(conv.state_dict())
        return dense

    def last_stage(self, x: Tensor) -> Tensor:
        out: Tensor = self.trunk.norm_pre(self.trunk.stages[3].blocks(x))
        return out

    def embed(self, x: Tensor) -> Tensor:
        out: Tensor = self.projection(self.trunk.head.norm(x).permute(0, 2, 3, 1))
        return out


# --- EfficientNet-Lite ----------------------------------------------------------------------

STEM_WIDTH = 32
HEAD_WIDTH = 1280
EXPANSION = 6
# (kernel, stride, width, repeats) of EfficientNet-Lite0's seven stages (Tan & Le 2019, "lite")
LITE0_STAGES = (
    (3, 1, 16, 1),
    (3, 2, 24, 2),
    (5, 2, 40, 2),
    (3, 2, 80, 3),
    (5, 1, 112, 3),
    (5, 2, 192, 4),
    (3, 1, 320, 1),
)
FEATURE_STAGES = (1, 2, 4)
"""Stages that end at strides 4, 8 and 16."""


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding along one axis, (before, after): the odd pixel goes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv(nn.Conv2d):
    """Conv with TensorFlow's SAME padding and ReLU6; batch norm is already folded into its weights.

    Where the odd pixel goes after, a row or column of zeros in front of the kernel lets the conv
    pad both sides alike: the picture, which is larger, need not be copied.
    """

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        top, bottom = _same_padding(x.shape[2], kernel, stride)
        left, right = _same_padding(x.shape[3], kernel, stride)
        return convolve(
            x,
            self.weight,
            self.bias,
            stride=(stride, stride),
            padding=(bottom, right),
            zeros_before=(bottom - top, right - left),
            groups=self.groups,
            relu6=True,
        )


class PointwiseConv(nn.Conv2d):
    """1×1 conv."""

    def __init__(self, in_channels: int, out_channels: int, *, relu6: bool) -> None:
        super().__init__(in_channels, out_channels, 1)
        self.relu6 = relu6

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.bias, relu6=self.relu6)


class InvertedResidual(nn.Module):
    """Expand 1×1, depth-wise k×k, project 1×1; residual where the shape allows."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        self.expand = PointwiseConv(width, inner, relu6=True) if expansion > 1 else None
        self.depthwise = SameConv(inner, inner, kernel, stride, groups=inner)
        self.project = PointwiseConv(inner, out, relu6=False)
        self.residual = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


def _keep_signal(layer: nn.Module) -> None:
    """Random weights that neither shrink nor grow features: there is no batch norm to mend it."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if isinstance(layer, InvertedResidual):  # visited after its convs
        nn.init.kaiming_normal_(layer.project.weight, nonlinearity="linear")


class EfficientNetLiteEncoder(nn.Module):
    """EfficientNet-Lite with batch norms folded, and a linear embedding.

    Width and depth scale Lite0's stages as the family does: stem and head grow no wider, and the
    first and the last stage no deeper (Tan & Le 2019; the "lite" variants).
    """

    def __init__(self, width: float, depth: float, embedding_dim: int) -> None:
        super().__init__()

        def scaled(channels: int, width: float = width) -> int:
            return max(8, round(channels * width / 8) * 8)

        stem, head = (scaled(channels, min(width, 1.0)) for channels in (STEM_WIDTH, HEAD_WIDTH))
        self.stem = SameConv(3, stem, 3, stride=2)
        stages: list[nn.Sequential] = []
        current = stem
        for index, (kernel, stride, channels, repeats) in enumerate(LITE0_STAGES):
            blocks = []
            inside = 0 < index < len(LITE0_STAGES) - 1
            for repeat in range(math.ceil(repeats * depth) if inside else repeats):
                expansion = 1 if index == 0 else EXPANSION
                step = stride if repeat == 0 else 1
                blocks.append(InvertedResidual(current, scaled(channels), kernel, step, expansion))
                current = scaled(channels)
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages[:5])
        # the block that goes from stride 16 to 32 stands apart, so that HSM can replace it
        self.downsample = stages[5][0]
        self.late = nn.Sequential(*stages[5][1:], *stages[6])
        self.widen = PointwiseConv(current, head, relu6=True)
        self.projection = Linear(head, embedding_dim)
        widths = [scaled(LITE0_STAGES[stage][2]) for stage in FEATURE_STAGES]
        self.channels = (widths[0], widths[1], widths[2], current)
        self.apply(_keep_signal)

    def features(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # on a CPU the depth-wise convs take three quarters of the time with channels last
        x = self.stem(image.contiguous(memory_format=torch.channels_last))
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        first, second, third = (outputs[stage] for stage in FEATURE_STAGES)
        return first, second, third

    def make_dense_downsample(self) -> nn.Module:
        block = self.downsample
        assert isinstance(block, InvertedResidual)
        assert block.expand is not None
        dense = InvertedResidual(
            block.expand.in_channels,
            block.project.out_channels,
            block.depthwise.kernel_size[0],
            1,
            EXPANSION,
        )
        dense.load_state_dict(block.state_dict())
        return dense

    def last_stage(self, x: Tensor) -> Tensor:
        out: Tensor = self.late(x)
        return out

    def embed(self, x: Tensor) -> Tensor:
        out: Tensor = self.projection(self.widen(x).permute(0, 2, 3, 1))
        return out


class ImageFeatures(NamedTuple):
    """What the rest of the model sees of a picture.

    Attributes:
        stride4, stride8, stride16, stride32: (B, C, H, W) features of the trunk.
        embeddings: (B, H, W, D) dense embeddings, the finest level first.
    """

    stride4: Tensor
    stride8: Tensor
    stride16: Tensor
    stride32: Tensor
    embeddings: tuple[Tensor, ...]


def build_efficientnet(config: ModelConfig) -> EfficientNetLiteEncoder:
    """The image tower of errseg-mini, with random weights."""
    return EfficientNetLiteEncoder(config.trunk_width, config.trunk_depth, config.embedding_dim)
