"""Class names → embeddings: synonyms, padding, cut-offs, scripts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib import resources
from typing import Any

import open_clip
import plain
import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from seeded import stir
from tokenizers import Tokenizer
from torch import Tensor

from errseg.model.clip import TINY_CLIP
from errseg.model.text_encoder import (
    MINILM_POSITIONS,
    ClipTextEncoder,
    MiniLMTextEncoder,
    TextEncoder,
    embed_classes,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
PROMPT = "a photo of a {} in the scene"
PROMPTS = [
    PROMPT.format("cat"),
    PROMPT.format("television receiver, with a remote control on top of it"),
    "x",
    "",
    PROMPT.format("Straße"),
    PROMPT.format("車"),
    PROMPT.format("🐕"),
    PROMPT.format("café"),
    PROMPT.format("long " * 200),
]


@pytest.fixture(scope="module")
def clip() -> Any:
    torch.manual_seed(2)
    text = {**TINY_CLIP["text_cfg"], "layers": 3}
    whole = open_clip.CLIP(**{**TINY_CLIP, "text_cfg": text})
    stir(whole.transformer)
    return whole.eval()


@pytest.fixture(scope="module")
def minilm() -> MiniLMTextEncoder:
    torch.manual_seed(2)
    encoder = MiniLMTextEncoder(layers=2, width=64)
    stir(encoder)
    encoder.centre.copy_(torch.randn(64) * 0.1)
    return encoder


@pytest.fixture(params=["clip", "minilm"])
def encoder(request: pytest.FixtureRequest, clip: Any, minilm: MiniLMTextEncoder) -> TextEncoder:
    return ClipTextEncoder(clip) if request.param == "clip" else minilm


# --- the towers -----------------------------------------------------------------------------


SETS = {
    "all kinds": PROMPTS,
    "one prompt": [PROMPT.format("cat")],
    "one without a token": [""],
    "nothing in common": ["cat", "two dogs", "an empty road at night"],
    "the same length": [PROMPT.format(name) for name in ("cat", "dog", "car", "sky")],
    "the same twice": [PROMPT.format("cat"), PROMPT.format("cat"), PROMPT.format("dog")],
    "one begins another": ["a", "a photo", "a photo of", "a photo of a cat"],
    "longer than the tower": ["long " * 200 + end for end in ("x", "y")],
}


@torch.no_grad()
@pytest.mark.parametrize("prompts", SETS.values(), ids=SETS)
def test_clip_equals_open_clip_on_all_77_positions(clip: Any, prompts: list[str]) -> None:
    found = ClipTextEncoder(clip).encode(prompts)
    expected = clip.encode_text(SimpleTokenizer()(prompts), normalize=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_gradients_of_clip_equal_those_of_open_clip(clip: Any) -> None:
    wanted = torch.randn(len(PROMPTS), TINY_CLIP["embed_dim"])
    tuned = [
        parameter
        for name, parameter in clip.transformer.named_parameters()
        if name.endswith(("in_proj_weight", "c_fc.weight"))
    ]
    found = (ClipTextEncoder(clip).encode(PROMPTS) * wanted).sum()
    expected = (clip.encode_text(SimpleTokenizer()(PROMPTS), normalize=True) * wanted).sum()
    torch.testing.assert_close(
        torch.autograd.grad(found, tuned), torch.autograd.grad(expected, tuned), **CLOSE
    )


@torch.no_grad()
def test_clip_in_half_precision(clip: Any) -> None:
    found = ClipTextEncoder(copy.deepcopy(clip).bfloat16()).encode(PROMPTS)
    expected = ClipTextEncoder(clip).encode(PROMPTS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)


@torch.no_grad()
def test_clip_computes_what_prompts_share_once(clip: Any) -> None:
    """ "a photo of a" after the start is shared, "in the scene" and the end are not."""
    computed: list[int] = []
    hooks = [
        block.mlp.register_forward_hook(lambda _, args, __: computed.append(len(args[0])))
        for block in clip.transformer.resblocks
    ]
    ClipTextEncoder(clip).encode([PROMPT.format(name) for name in ("cat", "dog", "dog house")])
    for hook in hooks:
        hook.remove()
    cat, dog, house = 1 + 4, 1 + 4, 1 + 4
    assert computed == [5 + cat + dog + house, 5 + cat + dog + house, 3]


@torch.no_grad()
def test_minilm_equals_one_prompt_at_a_time(minilm: MiniLMTextEncoder) -> None:
    asset = resources.files("errseg") / "assets" / "minilm-tokenizer.json"
    tokenizer = Tokenizer.from_str(asset.read_text("utf-8"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MINILM_POSITIONS)
    found = minilm.encode(PROMPTS)
    for row, prompt in zip(found, PROMPTS, strict=True):
        expected = plain.minilm(minilm, tokenizer.encode(prompt).ids)
        torch.testing.assert_close(row, expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 127, 128, 129, 260])
def test_padding_and_batches_do_not_change_an_embedding(encoder: TextEncoder, count: int) -> None:
    prompts = [PROMPT.format("very " * (index % 7) + f"thing {index}") for index in range(count)]
    together = encoder.encode(prompts)
    assert together.shape[0] == count
    assert together.dtype == torch.float32
    torch.testing.assert_close(together.norm(dim=1), torch.ones(count), **CLOSE)
    for index in {0, count // 2, count - 1}:
        torch.testing.assert_close(together[index], encoder.encode([prompts[index]])[0], **CLOSE)


@torch.no_grad()
def test_prompts_longer_than_the_tower_are_cut(encoder: TextEncoder) -> None:
    found = encoder.encode(["word " * 400, "word " * 500, "word"])
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found[0], found[1], **CLOSE)
    assert not torch.allclose(found[0], found[2], atol=1e-3)


@torch.no_grad()
def test_case_is_no_difference_and_names_are(encoder: TextEncoder) -> None:
    found = encoder.encode([PROMPT.format(name) for name in ("Car", "car", "cat")])
    torch.testing.assert_close(found[0], found[1], **CLOSE)
    assert not torch.allclose(found[0], found[2], atol=1e-3)


# --- classes --------------------------------------------------------------------------------


class Recorder:
    """A text tower that draws an embedding per prompt and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.known: dict[str, Tensor] = {}

    def encode(self, prompts: Sequence[str]) -> Tensor:
        self.asked += prompts
        for prompt in prompts:
            self.known.setdefault(prompt, F.normalize(torch.randn(8), dim=0))
        return torch.stack([self.known[prompt] for prompt in prompts])

    def of(self, name: str) -> Tensor:
        return self.known[PROMPT.format(name)]


SYNONYMS = [("sofa", "couch", "settee"), ("car",), ("couch", "bed"), ("car", "car", "auto")]


def test_synonyms_are_averaged_and_normalised() -> None:
    recorder = Recorder()
    found = embed_classes(recorder, SYNONYMS, PROMPT)
    for row, names in zip(found, SYNONYMS, strict=True):
        total = sum((recorder.of(name) for name in names), torch.zeros(8))
        torch.testing.assert_close(row, total / total.norm(), **CLOSE)


def test_first_synonym_only() -> None:
    recorder = Recorder()
    found = embed_classes(recorder, SYNONYMS, PROMPT, "first")
    expected = torch.stack([recorder.of(names[0]) for names in SYNONYMS])
    torch.testing.assert_close(found, expected, **CLOSE)
    assert PROMPT.format("settee") not in recorder.asked


@pytest.mark.parametrize("mode", ["mean", "first"])
def test_every_prompt_is_encoded_once(mode: Any) -> None:
    recorder = Recorder()
    embed_classes(recorder, SYNONYMS, PROMPT, mode)
    assert sorted(recorder.asked) == sorted(set(recorder.asked))


@pytest.mark.parametrize("name", ["{}", "100% {name}", "a, b", "{0!r}"])
def test_names_are_not_templates(name: str) -> None:
    recorder = Recorder()
    embed_classes(recorder, [[name]], PROMPT)
    assert recorder.asked == [f"a photo of a {name} in the scene"]


@torch.no_grad()
def test_classes_of_a_real_tower(encoder: TextEncoder) -> None:
    both = embed_classes(encoder, [["sofa", "couch"], ["sofa"], ["couch"]], PROMPT)
    torch.testing.assert_close(both[0], F.normalize(both[1] + both[2], dim=0), **CLOSE)
    first = embed_classes(encoder, [["sofa", "couch"]], PROMPT, "first")
    torch.testing.assert_close(first[0], both[1], **CLOSE)
