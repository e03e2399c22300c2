"""The text towers: CLIP's transformer, and a MiniLM sentence encoder for errseg-mini.

`embed_classes` is what the rest uses: names in, one embedding per class out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from errseg.model.layers import Linear, linear, take_over_linears

Synonyms = Literal["mean", "first"]

ENCODE_BATCH = 128
"""Prompts encoded at once."""


class TextEncoder(Protocol):
    """What `embed_classes` needs of a text tower."""

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """N prompts → (N, D) float32, L2-normalised."""


def embed_classes(
    encoder: TextEncoder,
    synonyms: Sequence[Sequence[str]],
    prompt: str,
    mode: Synonyms = "mean",
) -> Tensor:
    """One embedding per class.

    Args:
        synonyms: per class, its names; at least one each.
        prompt: template with one `{}`.
        mode: "mean" averages the normalised embeddings of all synonyms; "first" uses the first
            one only, as the published inference does.

    Returns:
        (T, D) float32, L2-normalised.
    """
    used = [names[:1] if mode == "first" else names for names in synonyms]
    prompts = {prompt.format(name): 0 for names in used for name in names}
    for index, text in enumerate(prompts):
        prompts[text] = index
    embeddings = encoder.encode(list(prompts))
    rows = [
        embeddings[[prompts[prompt.format(name)] for name in names]].mean(dim=0) for names in used
    ]
    return F.normalize(torch.stack(rows), dim=-1)


# --- CLIP -----------------------------------------------------------------------------------


class ClipTextEncoder(nn.Module):
    """Text tower of an open_clip CLIP, fast where prompts are much alike.

    The tower is causal: what it computes at a position follows from the tokens up to there. So
    prompts that begin alike share their beginning: norms and linear layers, nearly all the work,
    see each distinct beginning once. The last layer is computed at the ends of the prompts only,
    where the embeddings are read. The result is open_clip's, up to rounding.
    """

    def __init__(self, clip: Any) -> None:
        super().__init__()
        # open_clip's modules carry no types: Any is what they are
        self.token_embedding: Any = clip.token_embedding
        self.positional_embedding: Any = clip.positional_embedding
        self.transformer: Any = clip.transformer
        take_over_linears(self.transformer)
        self.ln_final: Any = clip.ln_final
        self.text_projection: Any = clip.text_projection

    def encode(self, prompts: Sequence[str]) -> Tensor:
        tokens: Tensor = _clip_tokenizer()(list(prompts))
        lengths = (tokens.argmax(dim=-1) + 1).tolist()  # the end of text has the largest id
        return _by_length(
            lengths, lambda batch: self._encode_batch(tokens[batch], [lengths[i] for i in batch])
        )

    def _encode_batch(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        tokens = tokens[:, : max(lengths)]
        rows, firsts = _distinct_beginnings(tokens, lengths)
        ends = torch.arange(len(rows)) * rows.shape[1] + torch.tensor(lengths) - 1
        device = self.positional_embedding.device
        x = self.token_embedding(tokens.flatten()[firsts].to(device))
        x = x + self.positional_embedding[(firsts % rows.shape[1]).to(device)]
        rows, firsts, ends = rows.to(device), firsts.to(device), ends.to(device)
        *blocks, last = self.transformer.resblocks
        for block in blocks:
            x = _causal_block(block, x, rows, firsts)
        x = self.ln_final(_causal_block(last, x, rows, ends))
        return F.normalize(x @ self.text_projection, dim=-1).float()


def _distinct_beginnings(tokens: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Number the distinct beginnings of N prompts.

    Args:
        tokens: (N, L) int64, prompts padded at their ends.
        lengths: of the N prompts.

    Returns:
        (N, L) int64, which beginning ends at each position; 0 in the padding.
        (M,) int64, the first position, of the N·L, of each of the M beginnings.
    """
    numbers: dict[tuple[int, ...], int] = {}
    firsts: list[int] = []
    rows = [[0] * tokens.shape[1] for _ in lengths]
    for index, (prompt, length) in enumerate(zip(tokens.tolist(), lengths, strict=True)):
        for position in range(length):
            beginning = tuple(prompt[: position + 1])
            if beginning not in numbers:
                numbers[beginning] = len(numbers)
                firsts.append(index * tokens.shape[1] + position)
            rows[index][position] = numbers[beginning]
    return torch.tensor(rows), torch.tensor(firsts)


def _causal_block(block: Any, x: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
    """One of open_clip's layers.

    Args:
        x: (M, C), the distinct beginnings.
        rows: (N, L) int64, which row of x stands at each position of the prompts.
        positions: (P,) int64, of the N·L positions those that are wanted.

    Returns:
        (P, C).
    """
    attention = block.attn
    qkv = linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = (
        part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for part in qkv[rows].chunk(3, dim=-1)
    )
    # what padding stands for comes after the end of its prompt, so nothing wanted looks at it
    fused = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    projection = attention.out_proj
    wanted = fused.transpose(1, 2).flatten(2).flatten(0, 1)[positions]
    x = x[rows.flatten()[positions]] + linear(wanted, projection.weight, projection.bias)
    out: Tensor = x + block.mlp(block.ln_2(x))
    return out


@functools.cache
def _clip_tokenizer() -> Any:
    """open_clip's; training asks for it in each step, and it takes a while to make."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


# --- MiniLM ---------------------------------------------------------------------------------

MINILM_VOCABULARY = 30522
MINILM_POSITIONS = 64
"""Longer prompts are cut; a class name takes about ten positions."""
MINILM_HEAD_WIDTH = 32
NORM_EPSILON = 1e-12


class MiniLMBlock(nn.Module):
    """One post-norm BERT layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // MINILM_HEAD_WIDTH)
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPSILON)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (N, L, C), mask (N, 1, 1, L) bool, true where a token is → (N, L, C)."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        fused = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = self.norm1(x + self.proj(fused.transpose(1, 2).flatten(2)))
        out: Tensor = self.norm2(x + self.fc2(F.gelu(self.fc1(x))))
        return out


class MiniLMTextEncoder(nn.Module):
    """Sentence encoder (all-MiniLM-L6 architecture): WordPiece tokens, mean pooling.

    All embeddings of "a photo of a …" point almost the same way. `centre`, the mean over many
    class names, is taken away, so that the angle between two names says how they differ.
    """

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(MINILM_VOCABULARY, width)
        self.positional_embedding = nn.Parameter(torch.randn(MINILM_POSITIONS, width) * 0.02)
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.blocks = nn.ModuleList(MiniLMBlock(width) for _ in range(layers))
        self.register_buffer("centre", torch.zeros(width))
        self.centre: Tensor

    def encode(self, prompts: Sequence[str]) -> Tensor:
        tokens = [torch.tensor(item.ids) for item in _wordpiece().encode_batch(list(prompts))]
        lengths = [len(sequence) for sequence in tokens]
        return _by_length(lengths, lambda batch: self._encode_batch([tokens[i] for i in batch]))

    def _encode_batch(self, sequences: list[Tensor]) -> Tensor:
        device = self.positional_embedding.device
        tokens = pad_sequence(sequences, batch_first=True).to(device)
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
        mask = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
        x = self.norm(self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x, mask[:, None, None])
        weights = mask.to(x.dtype).unsqueeze(-1)
        pooled = F.normalize((x * weights).sum(dim=1) / weights.sum(dim=1), dim=-1)
        return F.normalize(pooled - self.centre, dim=-1).float()


def _by_length(lengths: Sequence[int], encode: Callable[[list[int]], Tensor]) -> Tensor:
    """Encode in batches of like length, so that little is spent on padding.

    Args:
        lengths: of N token sequences.
        encode: indices of some sequences → their rows.

    Returns:
        N rows, in the order of `lengths`.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    starts = range(0, len(order), ENCODE_BATCH)
    encoded = torch.cat([encode(order[start : start + ENCODE_BATCH]) for start in starts])
    restored = torch.empty_like(encoded)
    restored[order] = encoded
    return restored


def _wordpiece() -> Tokenizer:
    """MiniLM's tokenizer, shipped in the package."""
    text = (resources.files("errseg") / "assets" / "minilm-tokenizer.json").read_text("utf-8")
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_padding()
    tokenizer.enable_truncation(MINILM_POSITIONS)
    return tokenizer
