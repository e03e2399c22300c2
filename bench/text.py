"""What class embeddings cost, as multiples of the image encoder's time for one picture.

    python bench/text.py [--model errseg-base] [--classes 847] [--synonyms mean] [--all-positions]

Encoding for the first time, and reading from the disk cache what an earlier process wrote. All are
measured in turns, on `--threads` CPU threads, float32; random weights where the model has none:
the arithmetic is the same. `--all-positions` adds open_clip's own way, which takes minutes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from errseg.config import PRESETS
from errseg.embedding_cache import cached_embeddings
from errseg.model.err_seg import ErrSeg
from errseg.model.text_encoder import ClipTextEncoder, Synonyms, embed_classes
from errseg.vocabulary import load_vocabulary


class AllPositions:
    """open_clip's text tower as it comes: 77 positions per prompt, in the order of the prompts."""

    BATCH = 64

    def __init__(self, tower: ClipTextEncoder) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self.tower, self.tokenizer = tower, SimpleTokenizer()

    def encode(self, prompts: list[str]) -> torch.Tensor:
        batches = self.tokenizer(prompts).split(self.BATCH)
        return torch.cat([self.encode_batch(tokens) for tokens in batches])

    def encode_batch(self, tokens: torch.Tensor) -> torch.Tensor:
        tower, length = self.tower, tokens.shape[1]
        x = tower.token_embedding(tokens) + tower.positional_embedding
        mask = torch.full((length, length), -torch.inf).triu(1)
        x = tower.ln_final(tower.transformer(x, attn_mask=mask))
        x = x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ tower.text_projection
        return torch.nn.functional.normalize(x, dim=-1)


def in_turns(parts: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds, after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(repeats + 1):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="errseg-base", choices=["errseg-base", "errseg-large"])
    parser.add_argument("--classes", type=int, default=847, help="T, names of ADE20K-847")
    parser.add_argument("--synonyms", default="mean", choices=["mean", "first"])
    parser.add_argument("--all-positions", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = ErrSeg(PRESETS[options.model]).eval()
    tower, prompt = model.text_encoder, model.config.prompt
    assert isinstance(tower, ClipTextEncoder)
    names = load_vocabulary("ade20k-847").synonyms[: options.classes]
    mode: Synonyms = options.synonyms
    picture = torch.randn(1, 3, *model.config.image_size)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        parts: dict[str, Callable[[], object]] = {
            "image encoder": lambda: model.image_encoder(picture),
            "text, first time": lambda: embed_classes(tower, names, prompt, mode),
            "text, from disk": lambda: cached_embeddings(tower, names, prompt, mode, Path(folder)),
        }
        if options.all_positions:
            plain = AllPositions(tower)
            parts["text, all positions"] = lambda: embed_classes(plain, names, prompt, mode)
        seconds = in_turns(parts, options.repeats)
    prompts = len({name for group in names for name in (group if mode == "mean" else group[:1])})
    print(f"{options.model}, T = {len(names)}, {prompts} prompts, {options.threads} threads")
    for name, value in seconds.items():
        print(f"  {name:20} {value:8.3f} s  {value / seconds['image encoder']:6.2f} x encoder")


if __name__ == "__main__":
    main()
