"""Checkpoints of ours: what is saved is what is loaded, and damage is named."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from errseg.catalogue import file_hash
from errseg.config import PRESETS, ModelConfig
from errseg.errors import ConfigError, ErrsegError, WeightsError, WriteError
from errseg.model.err_seg import ErrSeg
from errseg.weights import FORMAT, SCALE_SUFFIX, load_model, load_named_model, save_model

KEY = "context_fusion.0.spatial.attention.q.weight"


@pytest.fixture(scope="module")
def model() -> ErrSeg:
    torch.manual_seed(0)
    return ErrSeg(PRESETS["tiny"]).eval()


@pytest.fixture(scope="module")
def saved(model: ErrSeg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(model, path)
    return path


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def assert_one_line(error: ErrsegError, *parts: str) -> None:
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


# --- there and back -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "tiny-convnext"])
def test_float32_round_trip_is_exact(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ErrSeg(PRESETS[name]).eval()
    save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    assert not loaded.training
    own, theirs = model.state_dict(), loaded.state_dict()
    assert own.keys() == theirs.keys()
    for key, tensor in own.items():
        assert theirs[key].device.type == "cpu"
        assert torch.equal(theirs[key], tensor), key
    # buffers that are not saved must be there too, and real
    text = loaded.text_encoder.encode(["a cat"])
    image = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        assert torch.equal(loaded(image, text).logits, model(image, text).logits)


def test_compact_is_close_and_small(model: ErrSeg, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "compact.safetensors"
    save_model(model, path, compact=True)
    assert path.stat().st_size < 0.35 * saved.stat().st_size
    loaded = load_model(path).state_dict()
    for key, tensor in model.state_dict().items():
        assert loaded[key].dtype == torch.float32
        largest = tensor.abs().amax(dim=-1, keepdim=True) if tensor.ndim else tensor.abs()
        quantised = key.startswith("text_encoder.") and tensor.ndim == 2
        # half a step of int8 and float16's rounding of the scale, or float16's rounding alone
        tolerance = largest * (0.5 / 127 + 1e-3 if quantised else 1e-3) + 1e-7
        assert bool(((loaded[key] - tensor).abs() <= tolerance).all()), key


def test_compact_quantises_the_text_tower_only(model: ErrSeg, tmp_path: Path) -> None:
    path = tmp_path / "compact.safetensors"
    save_model(model, path, compact=True)
    packed, _ = contents(path)
    for key, tensor in packed.items():
        scaled = key + SCALE_SUFFIX in packed
        assert tensor.dtype == (torch.int8 if scaled else torch.float16)
        assert not scaled or key.startswith("text_encoder.")
    assert packed["text_encoder.token_embedding.weight"].dtype == torch.int8


def test_rows_of_zeros_survive_compact(tmp_path: Path) -> None:
    model = ErrSeg(PRESETS["tiny"])
    weight = model.get_parameter("text_encoder.blocks.0.fc1.weight")
    with torch.no_grad():
        weight[3] = 0.0
    save_model(model, tmp_path / "m.safetensors", compact=True)
    loaded = load_model(tmp_path / "m.safetensors")
    assert (loaded.get_parameter("text_encoder.blocks.0.fc1.weight")[3] == 0).all()


def test_a_loaded_model_can_learn(saved: Path) -> None:
    assert all(parameter.requires_grad for parameter in load_model(saved).parameters())


def test_saving_replaces_whole_files_only(model: ErrSeg, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "m.safetensors"
    save_model(model, path, compact=True)
    save_model(model, path)
    assert path.stat().st_size == saved.stat().st_size
    assert [entry.name for entry in path.parent.iterdir()] == ["m.safetensors"]
    with pytest.raises(WriteError):
        save_model(model, path / "below-a-file.safetensors")


# --- damage ---------------------------------------------------------------------------------


def remove(state: dict[str, Tensor]) -> None:
    del state[KEY]


def add(state: dict[str, Tensor]) -> None:
    state["surplus.weight"] = torch.zeros(2)


def reshape(state: dict[str, Tensor]) -> None:
    state[KEY] = torch.zeros(16, 31)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (remove, [KEY, "lacks"]),
        (add, ["surplus.weight"]),
        (reshape, [KEY, "(16, 31)", "(16, 32)"]),
    ],
)
def test_keys_that_do_not_fit_are_named(
    saved: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], None],
    named: list[str],
) -> None:
    state, metadata = contents(saved)
    change(state)
    path = tmp_path / "changed.safetensors"
    save_file(state, path, metadata)
    with pytest.raises(WeightsError) as caught:
        load_model(path)
    assert_one_line(caught.value, str(path), *named)


def test_weights_of_another_config_are_refused(saved: Path, tmp_path: Path) -> None:
    state, metadata = contents(saved)
    config = ModelConfig.from_json(metadata[FORMAT])
    wider = PRESETS["tiny"].__class__(**{**config.__dict__, "mlp_channels": 48})
    path = tmp_path / "wider.safetensors"
    save_file(state, path, {FORMAT: wider.to_json()})
    with pytest.raises(WeightsError, match=r"mlp.*\(24.*\(48"):
        load_model(path)


@pytest.mark.parametrize("length", [0, 4, 8, 500, 20_000, -1])
def test_truncated_files(saved: Path, tmp_path: Path, length: int) -> None:
    path = tmp_path / "half.safetensors"
    path.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(WeightsError) as caught:
        load_model(path)
    assert_one_line(caught.value, str(path))


def test_files_of_another_kind(tmp_path: Path) -> None:
    text = tmp_path / "text.safetensors"
    text.write_text("these are no weights\n" * 100)
    pickled = tmp_path / "pickled.safetensors"
    torch.save({"model": {}}, pickled)
    for path in (text, pickled, tmp_path):
        with pytest.raises(WeightsError) as caught:
            load_model(path)
        assert_one_line(caught.value, str(path))


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {"errseg-999": "{}"},
        {FORMAT: ""},
        {FORMAT: "{"},
        {FORMAT: "[]"},
        {FORMAT: "{}"},
        {FORMAT: '{"colour": 1}'},
        {FORMAT: PRESETS["tiny"].to_json().replace("64", "65")},
        {FORMAT: PRESETS["tiny"].to_json().replace("minilm", "clip")},
    ],
    ids=str,
)
def test_metadata_that_is_not_ours(saved: Path, tmp_path: Path, metadata: Any) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file(contents(saved)[0], path, metadata)
    with pytest.raises(WeightsError) as caught:
        load_model(path)
    assert_one_line(caught.value, str(path))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no checkpoint") as caught:
        load_model(tmp_path / "absent.safetensors")
    assert_one_line(caught.value, "absent.safetensors")


def test_file_hash(saved: Path, tmp_path: Path) -> None:
    assert file_hash(saved) == hashlib.sha256(saved.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match="absent"):
        file_hash(tmp_path / "absent")


# --- models by name -------------------------------------------------------------------------


def test_a_name_that_no_model_has() -> None:
    with pytest.raises(ConfigError) as caught:
        load_named_model("errseg-maxi")
    assert_one_line(caught.value, "errseg-maxi", "errseg-mini", "errseg-base", "errseg-large")


@pytest.mark.parametrize("name", ["errseg-base", "errseg-large"])
def test_published_models_without_a_file_or_a_network(name: str) -> None:
    with pytest.raises(WeightsError) as caught:
        load_named_model(name)
    assert_one_line(caught.value, name, "--weights", "lchen1019/ERR-Seg", "errseg-mini")
    assert_one_line(caught.value, "HF_HUB_OFFLINE")


@pytest.mark.parametrize("name", ["errseg-mini", "errseg-base"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ""])
def test_a_file_that_is_not_there(name: str, suffix: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no checkpoint") as caught:
        load_named_model(name, tmp_path / f"absent{suffix}")
    assert_one_line(caught.value, "absent")


def test_weights_of_another_model(saved: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        load_named_model("errseg-mini", saved)
    assert_one_line(caught.value, str(saved), "tiny", "errseg-mini")


def test_a_file_needs_no_name_of_a_model(saved: Path) -> None:
    assert load_named_model(weights=saved).config.name == "tiny"


def test_a_file_by_its_name_as_text(tiny_weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy of it.safetensors"
    shutil.copy(tiny_weights, copy)
    assert load_named_model("errseg-mini", str(copy)).config.name == "errseg-mini"


def test_equal_weights_give_equal_files(saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    save_model(load_model(saved), again)
    assert again.read_bytes() == saved.read_bytes()
