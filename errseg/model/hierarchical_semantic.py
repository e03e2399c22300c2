"""HSM — Hierarchical Semantic Module (design section 3; with CRM it is RRHC in the paper's v2).

The last stage runs twice from the stride-16 features: the usual way, giving embeddings at
stride 32, and through a second downsample that keeps stride 16.
"""

from __future__ import annotations

from torch import Tensor, nn

from errseg.model.image_encoder import ImageEncoder, ImageFeatures


class HierarchicalSemantic(nn.Module):
    """Image tower plus dense branch."""

    def __init__(self, encoder: ImageEncoder, *, hierarchical: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.dense_downsample = encoder.make_dense_downsample() if hierarchical else None

    def forward(self, image: Tensor) -> ImageFeatures:
        """Normalised image (B, 3, H, W) → features at four strides and dense embeddings."""
        encoder = self.encoder
        stride4, stride8, stride16 = encoder.features(image)
        stride32 = encoder.last_stage(encoder.downsample(stride16))
        embeddings: tuple[Tensor, ...] = (encoder.embed(stride32),)
        if self.dense_downsample is not None:
            dense = encoder.last_stage(self.dense_downsample(stride16))
            embeddings = (encoder.embed(dense), *embeddings)
        return ImageFeatures(stride4, stride8, stride16, stride32, embeddings)
