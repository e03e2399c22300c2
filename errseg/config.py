"""ModelConfig: everything about a model but its weights, saved beside them.

`PRESETS` holds the models that errseg knows by name. The four switches `hierarchical`,
`channel_reduction`, `spatial_stride` and `class_pooling` turn the paper's parts off one by one.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from errseg.errors import ConfigError

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
PUBLISHED_PROMPT = "A photo of a {} in the scene"

INPUT_MULTIPLE = 32
"""Input sides are multiples of the trunk's largest stride."""

KEEP_BY_VOCABULARY_SIZE = ((20, 16), (59, 24), (150, 32), (459, 48))
"""(largest T, K) as published; larger vocabularies keep `KEEP_LARGEST` classes."""

KEEP_LARGEST = 48

Keep = int | Literal["auto", "published"] | None
"""CRM's budget: K; "published", by the size of the vocabulary; "auto", at most that, of each
picture the classes with votes enough; None, whichever of the two is the model's own."""

DECODER_GROUP_WIDTH = 8
"""Channels per group of the decoder's group norms."""


CALIBRATED = ("logit_scale", "logit_shift", "competition")
"""Settings of a model that are none of its shape: calibration chooses them."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of one ERR-Seg model, and what its numbers mean.

    Attributes:
        name: what the user calls it.
        image_encoder: "convnext" (open_clip) or "efficientnet-lite".
        text_encoder: "clip" (open_clip) or "minilm" (a sentence encoder).
        clip_model: open_clip model name; empty where open_clip is not used.
        trunk_width, trunk_depth: multipliers of the EfficientNet-Lite trunk's width and depth; 1
            and 1 are Lite0, 1.1 and 1.2 Lite2.
        text_layers, text_width: size of the MiniLM tower.
        image_size: (H, W) in pixels that pictures are resized to, multiples of 32.
        antialias: filter while shrinking pictures to `image_size`. The published models do not.
        mean, std: RGB normalisation, in 0..255.
        embedding_dim: D, size of the space shared by pixels and class names.
        prompt: template with one `{}` for the class name.
        cost_channels: channels of each level's cost embedding before fusion.
        guidance_channels: channels of each level's image guidance before fusion.
        channels: C of the context fusion.
        heads, layers, mlp_channels, drop_path: of the context fusion; drop_path is the step by
            which stochastic depth grows from layer to layer in training.
        decoder_channels, decoder_guidance_channels: of the three decoder steps.
        hierarchical: HSM on; off uses the stride-32 cost alone.
        keep: the model's own CRM budget, "published" or "auto" (see `Keep`).
        logit_scale, logit_shift: how logits are calibrated: probabilities are taken of
            logit_scale * logit + logit_shift; as published, of the logits as they are.
        competition: how much the classes kept of a picture compete for its pixels. The probability
            of each is its own (the sigmoid of its calibrated logit l) times its share in the
            softmax of competition * l over all of them; 0 = its own alone, as published.
        channel_reduction: CRM on; off keeps all T classes.
        spatial_stride: ESCF's spatial-level sequence reduction; 1 turns it off.
        class_pooling: ESCF's class-level sequence reduction; 1 turns it off.
    """

    name: str
    image_encoder: Literal["convnext", "efficientnet-lite"]
    text_encoder: Literal["clip", "minilm"]
    image_size: tuple[int, int]
    embedding_dim: int
    clip_model: str = ""
    trunk_width: float = 1.0
    trunk_depth: float = 1.0
    text_layers: int = 6
    text_width: int = 384
    antialias: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    prompt: str = PUBLISHED_PROMPT
    cost_channels: int = 256
    guidance_channels: int = 256
    channels: int = 128
    heads: int = 4
    layers: int = 4
    mlp_channels: int = 384
    drop_path: float = 0.025
    decoder_channels: tuple[int, int, int] = (64, 32, 16)
    decoder_guidance_channels: tuple[int, int, int] = (32, 16, 8)
    keep: Literal["published", "auto"] = "published"
    logit_scale: float = 1.0
    logit_shift: float = 0.0
    competition: float = 0.0
    hierarchical: bool = True
    channel_reduction: bool = True
    spatial_stride: int = 2
    class_pooling: int = 2

    def __post_init__(self) -> None:
        height, width = self.image_size
        if min(height, width) < INPUT_MULTIPLE or height % INPUT_MULTIPLE or width % INPUT_MULTIPLE:
            raise ConfigError(
                f"image_size is {height}x{width}; both sides must be multiples of {INPUT_MULTIPLE}."
            )
        towers = (self.image_encoder, self.text_encoder)
        if towers not in (("convnext", "clip"), ("efficientnet-lite", "minilm")):
            raise ConfigError(
                f"image_encoder and text_encoder are {towers}; they must be convnext and clip, "
                "or efficientnet-lite and minilm."
            )
        if (self.image_encoder == "convnext") != bool(self.clip_model):
            raise ConfigError(f"clip_model is {self.clip_model!r}; a convnext needs one, no other.")
        if self.text_encoder == "minilm" and self.embedding_dim != self.text_width:
            raise ConfigError(
                f"embedding_dim is {self.embedding_dim}; with minilm it must equal text_width, "
                f"{self.text_width}."
            )
        if self.keep not in ("published", "auto"):
            raise ConfigError(f"keep is {self.keep!r}; it must be published or auto.")
        for name in CALIBRATED:
            value, signed = getattr(self, name), name == "logit_shift"
            number = isinstance(value, int | float) and math.isfinite(value)
            if not number or (value < 0 and not signed):
                above = "" if signed else " from 0"
                raise ConfigError(f"{name} is {value!r}; it must be a number{above}.")
        if any(channels % DECODER_GROUP_WIDTH for channels in self.decoder_channels):
            raise ConfigError(
                f"decoder_channels are {self.decoder_channels}; each must be a multiple of "
                f"{DECODER_GROUP_WIDTH}."
            )
        if self.channels % self.heads:
            raise ConfigError(f"channels ({self.channels}) must divide by heads ({self.heads}).")
        if self.prompt.count("{}") != 1:
            raise ConfigError(f"prompt is {self.prompt!r}; it must hold {{}} exactly once.")
        if self.spatial_stride not in (1, 2) or self.class_pooling not in (1, 2):
            raise ConfigError("spatial_stride and class_pooling must be 1 (off) or 2.")

    def keep_for(self, class_count: int, keep: Keep = None) -> int:
        """The largest K for a vocabulary of `class_count` classes: `keep`, or as published."""
        if not self.channel_reduction:
            return class_count
        if isinstance(keep, int):
            return min(keep, class_count)
        published = (k for largest, k in KEEP_BY_VOCABULARY_SIZE if class_count <= largest)
        return min(next(published, KEEP_LARGEST), class_count)

    def by_votes(self, keep: Keep = None) -> bool:
        """Whether a picture may keep fewer classes than `keep_for` says."""
        return self.channel_reduction and (keep or self.keep) == "auto"

    def kept(self, class_count: int, keep: Keep = None) -> int | Literal["auto"]:
        """Classes kept of each picture; "auto" where that differs from picture to picture."""
        return "auto" if self.by_votes(keep) else self.keep_for(class_count, keep)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Rebuild a config from `to_json`'s text; ConfigError names what does not fit."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"the model configuration is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"the model configuration is {values!r}; it must be a JSON object.")
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Rebuild a config from plain values; ConfigError names what does not fit."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"unknown model setting {unknown[0]!r}; known are {sorted(known)}.")
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        try:
            return cls(**plain)
        except TypeError as error:
            raise ConfigError(f"the model configuration is incomplete: {error}") from error


BASE = ModelConfig(
    name="errseg-base",
    image_encoder="convnext",
    text_encoder="clip",
    clip_model="convnext_base_w_320",
    image_size=(640, 640),
    embedding_dim=640,
)

LARGE = dataclasses.replace(
    BASE,
    name="errseg-large",
    clip_model="convnext_large_d_320",
    image_size=(768, 768),
    embedding_dim=768,
)

MINI = ModelConfig(
    name="errseg-mini",
    image_encoder="efficientnet-lite",
    text_encoder="minilm",
    image_size=(512, 512),
    antialias=True,
    mean=(127.0, 127.0, 127.0),
    std=(128.0, 128.0, 128.0),
    embedding_dim=384,
    trunk_width=1.1,
    trunk_depth=1.2,
    prompt="a photo of a {} in the scene",
    cost_channels=64,
    guidance_channels=64,
    channels=48,
    layers=2,
    mlp_channels=96,
    decoder_channels=(24, 16, 8),
    decoder_guidance_channels=(16, 8, 8),
    keep="auto",
)

TINY = dataclasses.replace(
    MINI,
    name="tiny",
    keep="published",
    image_size=(64, 64),
    trunk_width=0.25,
    trunk_depth=1.0,
    text_layers=1,
    text_width=32,
    embedding_dim=32,
    cost_channels=8,
    guidance_channels=8,
    channels=16,
    mlp_channels=24,
    decoder_channels=(16, 8, 8),
    decoder_guidance_channels=(8, 4, 4),
)
"""For tests: seeded random weights, a forward pass in milliseconds."""

TINY_CONVNEXT = dataclasses.replace(
    TINY,
    name="tiny-convnext",
    image_encoder="convnext",
    text_encoder="clip",
    clip_model="tiny",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    prompt=PUBLISHED_PROMPT,
    antialias=False,
)
"""For tests: the published architecture in small."""

PRESETS = {config.name: config for config in (MINI, BASE, LARGE, TINY, TINY_CONVNEXT)}
