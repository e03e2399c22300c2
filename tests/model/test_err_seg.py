"""The whole model against the plain whole, and what must hold of it whatever its weights."""

from __future__ import annotations

import plain
import pytest
import torch
import torch.nn.functional as F
from seeded import build_model, random_images, random_text
from torch import Tensor, nn

from errseg.config import KEEP_LARGEST, PRESETS
from errseg.model.err_seg import DROPPED_LOGIT, ErrSeg, Prediction
from errseg.model.image_encoder import ImageFeatures

CLOSE = {"rtol": 1e-3, "atol": 1e-4}
SWITCHES = [
    {},
    {"hierarchical": False},
    {"channel_reduction": False},
    {"spatial_stride": 1},
    {"class_pooling": 1},
    {"hierarchical": False, "channel_reduction": False, "spatial_stride": 1, "class_pooling": 1},
]


def scattered(prediction: Prediction, index: int, class_count: int) -> Tensor:
    """(T, H4, W4) logits of one picture."""
    maps = prediction.logits[index]
    logits = maps.new_full((class_count, *maps.shape[1:]), DROPPED_LOGIT)
    logits[prediction.classes[index]] = maps
    return logits


def assert_equals_plain(model: ErrSeg, images: Tensor, text: Tensor, keep: int) -> Prediction:
    with torch.no_grad():
        prediction = model(images, text, keep=keep)
        for index, image in enumerate(images):
            expected = plain.err_seg(model, image, text, keep)
            torch.testing.assert_close(scattered(prediction, index, len(text)), expected, **CLOSE)
    return prediction


@pytest.mark.parametrize("block_tokens", [1, 4096])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("switches", SWITCHES, ids=lambda switches: "+".join(switches) or "all on")
@pytest.mark.parametrize("name", ["tiny", "tiny-convnext"])
def test_equals_plain(
    name: str,
    switches: dict[str, bool | int],
    batch: int,
    block_tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("errseg.model.layers.BLOCK_TOKENS", block_tokens)
    model = build_model(name, **switches)
    prediction = assert_equals_plain(model, random_images(batch), random_text(9), keep=4)
    kept = 9 if switches.get("channel_reduction") is False else 4
    assert prediction.logits.shape == (batch, kept, 16, 16)
    assert prediction.logits.std() > 1e-3


@pytest.mark.parametrize("size", [(32, 96), (96, 64)])
def test_sides_whose_stride_32_is_odd(model: ErrSeg, size: tuple[int, int]) -> None:
    prediction = assert_equals_plain(model, random_images(2, *size), random_text(6), keep=3)
    assert prediction.logits.shape[2:] == (size[0] // 4, size[1] // 4)


@pytest.mark.parametrize(
    ("class_count", "keep", "kept"),
    [(1, None, 1), (1, 1, 1), (2, None, 2), (5, 32, 5), (21, None, 21), (847, None, KEEP_LARGEST)],
)
def test_vocabulary_sizes(model: ErrSeg, class_count: int, keep: int | None, kept: int) -> None:
    images, text = random_images(1), random_text(class_count)
    with torch.no_grad():
        prediction = model(images, text, keep=keep)
        expected = plain.err_seg(model, images[0], text, kept)
    assert prediction.classes.shape == (1, kept)
    torch.testing.assert_close(scattered(prediction, 0, class_count), expected, **CLOSE)


@pytest.mark.parametrize(
    ("class_count", "kept"),
    [(20, 16), (21, 21), (24, 24), (59, 24), (60, 32), (150, 32), (151, 48), (459, 48), (847, 48)],
)
def test_published_budgets(class_count: int, kept: int) -> None:
    assert PRESETS["errseg-base"].keep_for(class_count) == kept


def test_a_batch_equals_its_pictures_one_by_one(model: ErrSeg) -> None:
    images, text = random_images(4), random_text(40)
    with torch.no_grad():
        together = model(images, text, keep=5)
        assert len({tuple(row.tolist()) for row in together.classes}) > 1  # K-sets differ
        for index in range(4):
            alone = model(images[index : index + 1], text, keep=5)
            assert torch.equal(alone.classes[0], together.classes[index])
            torch.testing.assert_close(alone.logits[0], together.logits[index], **CLOSE)


def test_class_order_is_irrelevant(model: ErrSeg) -> None:
    """But for ties, which a larger picture makes unlikely."""
    images, text = random_images(2, 128, 128), random_text(12)
    order = torch.randperm(12)
    with torch.no_grad():
        straight = model(images, text, keep=4)
        shuffled = model(images, text[order], keep=4)
    for index in range(2):
        found = scattered(shuffled, index, 12)
        torch.testing.assert_close(found, scattered(straight, index, 12)[order], **CLOSE)
        assert shuffled.classes[index].tolist() == sorted(shuffled.classes[index].tolist())


def test_classes_that_mean_the_same_keep_the_lower_indices(model: ErrSeg) -> None:
    images, text = random_images(2), random_text(1).expand(9, -1)
    with torch.no_grad():
        prediction = model(images, text, keep=4)
    assert prediction.classes.tolist() == [[0, 1, 2, 3]] * 2
    spread = prediction.logits.amax(dim=1) - prediction.logits.amin(dim=1)
    assert spread.max() < 1e-4


@pytest.mark.parametrize("required", [[], [0], [2, 30], [1, 2, 3, 4]])
def test_required_classes_are_kept(model: ErrSeg, required: list[int]) -> None:
    images, text = random_images(2), random_text(40)
    flags = torch.zeros(2, 40, dtype=torch.bool)
    flags[:, required] = True
    with torch.no_grad():
        prediction = model(images, text, keep=4, required=flags)
        expected = plain.err_seg(model, images[1], text, 4, required)
    for row in prediction.classes.tolist():
        assert set(required) <= set(row)
        assert len(set(row)) == 4
    torch.testing.assert_close(scattered(prediction, 1, 40), expected, **CLOSE)


@pytest.mark.parametrize("block_tokens", [1, 4096])
def test_each_picture_keeps_as_many_classes_as_it_has_votes_for(
    model: ErrSeg, block_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fills the batch changes nothing: equals the plain whole with each picture's own K."""
    monkeypatch.setattr("errseg.model.layers.BLOCK_TOKENS", block_tokens)
    images, text = random_images(5), random_text(30)
    images[0] = 128.0  # one colour: few classes
    with torch.no_grad():
        prediction = model(images, text, keep="auto")
        assert prediction.counts is not None
        for index, count in enumerate(prediction.counts.tolist()):
            own = prediction.classes[index, :count]
            expected = plain.err_seg(model, images[index], text, count)
            assert expected[own].min() > DROPPED_LOGIT
            torch.testing.assert_close(prediction.logits[index, :count], expected[own], **CLOSE)
    assert prediction.classes.shape[1] == prediction.counts.max() <= model.config.keep_for(30)
    assert prediction.counts.min() < prediction.counts.max(), "or the batch needs no filling"


def test_required_classes_are_kept_whatever_the_votes(model: ErrSeg) -> None:
    flags = torch.ones(1, 40, dtype=torch.bool)
    with torch.no_grad():
        prediction = model(torch.zeros(1, 3, 64, 64), random_text(40), "auto", flags)
    assert prediction.classes.tolist() == [list(range(40))]


def test_evaluation_is_repeatable_and_training_is_not(model: ErrSeg) -> None:
    images, text = random_images(2), random_text(6)
    with torch.no_grad():
        first, second = model(images, text), model(images, text)
    assert torch.equal(first.logits, second.logits)

    learning = build_model(model.config.name, drop_path=0.9).train()
    with torch.no_grad():
        dropped = [learning(images, text).logits for _ in range(6)]
    assert any(not torch.equal(dropped[0], other) for other in dropped[1:])


# --- features, clamped and cut off from the gradient ------------------------------------------


class GivenFeatures(nn.Module):
    """Stands in for the image encoder."""

    def __init__(self, features: ImageFeatures) -> None:
        super().__init__()
        self.features = features

    def forward(self, _image: Tensor) -> ImageFeatures:
        return self.features


def with_given_features(spread: float) -> tuple[ErrSeg, ImageFeatures]:
    model = build_model("tiny")
    widths = model.image_encoder.encoder.channels
    maps = [
        (torch.randn(1, width, 64 // stride, 64 // stride) * spread).requires_grad_()
        for width, stride in zip(widths, (4, 8, 16, 32), strict=True)
    ]
    embeddings = tuple(torch.randn(1, side, side, 32).requires_grad_() for side in (4, 2))
    features = ImageFeatures(*maps, embeddings)
    model.image_encoder = GivenFeatures(features)  # type: ignore[assignment]
    return model, features


def test_features_are_clamped() -> None:
    model, features = with_given_features(spread=40.0)
    text = random_text(5)
    with torch.no_grad():
        found = scattered(model(torch.zeros(1, 3, 64, 64), text, keep=3), 0, 5)
        expected = plain.from_features(
            model,
            [feature[0] for feature in features[:4]],
            [level[0].permute(2, 0, 1) for level in features.embeddings],
            text,
            keep=3,
        )
    torch.testing.assert_close(found, expected, **CLOSE)
    clamped = ImageFeatures(*(f.clamp(-16, 16) for f in features[:4]), features.embeddings)
    model.image_encoder = GivenFeatures(clamped)  # type: ignore[assignment]
    with torch.no_grad():
        again = scattered(model(torch.zeros(1, 3, 64, 64), text, keep=3), 0, 5)
    assert torch.equal(found, again)


def test_gradients_stop_at_strides_4_and_8() -> None:
    model, features = with_given_features(spread=1.0)
    model(torch.zeros(1, 3, 64, 64), random_text(5), keep=3).logits.sum().backward()
    assert features.stride4.grad is None
    assert features.stride8.grad is None
    for feature in (features.stride16, features.stride32, *features.embeddings):
        assert feature.grad is not None
        assert feature.grad.abs().sum() > 0
    assert all(step.guidance.weight.grad is not None for step in model.decoder.steps)


def test_stride_16_learns_from_the_fusion_and_not_from_the_decoder() -> None:
    """With the fusion's guidance at zero weight, nothing is left to reach the feature."""
    model, features = with_given_features(spread=1.0)
    with torch.no_grad():
        model.image_guidance.level_convs[1].weight.zero_()
    model(torch.zeros(1, 3, 64, 64), random_text(5), keep=3).logits.sum().backward()
    assert features.stride16.grad is not None
    assert features.stride16.grad.abs().max() == 0


def test_gradient_of_the_kept_costs_reaches_text_and_embeddings() -> None:
    """And equals the gradient through the plain whole: the rewrites are exact both ways."""
    model, features = with_given_features(spread=1.0)
    raw = torch.randn(5, 32, requires_grad=True)
    text = F.normalize(raw, dim=-1)
    weights = torch.randn(3, 16, 16)
    prediction = model(torch.zeros(1, 3, 64, 64), text, keep=3)
    leaves = [raw, features.stride16, features.stride32, *features.embeddings]
    found = torch.autograd.grad((prediction.logits[0] * weights).sum(), leaves, retain_graph=True)
    logits = plain.from_features(
        model,
        [feature[0] for feature in features[:4]],
        [level[0].permute(2, 0, 1) for level in features.embeddings],
        text,
        keep=3,
    )
    expected = torch.autograd.grad((logits[prediction.classes[0]] * weights).sum(), leaves)
    for ours, theirs in zip(found, expected, strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * scale)


def test_training_reaches_every_parameter_but_the_text_tower(model: ErrSeg) -> None:
    learning = build_model(model.config.name)
    learning(random_images(2), random_text(6), keep=3).logits.square().sum().backward()
    idle = [
        name
        for name, parameter in learning.named_parameters()
        if parameter.grad is None and not name.startswith("text_encoder.")
    ]
    assert idle == []
