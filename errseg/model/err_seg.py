"""ERR-Seg: image and class embeddings → cost maps → K classes → context fusion → logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from errseg.config import Keep, ModelConfig
from errseg.model.channel_reduction import (
    count_votes,
    filling,
    select_classes,
    worthwhile,
)
from errseg.model.context_fusion import ContextFusionLayer
from errseg.model.cost_embedding import CostEmbedding, ImageGuidance, TextGuidance, cosine_cost
from errseg.model.decoder import Decoder
from errseg.model.hierarchical_semantic import HierarchicalSemantic
from errseg.model.image_encoder import ConvNeXtEncoder, ImageEncoder, build_efficientnet
from errseg.model.layers import resize
from errseg.model.text_encoder import ClipTextEncoder, MiniLMTextEncoder, TextEncoder
from errseg.stages import stage

COST_STRIDE = 16
DROPPED_LOGIT = -100.0
"""Logit of a class that CRM dropped."""

FEATURE_LIMIT = 16.0
"""Features that guide later parts are clamped to ±this (design section 5)."""


class Prediction(NamedTuple):
    """What the model says of a batch.

    Attributes:
        logits: (B, K, H4, W4) at stride 4 of the model's input.
        classes: (B, K) int64, the kept classes of each picture, ascending.
        cost: (B, H16, W16, T) cosine similarities that CRM voted on.
        counts: (B,) int64 where K was chosen per picture: the first so many classes are the
            picture's, the others fill the batch; else None.
    """

    logits: Tensor
    classes: Tensor
    cost: Tensor
    counts: Tensor | None = None


class ClassMaps(NamedTuple):
    """What the model says of one picture, before it is resized to the picture.

    Attributes:
        probabilities: (K, h, w) float32, 0..1, at stride 4 of the model's input.
        classes: (K,) int64, class ids of the maps, ascending.
    """

    probabilities: Tensor
    classes: Tensor


class ErrSeg(nn.Module):
    """The whole model (design section 1)."""

    def __init__(self, config: ModelConfig) -> None:
        """Builds the model with random weights; `weights.load_model` fills them."""
        super().__init__()
        self.config = config
        image_encoder, text_encoder = _build_towers(config)
        self.text_encoder = text_encoder
        self.image_encoder = HierarchicalSemantic(image_encoder, hierarchical=config.hierarchical)
        stride4, stride8, stride16, stride32 = image_encoder.channels
        self.cost_embedding = CostEmbedding(
            2 if config.hierarchical else 1, config.cost_channels, config.channels
        )
        self.image_guidance = ImageGuidance(
            (stride32, stride16), config.guidance_channels, config.channels
        )
        self.text_guidance = TextGuidance(config.embedding_dim, config.channels)
        self.context_fusion = nn.ModuleList(
            ContextFusionLayer(
                config.channels,
                config.heads,
                config.mlp_channels,
                config.spatial_stride,
                config.class_pooling,
                config.drop_path * layer,
            )
            for layer in range(config.layers)
        )
        self.decoder = Decoder(
            config.channels,
            config.decoder_channels,
            (stride16, stride8, stride4),
            config.decoder_guidance_channels,
        )
        self.register_buffer("mean", _per_channel(config.mean), persistent=False)
        self.register_buffer("std", _per_channel(config.std), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        keep: Keep = None,
        required: Tensor | None = None,
        vote_filter: Callable[[Tensor], Tensor] | None = None,
    ) -> Prediction:
        """Segment a batch.

        Args:
            image: (B, 3, H, W) float, RGB 0..255, at the model's input size.
            text: (T, D) class embeddings, L2-normalised.
            keep: K; None is the model's own way.
            required: (B, T) bool, classes that CRM must keep (training).
            vote_filter: (B, T) votes in, those that CRM goes by out (videos).

        Returns:
            Logits of the K kept classes of each picture, K = min(keep, T).
        """
        with stage("encoder"):
            features = self.image_encoder((image - self.mean) / self.std)
        size = (image.shape[2] // COST_STRIDE, image.shape[3] // COST_STRIDE)
        with stage("cost"):
            cost = self._voting_cost(features.embeddings[0], text, size)
        with stage("crm"):
            classes, counts = self._kept_classes(cost, keep, required, vote_filter)
        kept_text = text[classes]
        with stage("cost"):
            x = self.cost_embedding(self._kept_costs(features.embeddings, kept_text))
            x = x.permute(0, 1, 3, 4, 2).contiguous()
            x = _resize_tokens(x, size)
        stride4, stride8, stride16, stride32 = (
            feature.clamp(-FEATURE_LIMIT, FEATURE_LIMIT) for feature in features[:4]
        )
        fills = None
        if counts is not None and len(image) > 1:
            fills = filling(counts, classes.shape[1])
        with stage("escf"):
            image_guidance = self.image_guidance((stride32, stride16), size)
            image_guidance = image_guidance.permute(0, 2, 3, 1)
            text_guidance = self.text_guidance(kept_text)
            for layer in self.context_fusion:
                x = layer(x, image_guidance, text_guidance, fills)
        with stage("decoder"):
            logits = self.decoder(x, [guide.detach() for guide in (stride16, stride8, stride4)])
        return Prediction(logits, classes, cost, counts)

    def _kept_classes(
        self,
        cost: Tensor,
        keep: Keep,
        required: Tensor | None,
        vote_filter: Callable[[Tensor], Tensor] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """CRM: (B, K) classes that stay, and (B,) how many of them are each picture's own."""
        batch, height, width, total = cost.shape
        most = self.config.keep_for(total, keep)
        if required is not None:
            most = max(most, int(required.sum(dim=1).max()))
        by_votes = required is None and self.config.by_votes(keep)
        if most == total and not by_votes:
            return torch.arange(total, device=cost.device).expand(batch, -1), None
        votes = count_votes(cost.detach())
        votes = votes if vote_filter is None else vote_filter(votes)
        if not by_votes:
            return select_classes(votes, most, required), None
        counts = worthwhile(votes, height * width).clamp(max=most)
        # waits for the device: what follows has shapes that depend on the votes
        return select_classes(votes, int(counts.max()), required, counts), counts

    @staticmethod
    def _voting_cost(embedding: Tensor, text: Tensor, size: tuple[int, int]) -> Tensor:
        """The finest cost maps of all T classes, at stride 16."""
        cost = cosine_cost(embedding, text)
        return resize(cost.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)

    @staticmethod
    def _kept_costs(embeddings: Sequence[Tensor], kept_text: Tensor) -> list[Tensor]:
        """(B, K, Hi, Wi) cost maps of the kept classes, per level."""
        return [cosine_cost(level, kept_text).permute(0, 3, 1, 2) for level in embeddings]


def _per_channel(values: Sequence[float]) -> Tensor:
    # the device is named so that a model built on "meta" has real constants
    return torch.tensor(values, device="cpu").view(-1, 1, 1)


def _resize_tokens(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, K, H, W, C) resized to `size`; needed only where the stride-32 level stands alone."""
    if x.shape[2:4] == size:
        return x
    maps = resize(x.flatten(0, 1).permute(0, 3, 1, 2), size)
    tokens: Tensor = maps.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])
    return tokens.contiguous()


def _build_towers(config: ModelConfig) -> tuple[ImageEncoder, TextEncoder]:
    if config.image_encoder == "efficientnet-lite":
        return build_efficientnet(config), MiniLMTextEncoder(config.text_layers, config.text_width)
    from errseg.model.clip import build_clip

    clip = build_clip(config)
    return ConvNeXtEncoder(clip.visual), ClipTextEncoder(clip)
