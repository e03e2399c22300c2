"""What a run starts from and what it trains."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from errseg.config import TINY, TINY_CONVNEXT, ModelConfig
from errseg.errors import ConfigError, WeightsError
from errseg.model.clip import build_clip
from errseg.training.loop import train
from errseg.training.recipe import Recipe
from errseg.training.start import initial_model, parameter_groups
from errseg.weights import load_model

CPU = torch.device("cpu")
SMALL_CLIP = dataclasses.replace(TINY_CONVNEXT, prompt="{}", drop_path=0.0)

BLOCKS = ("gamma", "conv_dw.weight", "mlp.fc1.weight", "mlp.fc2.weight")
TEXT = ("attn.in_proj_weight", "mlp.c_fc.weight")


@functools.cache
def clip_state() -> dict[str, Tensor]:
    torch.manual_seed(3)
    state: dict[str, Tensor] = build_clip(SMALL_CLIP).state_dict()
    return state


@pytest.fixture
def clip_recipe(recipe: Recipe, tmp_path: Path) -> Recipe:
    save_file(clip_state(), tmp_path / "clip.safetensors")
    return dataclasses.replace(
        recipe,
        model=SMALL_CLIP,
        init="clip",
        clip_file=tmp_path / "clip.safetensors",
        tuning="published",
        augmentation="published",
        average_decay=0.0,
        trunk_rate=0.01,
        steps=2,
        checkpoint_every=100,
        validate_every=100,
    )


def is_tuned(name: str) -> bool:
    """As design section 8 says it."""
    if name.startswith("text_encoder."):
        return name.endswith(TEXT)
    if name.startswith("image_encoder.dense_downsample."):
        return name.endswith("weight")
    if name.startswith("image_encoder."):
        return ".blocks." in name and name.endswith(BLOCKS)
    return True


def test_both_towers_come_from_the_file(clip_recipe: Recipe) -> None:
    model = initial_model(clip_recipe, [])
    ours, theirs = model.state_dict(), clip_state()
    for key, name in (
        ("text_encoder.text_projection", "text_projection"),
        ("image_encoder.encoder.trunk.stem.0.weight", "visual.trunk.stem.0.weight"),
        ("image_encoder.encoder.projection.proj.weight", "visual.head.proj.weight"),
        ("image_encoder.dense_downsample.norm.bias", "visual.trunk.stages.3.downsample.0.bias"),
        ("image_encoder.dense_downsample.conv.weight", "visual.trunk.stages.3.downsample.1.weight"),
    ):
        assert torch.equal(ours[key], theirs[name]), key


def test_a_pytorch_file_of_a_wrapped_model(clip_recipe: Recipe, tmp_path: Path) -> None:
    wrapped = {f"module.{name}": value.half() for name, value in clip_state().items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "epoch.pt")
    model = initial_model(dataclasses.replace(clip_recipe, clip_file=tmp_path / "epoch.pt"), [])
    torch.testing.assert_close(
        model.state_dict()["text_encoder.ln_final.weight"], clip_state()["ln_final.weight"]
    )


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("visual.head.proj.weight", None, "lacks 'visual.head.proj.weight'"),
        ("visual.extra", torch.zeros(1), "holds 'visual.extra'"),
        ("ln_final.bias", torch.zeros(5), r"'ln_final.bias' is \(5,\), expected \(32,\)"),
    ],
)
def test_another_clip_is_refused(
    clip_recipe: Recipe, tmp_path: Path, key: str, value: Tensor | None, named: str
) -> None:
    state = {**clip_state(), **({} if value is None else {key: value})}
    if value is None:
        del state[key]
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=named):
        initial_model(
            dataclasses.replace(clip_recipe, clip_file=tmp_path / "other.safetensors"), []
        )


@pytest.mark.parametrize("name", ["half.safetensors", "half.pt", "nowhere.pt", "list.pt"])
def test_files_that_are_no_checkpoint(clip_recipe: Recipe, tmp_path: Path, name: str) -> None:
    if name.startswith("half"):
        (tmp_path / name).write_bytes(b"half")
    elif name == "list.pt":
        torch.save([1, 2], tmp_path / name)
    with pytest.raises(WeightsError, match=name):
        initial_model(dataclasses.replace(clip_recipe, clip_file=tmp_path / name), [])


def test_no_file_is_named_as_what_is_missing(clip_recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match="--init FILE"):
        initial_model(dataclasses.replace(clip_recipe, clip_file=None), [])


def test_towers_have_their_own_rate_and_small_vectors_no_decay(clip_recipe: Recipe) -> None:
    model = initial_model(clip_recipe, [])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen: set[str] = set()
    for group in parameter_groups(model, clip_recipe):
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            tower = name.startswith(("text_encoder.", "image_encoder."))
            assert group["lr"] == pytest.approx(1e-5 if tower else 1e-3), name
            assert (group["weight_decay"] == 0) == (parameter.ndim <= 1), name
    assert seen == {name for name in names.values() if is_tuned(name)}


def test_a_step_changes_what_is_published_as_trained_and_nothing_else(
    clip_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(clip_recipe, learning_rate=1e-2, steps=1, warmup=0, validation=())
    torch.manual_seed(recipe.seed)
    before = initial_model(recipe, []).state_dict()
    train(recipe, tmp_path / "run", device=CPU, workers=0)
    after = load_model(tmp_path / "run" / "model.safetensors").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if is_tuned(name)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls(clip_recipe: Recipe, tmp_path: Path, precision: str) -> None:
    recipe = dataclasses.replace(
        clip_recipe,
        precision=precision,  # type: ignore[arg-type]
        steps=12,
        validation=(),
        trunk_rate=0.1,
        learning_rate=2e-3,
    )
    seen: list[float] = []
    train(
        recipe,
        tmp_path / "run",
        device=CPU,
        workers=0,
        report=lambda row: seen.extend([row["loss"]] if "loss" in row else []),
    )
    assert sum(seen[-3:]) < 0.97 * sum(seen[:3])


@pytest.mark.parametrize("model", [TINY, SMALL_CLIP])
@pytest.mark.parametrize(
    "switch",
    [
        {},
        {"hierarchical": False},
        {"channel_reduction": False},
        {"spatial_stride": 1, "class_pooling": 1},
    ],
)
def test_whatever_is_trained_has_a_gradient(
    recipe: Recipe, model: ModelConfig, switch: dict[str, object]
) -> None:
    """Processes that train together wait for the gradient of every trained weight."""
    shape = dataclasses.replace(model, **switch)  # type: ignore[arg-type]
    built = initial_model(dataclasses.replace(recipe, model=shape), ["brick"])
    text = torch.nn.functional.normalize(torch.randn(3, shape.embedding_dim), dim=-1)
    built.train()(torch.rand(1, 3, 64, 64) * 255, text).logits.sum().backward()
    lacking = [n for n, p in built.named_parameters() if p.requires_grad and p.grad is None]
    assert lacking == []
