"""Builds the open_clip model whose towers errseg-base and errseg-large use. No network."""

from __future__ import annotations

from typing import Any

from errseg.config import ModelConfig

TINY_CLIP: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {
        "timm_model_name": "convnext_atto",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "timm_drop": 0.0,
        "timm_drop_path": 0.0,
        "image_size": 64,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 1,
    },
}
"""The published architecture in small, for tests."""


def build_clip(config: ModelConfig) -> Any:
    """An open_clip `CLIP` with random weights."""
    import open_clip

    # `create_model` would do, but it moves and fills the model, which one on "meta" cannot bear
    shape = (
        TINY_CLIP if config.clip_model == "tiny" else open_clip.get_model_config(config.clip_model)
    )
    return open_clip.CLIP(**shape)
