"""Each part of the model against the slow and obvious one in `plain`."""

from __future__ import annotations

import dataclasses

import numpy as np
import plain
import pytest
import torch
import torch.nn.functional as F
from seeded import build_model, random_text, stir
from torch import Tensor, nn

from errseg.config import PRESETS
from errseg.inference import best_class, preprocess
from errseg.model.channel_reduction import (
    LEAST_VOTES,
    count_votes,
    select_classes,
    worthwhile,
)
from errseg.model.context_fusion import ClassFusion, ContextFusionLayer, SpatialFusion
from errseg.model.cost_embedding import CostEmbedding, ImageGuidance, TextGuidance, cosine_cost
from errseg.model.decoder import Decoder
from errseg.model.err_seg import ErrSeg
from errseg.model.image_encoder import EfficientNetLiteEncoder
from errseg.model.layers import DropPath, Linear, in_blocks
from errseg.records import UNLABELLED
from errseg.training.mini_init import init_trunk

CLOSE = {"rtol": 1e-4, "atol": 1e-5}

BATCH, CLASSES, CHANNELS = 2, 3, 16
SIZES = [(4, 4), (2, 6), (10, 14)]


def stir_fusion(module: SpatialFusion | ClassFusion) -> None:
    """Also drive the gated MLP beyond 6, where its ReLU6 ends."""
    stir(module)
    with torch.no_grad():
        module.mlp.fc1.weight.mul_(10)
        module.mlp.fc3.weight.mul_(5)


def tokens(maps: Tensor) -> Tensor:
    """(B, K, C, H, W) → (B, K, H, W, C)."""
    return maps.permute(0, 1, 3, 4, 2)


# --- image towers and HSM -------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (160, 32)])
@pytest.mark.parametrize("hierarchical", [True, False])
def test_hsm(model: ErrSeg, size: tuple[int, int], hierarchical: bool) -> None:
    if not hierarchical:
        model = build_model(model.config.name, hierarchical=False)
    image = torch.randn(BATCH, 3, *size)
    with torch.no_grad():
        fast = model.image_encoder(image)
        for index in range(BATCH):
            features, embeddings = plain.hierarchical(model.image_encoder, image[index])
            for ours, expected in zip(fast[:4], features, strict=True):
                torch.testing.assert_close(ours[index], expected, **CLOSE)
            assert len(fast.embeddings) == len(embeddings) == 1 + hierarchical
            for ours, expected in zip(fast.embeddings, embeddings, strict=True):
                torch.testing.assert_close(ours[index].permute(2, 0, 1), expected, **CLOSE)
    strides = [size[0] // feature.shape[2] for feature in fast[:4]]
    assert strides == [4, 8, 16, 32]
    assert [level.shape[1] for level in fast.embeddings] == [size[0] // 16, size[0] // 32][
        not hierarchical :
    ]


@pytest.mark.parametrize("name", ["tiny", "tiny-convnext"])
def test_dense_way_starts_as_a_copy_of_the_usual_one(name: str) -> None:
    torch.manual_seed(3)
    encoder = ErrSeg(PRESETS[name]).image_encoder
    assert encoder.dense_downsample is not None
    usual = list(encoder.encoder.downsample.state_dict().values())
    dense = list(encoder.dense_downsample.state_dict().values())
    assert len(usual) == len(dense)
    assert all(torch.equal(a, b) for a, b in zip(usual, dense, strict=True))
    with torch.no_grad():
        next(iter(encoder.dense_downsample.parameters())).add_(1)
    assert not torch.equal(
        next(iter(encoder.dense_downsample.parameters())),
        next(iter(encoder.encoder.downsample.parameters())),
    )


def test_convnext_embeds_one_pixel_as_open_clip_embeds_a_picture() -> None:
    """At 32×32 the stride-32 level is one pixel, which is then the pooled vector."""
    import open_clip

    from errseg.model.clip import TINY_CLIP
    from errseg.model.hierarchical_semantic import HierarchicalSemantic
    from errseg.model.image_encoder import ConvNeXtEncoder

    vision = {**TINY_CLIP["vision_cfg"], "timm_pool": "avg"}
    clip = open_clip.CLIP(**{**TINY_CLIP, "vision_cfg": vision}).eval()
    stir(clip.visual)
    ours = HierarchicalSemantic(ConvNeXtEncoder(clip.visual), hierarchical=True).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = clip.encode_image(image)
        found = ours(image).embeddings[1]
    assert found.shape == (2, 1, 1, 32)
    torch.testing.assert_close(found[:, 0, 0], expected, **CLOSE)


@pytest.mark.parametrize("size", [(64, 96), (97, 67)])
@pytest.mark.parametrize(
    ("name", "width", "depth"),
    [("tf_efficientnet_lite0", 1.0, 1.0), ("tf_efficientnet_lite2", 1.1, 1.2)],
)
def test_efficientnet_lite_is_timms(
    name: str, width: float, depth: float, size: tuple[int, int]
) -> None:
    """Also where the sides are odd and TensorFlow's SAME padding is lopsided."""
    import timm

    reference = timm.create_model(name, pretrained=False).eval()
    stir(reference)
    for buffer in reference.buffers():
        if buffer.ndim:
            buffer.add_(torch.rand_like(buffer) * 0.2)
    ours = EfficientNetLiteEncoder(width, depth, 8).eval()
    init_trunk(ours, list(reference.state_dict().values()))
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        stages = reference.forward_intermediates(image, intermediates_only=True)
        last = reference.forward_features(image)
        stride4, stride8, stride16 = ours.features(image)
        stride32 = ours.last_stage(ours.downsample(stride16))
        wide = ours.widen(stride32)
    for found, expected in zip((stride4, stride8, stride16), stages[1:4], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(wide, last, rtol=1e-3, atol=1e-3)


# --- CRM ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "keep"), [(1, 1), (2, 1), (3, 2), (7, 3), (7, 7), (40, 16), (5, 9)]
)
def test_crm(classes: int, keep: int) -> None:
    # few distinct values: pixels tie in their ranks, classes tie in their counters
    cost = torch.randint(-2, 3, (BATCH, 3, 5, classes)) / 4
    found = select_classes(count_votes(cost), keep)
    for index in range(BATCH):
        expected = plain.kept_classes(cost[index].permute(2, 0, 1), keep)
        assert found[index].tolist() == expected


@pytest.mark.parametrize("classes", [4, 8, 33, 150])
def test_crm_ties_go_to_the_lower_index(classes: int) -> None:
    """Classes with one and the same embedding tie at every pixel."""
    votes = count_votes(torch.zeros(1, 2, 3, classes))
    assert votes[0].tolist() == [600, 60, 6] + [0] * (classes - 3)
    assert select_classes(votes, 4).tolist() == [[0, 1, 2, 3]]


def test_crm_counts_exactly() -> None:
    """Ten second places equal one first place: 10 × 0.1 in floating point would not."""
    votes = torch.tensor([[1000, 1000, 999, 1000]])
    assert select_classes(votes, 2).tolist() == [[0, 1]]
    cost = torch.zeros(1, 1, 11, 5)
    cost[0, 0, :10, 0], cost[0, 0, :10, 4] = 1.0, 0.5
    cost[0, 0, :10, 1] = 0.25
    cost[0, 0, 10, 3], cost[0, 0, 10, 2], cost[0, 0, 10, 1] = 1.0, 0.5, 0.25
    assert count_votes(cost).tolist() == [[1000, 11, 10, 100, 100]]


def test_crm_counts_classes_with_votes_enough() -> None:
    least = int(LEAST_VOTES * 100 * 500)
    votes = torch.tensor(
        [[0, least, 50000, least - 1], [0, 0, 0, 0], [least, 0, 0, 0], [least] * 4]
    )
    assert worthwhile(votes, pixels=500).tolist() == [2, 1, 1, 4]


def test_crm_puts_what_fills_the_batch_last() -> None:
    votes = torch.tensor([[1, 9, 3, 8, 2], [5, 1, 2, 3, 4]])
    counts = torch.tensor([2, 4])
    assert select_classes(votes, 4, counts=counts).tolist() == [[1, 3, 2, 4], [0, 2, 3, 4]]


@pytest.mark.parametrize("required", [[], [5], [0, 6], [1, 2, 3, 4]])
def test_crm_always_keeps_required_classes(required: list[int]) -> None:
    cost = torch.randn(BATCH, 4, 4, 7)
    cost[..., required] = -3.0  # nobody votes for them
    flags = torch.zeros(BATCH, 7, dtype=torch.bool)
    flags[0, required] = True
    found = select_classes(count_votes(cost), 4, flags)
    assert set(required) <= set(found[0].tolist())
    assert found[0].tolist() == plain.kept_classes(cost[0].permute(2, 0, 1), 4, required)
    assert found[1].tolist() == plain.kept_classes(cost[1].permute(2, 0, 1), 4)


# --- cost and guidance ----------------------------------------------------------------------


def test_cosine_cost() -> None:
    embedding, text = torch.randn(BATCH, 3, 5, 32) * 7, random_text(6)
    cost = cosine_cost(embedding, text)
    chosen = torch.tensor([[0, 4], [5, 1]])
    kept = cosine_cost(embedding, text[chosen])
    for index in range(BATCH):
        expected = plain.cosine_costs(embedding[index].permute(2, 0, 1), text)
        torch.testing.assert_close(cost[index].permute(2, 0, 1), expected, **CLOSE)
        torch.testing.assert_close(kept[index].permute(2, 0, 1), expected[chosen[index]], **CLOSE)


@pytest.mark.parametrize("sizes", [[(4, 6), (2, 3)], [(6, 2), (3, 1)], [(7, 5), (3, 2)], [(3, 5)]])
def test_cost_embedding(sizes: list[tuple[int, int]]) -> None:
    module = CostEmbedding(len(sizes), 8, CHANNELS)
    stir(module)
    costs = [torch.randn(BATCH, CLASSES, *size) for size in sizes]
    found = module(costs)
    for index in range(BATCH):
        expected = plain.cost_embedding(module, [cost[index] for cost in costs], sizes[0])
        torch.testing.assert_close(found[index], expected, **CLOSE)


@pytest.mark.parametrize("size", [(4, 6), (2, 2), (7, 5)])
def test_image_guidance(size: tuple[int, int]) -> None:
    module = ImageGuidance((12, 6), 8, CHANNELS)
    stir(module)
    features = [
        torch.randn(BATCH, 12, size[0] // 2, size[1] // 2) * 9,
        torch.randn(BATCH, 6, *size) * 9,
    ]
    found = module(features, size)
    for index in range(BATCH):
        expected = plain.image_guidance(module, [feature[index] for feature in features], size)
        torch.testing.assert_close(found[index], expected, **CLOSE)


def test_text_guidance() -> None:
    module = TextGuidance(32, CHANNELS)
    text = torch.randn(BATCH, CLASSES, 32)
    found = module(text)
    for index in range(BATCH):
        torch.testing.assert_close(found[index], plain.text_guidance(module, text[index]), **CLOSE)


# --- ESCF -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
def test_spatial_fusion(size: tuple[int, int], stride: int) -> None:
    module = SpatialFusion(CHANNELS, 4, 24, stride, 0.0)
    stir_fusion(module)
    x = torch.randn(BATCH, CLASSES, CHANNELS, *size) * 3
    guidance = torch.randn(BATCH, CHANNELS, *size) * 3
    found = module(tokens(x), guidance.permute(0, 2, 3, 1))
    for index in range(BATCH):
        expected = plain.spatial_fusion(module, x[index], guidance[index])
        torch.testing.assert_close(found[index].permute(0, 3, 1, 2), expected, **CLOSE)


@pytest.mark.parametrize("size", [*SIZES, (5, 7)])
@pytest.mark.parametrize("pooling", [1, 2])
@pytest.mark.parametrize("classes", [1, 5])
def test_class_fusion(size: tuple[int, int], pooling: int, classes: int) -> None:
    module = ClassFusion(CHANNELS, 4, 24, pooling, 0.0)
    stir_fusion(module)
    x = torch.randn(BATCH, classes, CHANNELS, *size) * 3
    guidance = torch.randn(BATCH, classes, CHANNELS) * 3
    found = module(tokens(x), guidance)
    for index in range(BATCH):
        expected = plain.class_fusion(module, x[index], guidance[index])
        torch.testing.assert_close(found[index].permute(0, 3, 1, 2), expected, **CLOSE)


@pytest.mark.parametrize("axis", [1, 2])
def test_blocks_are_all_of_it_in_order(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 7, 5, CHANNELS)
    seen: list[int] = []

    def double(block: Tensor) -> Tensor:
        seen.append(block.shape[axis])
        return block * 2

    monkeypatch.setattr("errseg.model.layers.BLOCK_TOKENS", 2 * 2 * 35 // x.shape[axis])
    with torch.no_grad():
        assert torch.equal(in_blocks(double, axis, x), x * 2)
    assert max(seen) == 2
    assert sum(seen) == x.shape[axis]
    seen.clear()
    assert torch.equal(in_blocks(double, axis, x), x * 2)
    assert seen == [x.shape[axis]], "training goes in one piece: nothing would be reused"


@pytest.mark.parametrize("shape", [(300, 24), (2, 7, 5, 24), (1, 24)])
def test_a_convolution_is_the_linear_that_it_stands_for(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Linear(24, 40)
    transposed = torch.randn(*reversed(shape))
    for x in (torch.randn(shape), transposed.permute(*reversed(range(len(shape))))):
        expected = F.linear(x, layer.weight, layer.bias)
        for pays, least in ((True, 1), (True, 256), (False, 1)):
            monkeypatch.setattr("errseg.model.layers.CONVOLUTION_PAYS", pays)
            monkeypatch.setattr("errseg.model.layers.LEAST_TOKENS", least)
            with torch.no_grad():
                found = layer(x)
            torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("in_place", [False, True])
def test_blocks_take_others_along(in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, other = torch.randn(2, 7, 5, CHANNELS), torch.randn(2, 7, 3)
    before, expected = x.clone(), x + other[..., None, :1]
    monkeypatch.setattr("errseg.model.layers.BLOCK_TOKENS", 20)

    def add(block: Tensor, beside: Tensor) -> Tensor:
        assert block.shape[1] == beside.shape[1] < x.shape[1]
        return block + beside[..., None, :1]

    with torch.no_grad():
        found = in_blocks(add, 1, x, other, in_place=in_place)
    assert torch.equal(found, expected)
    assert torch.equal(x, expected if in_place else before)


@pytest.mark.parametrize("classes", [1, 7])
@pytest.mark.parametrize("pooling", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_computed_in_place_is_what_training_computes(
    stride: int, pooling: int, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = ContextFusionLayer(CHANNELS, 4, 24, stride, pooling, 0.0)
    stir_fusion(layer.spatial)
    stir_fusion(layer.classes)
    x = torch.randn(2, classes, 4, 6, CHANNELS)
    guidance, text = torch.randn(2, 4, 6, CHANNELS), torch.randn(2, classes, CHANNELS)
    expected = layer(x, guidance, text).detach()
    for block in (1, 4096):
        monkeypatch.setattr("errseg.model.layers.BLOCK_TOKENS", block)
        with torch.no_grad():
            found = layer(x.clone(), guidance, text)
        torch.testing.assert_close(found, expected, **CLOSE)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    torch.testing.assert_close(drop.eval()(x), x)
    dropped = drop.train()(x).flatten(1)
    assert torch.equal(dropped.amin(dim=1), dropped.amax(dim=1))
    assert sorted(set(dropped[:, 0].tolist())) == pytest.approx([0.0, 1 / 0.75])
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)


def test_drop_path_grows_from_layer_to_layer() -> None:
    config = dataclasses.replace(PRESETS["tiny"], layers=4)
    layers = ErrSeg(config).context_fusion
    found = [
        [part.probability for part in layer.modules() if isinstance(part, DropPath)]
        for layer in layers
    ]
    assert found == [pytest.approx([rate] * 2) for rate in (0, 0.025, 0.05, 0.075)]


# --- decoder --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 2)])
@pytest.mark.parametrize("classes", [1, 3])
def test_decoder(size: tuple[int, int], classes: int) -> None:
    module = Decoder(CHANNELS, (16, 8, 8), (10, 7, 5), (8, 4, 4))
    stir(module)
    x = torch.randn(BATCH, classes, CHANNELS, *size)
    features = [
        torch.randn(BATCH, width, size[0] * scale, size[1] * scale) * 9
        for width, scale in ((10, 1), (7, 2), (5, 4))
    ]
    found = module(tokens(x), features)
    assert found.shape == (BATCH, classes, size[0] * 4, size[1] * 4)
    for index in range(BATCH):
        expected = plain.decoder(module, x[index], [feature[index] for feature in features])
        torch.testing.assert_close(found[index], expected, **CLOSE)


def test_norms_and_biases_of_the_decoder() -> None:
    step = Decoder(32, (24, 16, 8), (10, 7, 5), (8, 4, 4)).steps[0]
    assert isinstance(step.norm1, nn.GroupNorm)
    assert (step.norm1.num_groups, step.norm2.num_groups) == (3, 3)
    assert step.conv1.bias is None
    assert step.conv2.bias is None


# --- around the model -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(67, 71), (1, 1), (16, 16), (5, 301), (300, 3)])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_best_class(size: tuple[int, int], threshold: float) -> None:
    """Against an argmax over all T channels at full resolution, dropped ones at −100."""
    kept = torch.tensor([1, 4, 7, 8])
    maps = torch.randn(4, 16, 16) * 2
    everything = torch.full((11, 16, 16), plain.DROPPED)
    everything[kept] = maps
    labels, scores = best_class(maps.sigmoid(), kept, size, threshold)
    expected_labels, expected_scores = plain.best_class(everything, size)
    expected_labels[expected_scores < threshold] = UNLABELLED
    assert (labels.dtype, scores.dtype) == (np.uint16, np.float32)
    np.testing.assert_array_equal(labels, expected_labels.numpy())
    np.testing.assert_allclose(scores, expected_scores.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(67, 71), (1, 1), (1, 200), (33, 64)])
def test_preprocess_squashes_bilinearly(size: tuple[int, int]) -> None:
    """align_corners=False, pixel by pixel; no filter."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (*size, 3), np.uint8)
    target = (32, 64)
    found = preprocess([image, image], target, antialias=False)
    assert found.shape == (2, 3, *target)
    assert found.dtype == torch.float32
    expected = np.zeros((*target, 3))
    for row in range(target[0]):
        y = min(max((row + 0.5) * size[0] / target[0] - 0.5, 0), size[0] - 1)
        for column in range(target[1]):
            x = min(max((column + 0.5) * size[1] / target[1] - 0.5, 0), size[1] - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, size[0] - 1), min(left + 1, size[1] - 1)
            down, across = y - top, x - left
            upper = image[top, left] * (1 - across) + image[top, right] * across
            lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
            expected[row, column] = upper * (1 - down) + lower * down
    for one in found:
        np.testing.assert_allclose(one.permute(1, 2, 0).numpy(), expected, atol=2e-3)


def test_preprocess_with_a_filter_keeps_the_mean_of_fine_patterns() -> None:
    board = np.indices((640, 640)).sum(axis=0) % 2 * 255
    image = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    found = preprocess([image], (64, 64), antialias=True)
    assert found.dtype == torch.float32
    assert found.min() >= 126
    assert found.max() <= 129


def test_preprocess_takes_views_that_are_not_contiguous() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    flipped = image[:, ::-1, ::-1]
    for antialias in (False, True):
        found = preprocess([flipped], (32, 32), antialias=antialias)
        expected = preprocess([flipped.copy()], (32, 32), antialias=antialias)
        assert torch.equal(found, expected)
