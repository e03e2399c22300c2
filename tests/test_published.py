"""Checkpoints as ERR-Seg's authors publish them: every key, both ways, and nothing but tensors."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import WIDTH, make_tiny, published_state, tiny_model, write
from torch import Tensor

from errseg.config import BASE, LARGE, ModelConfig
from errseg.errors import WeightsError
from errseg.model.err_seg import ErrSeg
from errseg.published import UNUSED, WIDTH_KEY, published_key, recognise
from errseg.weights import build_empty, load_model, load_named_model, load_published, save_model

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
    return tiny_model()


@pytest.fixture
def state(model: ErrSeg) -> dict[str, Tensor]:
    return published_state(model)


@pytest.fixture(autouse=True)
def tiny_base(monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(monkeypatch, "errseg-base")


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_published(path)
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


@pytest.mark.parametrize(("config", "letter"), [(BASE, "B"), (LARGE, "L")])
def test_keys_and_shapes_are_the_official_ones(config: ModelConfig, letter: str) -> None:
    """The list lies beside the repository where this project is built; elsewhere KINDS stands."""
    path = DESIGN / f"official_keys_{letter}.json"
    if not path.exists():
        return
    official = {key: tuple(shape) for key, shape, _ in json.loads(path.read_text())["keys"]}
    official.pop(UNUSED)
    own = build_empty(config).state_dict()
    assert {published_key(key): tuple(tensor.shape) for key, tensor in own.items()} == official


# --- files ----------------------------------------------------------------------------------


def test_round_trip(model: ErrSeg, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = write(tmp_path / "model_final.pth", {"model": state, "iteration": 80_000})
    loaded = load_published(path)
    assert not loaded.training
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    text = loaded.text_encoder.encode(["a cat", "a dog"])
    image = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        assert torch.equal(loaded(image, text).logits, model(image, text).logits)


def test_half_precision_is_read_as_float32(state: dict[str, Tensor], tmp_path: Path) -> None:
    halves = {key: tensor.half() for key, tensor in state.items()}
    loaded = load_published(write(tmp_path / "half.pth", {"model": halves}))
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}


def test_without_the_tensor_that_nobody_reads(state: dict[str, Tensor], tmp_path: Path) -> None:
    del state[UNUSED]
    load_published(write(tmp_path / "model.pth", {"model": state}))


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
        {"model": None},
        {"model": [torch.zeros(1)]},
        {"model": {"weight": 1.5}},
        {"state_dict": {}},
    ],
    ids=str,
)
def test_not_a_published_dict(content: Any, tmp_path: Path) -> None:
    assert "'model'" in refusal(write(tmp_path / "model.pth", content))


@pytest.mark.parametrize("content", [{}, {"model": {}}], ids=str)
def test_an_empty_state_dict_lacks_keys(content: Any, tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "model.pth", content))
    assert f"lacks {WIDTH_KEY!r}" in message


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


# --- which model ----------------------------------------------------------------------------


@pytest.mark.parametrize("config", [BASE, LARGE])
def test_the_model_is_recognised_by_its_shapes(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real ones
    shape = (640, config.embedding_dim)
    assert recognise({WIDTH_KEY: torch.zeros(shape)}, "here") == config


def test_a_width_that_no_model_has_is_told_with_those_that_there_are() -> None:
    with pytest.raises(WeightsError) as caught:
        recognise({WIDTH_KEY: torch.zeros(512, 512)}, "vit.pth")
    message = str(caught.value)
    assert message.startswith(f"vit.pth: {WIDTH_KEY!r} is (512, 512); expected is ")
    assert f"errseg-base ({WIDTH} wide) or errseg-large (768 wide)" in message


@pytest.mark.parametrize("name", [None, "errseg-base"])
def test_by_name_and_without(name: str | None, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = write(tmp_path / "model.pth", {"model": state})
    assert load_named_model(name, path).config.name == "errseg-base"


@pytest.mark.parametrize("name", ["errseg-mini", "errseg-large"])
def test_a_file_of_another_model_is_refused_with_both_names(
    name: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = write(tmp_path / "model.pth", {"model": state})
    with pytest.raises(WeightsError) as caught:
        load_named_model(name, path)
    assert str(caught.value) == (
        f"{path} holds errseg-base, not {name}; name the model errseg-base, or none at all."
    )


# --- forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["detectron2", "bare", "distributed", "training"])
def test_every_form_loads_and_converts_to_the_same_bits(
    form: str, model: ErrSeg, state: dict[str, Tensor], tmp_path: Path
) -> None:
    content: dict[str, Any] = {
        "detectron2": {"model": state, "__author__": "ERR-Seg"},
        "bare": state,
        "distributed": {"model": {f"module.{key}": value for key, value in state.items()}},
        "training": {"model": state, "optimizer": {"state": {0: torch.zeros(3)}}, "iteration": 1},
    }[form]
    path = write(tmp_path / "model_final.pth", content)
    published = load_named_model(weights=path)
    save_model(published, tmp_path / "ours.safetensors")
    converted = load_model(tmp_path / "ours.safetensors")
    assert converted.config == published.config
    text = model.text_encoder.encode(["a cat", "a dog"])
    image = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        expected = model(image, text)
        for loaded in (published, converted):
            assert torch.equal(loaded.text_encoder.encode(["a cat", "a dog"]), text)
            assert torch.equal(loaded(image, text).logits, expected.logits)
