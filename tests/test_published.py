"""Checkpoints as ERR-Seg's authors publish them: every key, both ways, and nothing but tensors."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from errseg.config import PRESETS
from errseg.errors import WeightsError
from errseg.model.err_seg import ErrSeg
from errseg.published import UNUSED, published_key
from errseg.weights import build_empty, load_named_model, load_published

CONFIG = PRESETS["tiny-convnext"]
DESIGN = Path(__file__).parents[1].parent / "shared" / "design"
KEY = "sem_seg_head.decoder.aggregator_layers.1.class_fusion.sa.attention.q.weight"

# One key of every kind, written out from the published list: our name, theirs.
KINDS = [
    ("text_encoder.positional_embedding", "clip_model.positional_embedding"),
    ("text_encoder.text_projection", "clip_model.text_projection"),
    ("text_encoder.token_embedding.weight", "clip_model.token_embedding.weight"),
    ("text_encoder.ln_final.bias", "clip_model.ln_final.bias"),
    (
        "text_encoder.transformer.resblocks.0.attn.in_proj_weight",
        "clip_model.transformer.resblocks.0.attn.in_proj_weight",
    ),
    ("image_encoder.encoder.trunk.stem.0.weight", "clip_model.visual.trunk.stem.0.weight"),
    (
        "image_encoder.encoder.trunk.stages.3.downsample.1.bias",
        "clip_model.visual.trunk.stages.3.downsample.1.bias",
    ),
    ("image_encoder.encoder.trunk.head.norm.weight", "clip_model.visual.trunk.head.norm.weight"),
    ("image_encoder.encoder.projection.proj.weight", "clip_model.visual.head.proj.weight"),
    ("image_encoder.dense_downsample.norm.weight", "clip_model.visual.modify_downsample.0.weight"),
    ("image_encoder.dense_downsample.conv.bias", "clip_model.visual.modify_downsample.2.bias"),
    ("cost_embedding.level_convs.1.weight", "decoder.corr_proj_convs.1.0.weight"),
    ("cost_embedding.fusion.bias", "decoder.low_corr_fusion.bias"),
    ("image_guidance.level_convs.0.weight", "decoder.img_guidance_projection_agg.0.0.weight"),
    ("image_guidance.fusion.weight", "decoder.low_img_fusion.weight"),
    ("text_guidance.proj.weight", "decoder.text_guidance_projection.0.weight"),
    (
        "context_fusion.1.spatial.norm1.weight",
        "decoder.aggregator_layers.1.spatial_fusion.sa.norm1.weight",
    ),
    (
        "context_fusion.0.spatial.attention.reduce_k.conv.weight",
        "decoder.aggregator_layers.0.spatial_fusion.sa.attention.sr_k.weight",
    ),
    (
        "context_fusion.0.spatial.attention.reduce_v.norm.bias",
        "decoder.aggregator_layers.0.spatial_fusion.sa.attention.norm_v.bias",
    ),
    (
        "context_fusion.0.spatial.depthwise.weight",
        "decoder.aggregator_layers.0.spatial_fusion.sa.mlp.dwconv.dwconv.weight",
    ),
    (
        "context_fusion.0.spatial.mlp.fc3.bias",
        "decoder.aggregator_layers.0.spatial_fusion.sa.mlp.fc3.bias",
    ),
    (
        "context_fusion.1.classes.attention.proj.weight",
        "decoder.aggregator_layers.1.class_fusion.sa.attention.proj.weight",
    ),
    (
        "context_fusion.1.classes.mlp.fc1.weight",
        "decoder.aggregator_layers.1.class_fusion.sa.mlp.fc1.weight",
    ),
    ("decoder.steps.0.guidance.weight", "decoder.img_guidance_projection_dec.0.0.weight"),
    ("decoder.steps.0.up.weight", "decoder.up_decoder1.up_conv.weight"),
    ("decoder.steps.1.conv1.weight", "decoder.up_decoder2.textual_fusion.0.weight"),
    ("decoder.steps.2.norm1.bias", "decoder.up_decoder3.textual_fusion.1.bias"),
    ("decoder.steps.2.conv2.weight", "decoder.up_decoder3.textual_fusion.3.weight"),
    ("decoder.steps.0.norm2.weight", "decoder.up_decoder1.textual_fusion.4.weight"),
    ("decoder.head.bias", "decoder.head.bias"),
]


@pytest.fixture(scope="module")
def model() -> ErrSeg:
    torch.manual_seed(0)
    return ErrSeg(CONFIG).eval()


@pytest.fixture
def state(model: ErrSeg) -> dict[str, Tensor]:
    """As published: their keys, and the one that nobody reads."""
    found = {published_key(key): tensor for key, tensor in model.state_dict().items()}
    return {**found, UNUSED: torch.tensor(4.6)}


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_published(path, CONFIG)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# --- keys -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "theirs"), KINDS)
def test_published_key(model: ErrSeg, ours: str, theirs: str) -> None:
    assert ours in model.state_dict()
    assert published_key(ours) == f"sem_seg_head.{theirs}"


def test_no_two_keys_share_a_published_one(model: ErrSeg) -> None:
    keys = [published_key(key) for key in model.state_dict()]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("name", "letter"), [("errseg-base", "B"), ("errseg-large", "L")])
def test_keys_and_shapes_are_the_official_ones(name: str, letter: str) -> None:
    """The list lies beside the repository where this project is built; elsewhere KINDS stands."""
    path = DESIGN / f"official_keys_{letter}.json"
    if not path.exists():
        return
    official = {key: tuple(shape) for key, shape, _ in json.loads(path.read_text())["keys"]}
    official.pop(UNUSED)
    own = build_empty(PRESETS[name]).state_dict()
    assert {published_key(key): tuple(tensor.shape) for key, tensor in own.items()} == official


# --- files ----------------------------------------------------------------------------------


def test_round_trip(model: ErrSeg, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = write(tmp_path / "model_final.pth", {"model": state, "iteration": 80_000})
    loaded = load_published(path, CONFIG)
    assert not loaded.training
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    text = loaded.text_encoder.encode(["a cat", "a dog"])
    image = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        assert torch.equal(loaded(image, text).logits, model(image, text).logits)


def test_half_precision_is_read_as_float32(state: dict[str, Tensor], tmp_path: Path) -> None:
    halves = {key: tensor.half() for key, tensor in state.items()}
    loaded = load_published(write(tmp_path / "half.pth", {"model": halves}), CONFIG)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}


def test_without_the_tensor_that_nobody_reads(state: dict[str, Tensor], tmp_path: Path) -> None:
    del state[UNUSED]
    load_published(write(tmp_path / "model.pth", {"model": state}), CONFIG)


def test_a_missing_key_is_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    del state[KEY]
    assert KEY in refusal(write(tmp_path / "model.pth", {"model": state}))


def test_an_unknown_key_is_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["sem_seg_head.surplus"] = torch.zeros(1)
    assert "sem_seg_head.surplus" in refusal(write(tmp_path / "model.pth", {"model": state}))


def test_a_misshapen_key_is_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    state[KEY] = torch.zeros(16, 31)
    message = refusal(write(tmp_path / "model.pth", {"model": state}))
    assert "context_fusion.1.classes.attention.q.weight" in message
    assert "(16, 31)" in message
    assert "(16, 32)" in message


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        torch.zeros(3),
        {},
        {"model": None},
        {"model": [torch.zeros(1)]},
        {"model": {"weight": 1.5}},
        {"state_dict": {}},
    ],
    ids=str,
)
def test_not_a_published_dict(content: Any, tmp_path: Path) -> None:
    assert "'model'" in refusal(write(tmp_path / "model.pth", content))


def test_an_empty_state_dict_lacks_keys(tmp_path: Path) -> None:
    assert "lacks" in refusal(write(tmp_path / "model.pth", {"model": {}}))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_truncated(state: dict[str, Tensor], tmp_path: Path, share: float) -> None:
    whole = write(tmp_path / "whole.pth", {"model": state}).read_bytes()
    path = tmp_path / "half.pth"
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "not a whole PyTorch checkpoint" in refusal(path)


def test_not_a_checkpoint_at_all(tmp_path: Path) -> None:
    text = tmp_path / "text.pth"
    text.write_text("these are no weights\n" * 100)
    refusal(text)
    refusal(tmp_path)
    assert "no checkpoint" in refusal(tmp_path / "absent.pth")


class Trap:
    """Unpickles to a call."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    target = tmp_path / "sprung"
    refusal(write(tmp_path / "new.pth", {"model": {KEY: Trap(target)}}))
    bare = tmp_path / "bare.pth"
    bare.write_bytes(pickle.dumps({"model": {KEY: Trap(target)}}))
    refusal(bare)
    assert not target.exists()


def test_by_name(state: dict[str, Tensor], tmp_path: Path) -> None:
    """A file of another size than the model named."""
    path = write(tmp_path / "model.pth", {"model": state})
    with pytest.raises(WeightsError, match=r"model\.pth"):
        load_named_model("errseg-base", path)
