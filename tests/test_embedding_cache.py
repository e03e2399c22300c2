"""The cache of text embeddings: found by content, never in the way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from errseg import Segmenter, embedding_cache
from errseg.config import TINY
from errseg.embedding_cache import cache_folder, cached_embeddings, fingerprint
from errseg.model.err_seg import ErrSeg

NAMES = [("cat", "kitten"), ("dog",)]


@pytest.fixture
def model() -> ErrSeg:
    torch.manual_seed(0)
    return ErrSeg(TINY).eval()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ERRSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encoded(model: ErrSeg, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of prompts whenever the text tower works."""
    calls: list[int] = []
    encode = model.text_encoder.encode

    def counted(prompts: list[str]) -> torch.Tensor:
        calls.append(len(prompts))
        return encode(prompts)

    monkeypatch.setattr(model.text_encoder, "encode", counted)
    return calls


def test_a_vocabulary_is_encoded_once(
    model: ErrSeg, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = encoded(model, monkeypatch)
    first = Segmenter(model, classes=NAMES, device="cpu").text
    second = Segmenter(model, classes=NAMES, device="cpu").text
    assert torch.equal(first, second)
    assert calls == [3]
    [entry] = cache.iterdir()
    assert b"kitten" not in entry.read_bytes()


@pytest.mark.parametrize("change", ["names", "grouping", "mode", "prompt", "weights"])
def test_other_content_is_another_entry(
    model: ErrSeg, cache: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Segmenter(model, classes=NAMES, device="cpu")
    names, mode = NAMES, "mean"
    if change == "names":
        names = [("cat", "kitty"), ("dog",)]
    elif change == "grouping":
        names = [("cat",), ("kitten", "dog")]
    elif change == "mode":
        mode = "first"
    elif change == "prompt":
        model.config = TINY.from_dict({**TINY.__dict__, "prompt": "a {}"})
    else:
        with torch.no_grad():
            model.text_encoder.blocks[0].fc1.weight[3, 4] += 1e-6  # type: ignore[union-attr]
    found = Segmenter(model, classes=names, synonyms=mode, device="cpu").text  # type: ignore[arg-type]
    monkeypatch.setenv("ERRSEG_CACHE", "off")
    fresh = Segmenter(model, classes=names, synonyms=mode, device="cpu").text  # type: ignore[arg-type]
    assert torch.equal(found, fresh)
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_entry_is_made_anew(model: ErrSeg, cache: Path) -> None:
    first = Segmenter(model, classes=NAMES, device="cpu").text
    [entry] = cache.iterdir()
    whole = entry.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"x" * len(whole)):
        entry.write_bytes(damaged)
        assert torch.equal(Segmenter(model, classes=NAMES, device="cpu").text, first)
        assert entry.read_bytes() == whole


def test_a_folder_that_cannot_be_made_is_done_without(
    model: ErrSeg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ERRSEG_CACHE", str(tmp_path / "file" / "cache"))
    assert Segmenter(model, classes=NAMES, device="cpu").text.shape == (2, TINY.embedding_dim)


def test_old_entries_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    class Encoder(torch.nn.Module):
        def encode(self, prompts: Sequence[str]) -> torch.Tensor:
            return torch.zeros(len(prompts), 600)

    monkeypatch.setattr(embedding_cache, "LARGEST_CACHE_BYTES", 10_000)
    for index in range(6):
        names = [(f"name {index}",)]
        cached_embeddings(Encoder(), names, "{}", "mean", tmp_path)
        for age, path in enumerate(sorted(tmp_path.iterdir(), key=lambda p: p.stat().st_mtime)):
            os.utime(path, (age, age))
    assert 2 <= len(list(tmp_path.iterdir())) <= 4


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ERRSEG_CACHE")
    monkeypatch.setattr(embedding_cache.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "errseg"
    monkeypatch.setenv("ERRSEG_CACHE", "off")
    assert cache_folder() is None


def test_fingerprints_tell_order_and_type_apart() -> None:
    layer = torch.nn.Linear(64, 64)
    before = fingerprint(layer)
    assert fingerprint(layer) == before
    with torch.no_grad():
        layer.weight.copy_(layer.weight.flip(0))
    assert fingerprint(layer) != before
    with torch.no_grad():
        layer.weight[0].copy_(layer.weight[0].flip(0))
    assert fingerprint(layer) != before
    assert fingerprint(layer.half()) != fingerprint(layer.float())


@pytest.mark.parametrize("index", [0, 1, 2047, 2048, 4095, 4096, 4099])
@pytest.mark.parametrize("bit", [0, 20, 31])
def test_fingerprints_tell_every_bit_apart(index: int, bit: int) -> None:
    layer = torch.nn.Linear(4100, 1, bias=False)
    before = fingerprint(layer)
    layer.weight.data.view(torch.int32)[0, index] ^= -(2**31) if bit == 31 else 2**bit
    assert fingerprint(layer) != before


def test_fingerprints_tell_places_apart() -> None:
    layer = torch.nn.Linear(4100, 1, bias=False)
    found = set()
    for index in range(0, 4100, 41):
        layer.weight.data.zero_()[0, index] = 1
        found.add(fingerprint(layer))
    assert len(found) == 100
