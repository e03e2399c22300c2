"""Segmenter: what a Python user sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from errseg.config import PRESETS
from errseg.devices import resolve_device, resolve_precision
from errseg.errors import ConfigError, DeviceError, InputError, VocabularyError, WeightsError
from errseg.model.err_seg import ErrSeg
from errseg.records import UNLABELLED, ImageArray, Segmentation
from errseg.segmenter import Segmenter
from errseg.vocabulary import vocabulary_from_names

NAMES = ["cat", ["sofa", "couch"], "floor"]
HAS_CUDA, HAS_MPS = torch.cuda.is_available(), torch.backends.mps.is_available()


@pytest.fixture(scope="module")
def model() -> ErrSeg:
    torch.manual_seed(0)
    return ErrSeg(PRESETS["tiny"])


@pytest.fixture
def segmenter(model: ErrSeg) -> Segmenter:
    return Segmenter(model, classes=NAMES, device="cpu")


def picture(height: int = 40, width: int = 50, seed: int = 0) -> ImageArray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def assert_same(found: Segmentation, expected: Segmentation) -> None:
    """But for rounding, which may turn the label of a pixel where two classes are about equal."""
    assert found.labels.shape == expected.labels.shape
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert np.count_nonzero(found.labels != expected.labels) <= 0.01 * found.labels.size


# --- pictures in, segmentations out -----------------------------------------------------------


def test_one_picture(segmenter: Segmenter) -> None:
    result = segmenter(picture())
    assert result.labels.shape == result.scores.shape == (40, 50)
    assert (result.labels.dtype, result.scores.dtype) == (np.uint16, np.float32)
    assert list(result.class_names) == ["cat", "sofa", "floor"]
    assert sum(area.pixels for area in result.areas()) == 40 * 50


def test_a_list_of_sizes_equals_one_by_one(segmenter: Segmenter) -> None:
    pictures = [picture(), picture(1, 1, 1), picture(67, 71, 2)]
    results = segmenter(pictures)
    assert isinstance(results, list)
    for image, result in zip(pictures, results, strict=True):
        assert_same(result, segmenter(image))


def test_a_stack_is_a_list(segmenter: Segmenter) -> None:
    stack = np.stack([picture(seed=1), picture(seed=2)])
    results = segmenter(stack)
    assert len(results) == 2
    assert_same(results[1], segmenter(stack[1]))


def test_no_picture_at_all(segmenter: Segmenter) -> None:
    assert segmenter([]) == []


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (np.zeros((4, 5), np.uint8), "(4, 5)"),
        (np.zeros((4, 5, 4), np.uint8), "(4, 5, 4)"),
        (np.zeros((3, 4, 5), np.uint8), "(3, 4, 5)"),
        (np.zeros((4, 5, 3), np.float32), "float32"),
        (np.zeros((4, 5, 3), np.uint16), "uint16"),
        (np.zeros((0, 5, 3), np.uint8), "(0, 5, 3)"),
        (np.zeros((), np.uint8), "()"),
        ([[1, 2, 3]], "list"),
        (["cat.jpg"], "str"),
        ([None], "NoneType"),
        ([np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8)], "(4, 5)"),
        ([torch.zeros(4, 5, 3, dtype=torch.uint8)], "Tensor"),
    ],
    ids=str,
)
def test_bad_arrays(segmenter: Segmenter, bad: Any, named: str) -> None:
    with pytest.raises(InputError) as caught:
        segmenter(bad)
    assert named in str(caught.value)
    assert "(H, W, 3), uint8, RGB" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- vocabulary -------------------------------------------------------------------------------


def test_the_vocabulary_changes_without_reloading_the_model(segmenter: Segmenter) -> None:
    before = segmenter.model
    first = segmenter(picture())
    segmenter.set_classes(["tree"])
    assert segmenter.model is before
    second = segmenter(picture())
    assert list(second.class_names) == ["tree"]
    assert (second.labels == 0).all()
    assert list(first.class_names) == ["cat", "sofa", "floor"]

    segmenter.set_classes(NAMES)
    np.testing.assert_array_equal(segmenter(picture()).labels, first.labels)


def test_a_bad_vocabulary_leaves_the_old_one(segmenter: Segmenter) -> None:
    text = segmenter.text
    with pytest.raises(VocabularyError):
        segmenter.set_classes(["cat", "cat"])
    assert segmenter.text is text
    assert segmenter.vocabulary.names == ("cat", "sofa", "floor")


def test_every_way_to_name_classes(model: ErrSeg, tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("cat\nsofa, couch\nfloor\n")
    ways: list[Any] = [NAMES, str(file), vocabulary_from_names(NAMES), "cat\nsofa, couch\nfloor"]
    texts = [Segmenter(model, classes=way, device="cpu").text for way in ways]
    assert all(torch.equal(texts[0], text) for text in texts[1:])
    assert len(Segmenter(model, classes="voc-20", device="cpu").vocabulary) == 20


def test_synonyms(model: ErrSeg) -> None:
    def embeddings(classes: list[Any], synonyms: Any) -> torch.Tensor:
        return Segmenter(model, classes=classes, synonyms=synonyms, device="cpu").text

    mean, first = embeddings(NAMES, "mean"), embeddings(NAMES, "first")
    torch.testing.assert_close(first, embeddings(["cat", "sofa", "floor"], "mean"))
    torch.testing.assert_close(mean[[0, 2]], first[[0, 2]])
    assert not torch.allclose(mean[1], first[1])


def test_more_classes_than_are_kept(model: ErrSeg) -> None:
    segmenter = Segmenter(model, classes=[f"thing {i}" for i in range(30)], keep=2, device="cpu")
    assert len(np.unique(segmenter(picture()).labels)) <= 2


def test_pictures_keep_their_own_classes_in_any_batch(model: ErrSeg) -> None:
    segmenter = Segmenter(model, classes=[f"thing {i}" for i in range(30)], keep="auto")
    assert segmenter.model.config.kept(30, segmenter.keep) == "auto"
    pictures = [picture(), np.full((40, 50, 3), 99, np.uint8), picture()[:, ::-1]]
    for alone, together in zip(map(segmenter, pictures), segmenter(pictures), strict=True):
        assert np.mean(alone.labels == together.labels) > 0.999
        np.testing.assert_allclose(alone.scores, together.scores, atol=1e-5)


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [
        {"threshold": -0.1},
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"keep": 0},
        {"keep": -3},
        {"keep": "few"},
        {"synonyms": "all"},
    ],
    ids=str,
)
def test_bad_settings(model: ErrSeg, setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Segmenter(model, classes=NAMES, device="cpu", **setting)
    [(name, value)] = setting.items()
    assert name in str(caught.value)
    assert str(value) in str(caught.value)


def test_threshold_one_leaves_all_unlabelled(model: ErrSeg) -> None:
    segmenter = Segmenter(model, classes=NAMES, threshold=1.0, device="cpu")
    result = segmenter(picture())
    assert (result.labels == UNLABELLED).all()
    assert (result.scores > 0).all()


def test_models_by_name(tiny_weights: Path) -> None:
    segmenter = Segmenter("errseg-mini", classes=NAMES, weights=tiny_weights, device="cpu")
    assert not segmenter.model.training
    assert segmenter(picture()).labels.shape == (40, 50)
    with pytest.raises(ConfigError, match="errseg-maxi"):
        Segmenter("errseg-maxi", classes=NAMES, device="cpu")
    with pytest.raises(WeightsError, match="no-such-file"):
        Segmenter(classes=NAMES, weights="no-such-file.safetensors", device="cpu")


# --- devices ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["banana", "", "cuda:99", "meta", "cpu,cuda"])
def test_devices_that_are_not_here(name: str) -> None:
    with pytest.raises(DeviceError) as caught:
        resolve_device(name)
    assert repr(name) in str(caught.value)
    assert "auto" in str(caught.value)


def test_auto_device_is_one_that_is_here() -> None:
    expected = "cuda" if HAS_CUDA else "mps" if HAS_MPS else "cpu"
    assert resolve_device("auto").type == expected


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)],
)
def test_precision_on_a_cpu(name: Any, dtype: torch.dtype) -> None:
    assert resolve_precision(name, torch.device("cpu")) == dtype


@pytest.mark.parametrize("name", ["fp16", "int8", ""])
def test_precision_that_does_not_work(name: Any) -> None:
    with pytest.raises(DeviceError, match=r"fp32.* bf16"):
        resolve_precision(name, torch.device("cpu"))


def test_a_compiled_model_says_the_same(model: ErrSeg, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, but not translated to C++: that takes half a minute, and a C++ compiler."""
    plain, traced = ErrSeg(model.config), ErrSeg(model.config)
    plain.load_state_dict(model.state_dict())
    traced.load_state_dict(model.state_dict())
    compile_module, seen = nn.Module.compile, []

    def trace(module: nn.Module) -> None:
        seen.append(module)
        compile_module(module, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", trace)
    monkeypatch.setattr("errseg.devices.require_compiler", lambda device: None)
    expected = Segmenter(plain, classes=NAMES, device="cpu")(picture())
    found = Segmenter(traced, classes=NAMES, device="cpu", compiled=True)(picture())
    assert seen == [traced.image_encoder]
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_where_models_cannot_be_compiled(model: ErrSeg, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object) -> object:
        raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(DeviceError, match=r"compiled here \(no C\+\+ compiler\): a CPU needs"):
        Segmenter(model, classes=NAMES, device="cpu", compiled=True)


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cuda", marks=pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device here")),
        pytest.param("mps", marks=pytest.mark.skipif(not HAS_MPS, reason="no MPS device here")),
    ],
)
def test_an_accelerator_agrees_with_the_cpu(device: str) -> None:
    torch.manual_seed(0)
    on_cpu = Segmenter(ErrSeg(PRESETS["tiny"]), classes=NAMES, device="cpu")(picture())
    torch.manual_seed(0)
    there = Segmenter(ErrSeg(PRESETS["tiny"]), classes=NAMES, device=device, precision="fp32")
    np.testing.assert_allclose(there(picture()).scores, on_cpu.scores, atol=1e-3)
