"""The paper's claims on what we have: what CRM, ESCF and HSM save and what they are worth.

    python bench/ablation.py --data ../shared/data --out runs/ablation

Rows that change what is learnt (the two sequence reductions, HSM) get a head of their own, trained
by bench/ablation.toml on errseg-mini's image tower; CRM has no weights, so the rows without it and
with other K use the head of the first row. Each row is measured with the vocabularies of the
validation sets, padded with names of ADE20K-847 to T = 20, 150 and 847: a pixel that gets one of
those names is wrong. Finished parts in OUT are kept; the same command goes on. `--costs` measures
seconds and memory anew, for a machine that was busy with other things.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from errseg.process import prepare_process

prepare_process()

import torch

from errseg import Segmenter
from errseg.benchmark import process_memory
from errseg.catalogue import embedded_path
from errseg.config import Keep, ModelConfig
from errseg.datasets import LabelledFolder, open_folder, read_pair
from errseg.evaluation.folder import evaluate, new_evaluation
from errseg.inference import preprocess
from errseg.model.err_seg import ErrSeg
from errseg.model.text_encoder import embed_classes
from errseg.training.loop import train
from errseg.training.recipe import Recipe, load_recipe
from errseg.vocabulary import load_vocabulary, vocabulary_from_names
from errseg.weights import load_model, save_model

TRAINED: dict[str, dict[str, Any]] = {
    "full": {},
    "without spatial reduction": {"spatial_stride": 1},
    "without class reduction": {"class_pooling": 1},
    "without HSM": {"hierarchical": False},
}
DERIVED: dict[str, tuple[dict[str, Any], Keep]] = {
    "without CRM": ({"channel_reduction": False}, "published"),
    "K = 4": ({}, 4),
    "K = 8": ({}, 8),
    "K = 16": ({}, 16),
    "K = 32": ({}, 32),
}
VOCABULARY_SIZES = (20, 150, 847)
REPEATS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="holds train/ and val/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--pictures", type=int, default=20, help="of each set, per row and T")
    parser.add_argument("--costs", action="store_true", help="measure only the costs, anew")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = load_recipe(Path(__file__).with_suffix(".toml"), options.data)
    if options.steps is not None:
        recipe = dataclasses.replace(recipe, steps=options.steps)
    for name, changes in TRAINED.items():
        train_row(recipe, options.out, name, changes)
    sets = [open_folder(folder) for folder in recipe.validation]
    results: dict[str, dict[str, Any]] = {}
    path = options.out / "ablation.json"
    if path.exists():
        results = json.loads(path.read_text())
    cells = [(name, size) for name in (*TRAINED, *DERIVED) for size in VOCABULARY_SIZES]
    for name, size in cells:
        found = results.setdefault(name, {}).setdefault(str(size), {})
        if not found:
            found |= accuracy(options.out, name, sets, size, options.pictures)
            path.write_text(json.dumps(results, indent=2))
            print(name, size, found, flush=True)
    for name, size in cells:
        found = results[name][str(size)]
        if options.costs or "whole_s" not in found:
            found |= cost(options.out, name, sets[0], size)
            path.write_text(json.dumps(results, indent=2))
            print(name, size, found, flush=True)
    for line in table(results):
        print(line)


def train_row(recipe: Recipe, out: Path, name: str, changes: dict[str, Any]) -> None:
    """Train the head of one row, unless that was done."""
    folder = out / name.replace(" ", "-")
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    start = folder / "start.safetensors"
    model = fresh_head(dataclasses.replace(recipe.model, **changes), recipe.seed)
    save_model(model, start)
    own = dataclasses.replace(recipe, model=model.config, init=str(start), validation=())
    begun = time.monotonic()
    train(
        own,
        folder,
        device=torch.device("cpu"),
        report=lambda figures: (
            print(name, dict(figures), flush=True) if figures["step"] % 25 == 0 else None
        ),
    )
    print(f"{name}: trained in {time.monotonic() - begun:.0f} s", flush=True)


def fresh_head(config: ModelConfig, seed: int) -> ErrSeg:
    """errseg-mini's towers under a head with random weights."""
    torch.manual_seed(seed)
    model = ErrSeg(config)
    towers = ("image_encoder.", "text_encoder.")
    shipped = {
        key: value
        for key, value in load_model(embedded_path()).state_dict().items()
        if key.startswith(towers) and key in model.state_dict()
    }
    missing = model.load_state_dict(shipped, strict=False).missing_keys
    assert not [key for key in missing if key.startswith(towers)]
    return model


def load_row(out: Path, name: str) -> tuple[ErrSeg, Keep]:
    """A row's model, and the K that it is measured with."""
    changes, keep = DERIVED.get(name, ({}, "published"))
    row = name if name in TRAINED else "full"
    model = load_model(out / row.replace(" ", "-") / "model.safetensors").eval()
    model.config = dataclasses.replace(model.config, **changes)
    return model, keep


def accuracy(
    out: Path, name: str, sets: list[LabelledFolder], size: int, pictures: int
) -> dict[str, float]:
    """mIoU on each set."""
    model, keep = load_row(out, name)
    found: dict[str, float] = {}
    for labelled in sets:
        padded_set = padded(labelled, size)
        segmenter = Segmenter(model, classes=padded_set.vocabulary, device="cpu", keep=keep)
        evaluation = evaluate(segmenter, padded_set, new_evaluation(padded_set), limit=pictures)
        found[labelled.name] = evaluation.metrics.mean_iou
    return found


def padded(labelled: LabelledFolder, size: int) -> LabelledFolder:
    """The set with names of ADE20K-847 that it has not, up to T = `size` classes."""
    own = labelled.vocabulary.synonyms
    taken = {name.casefold() for names in own for name in names}
    others: dict[str, tuple[str, ...]] = {}  # by first name: the list has a few of them twice
    for names in load_vocabulary("ade20k-847").synonyms:
        if len(own) + len(others) < size and not taken & {name.casefold() for name in names}:
            others.setdefault(names[0].casefold(), names)
    return dataclasses.replace(
        labelled,
        vocabulary=vocabulary_from_names([*own, *others.values()]),
        measured_as=(*range(len(own)), *[-1] * len(others)),
    )


@torch.inference_mode()
def cost(out: Path, name: str, labelled: LabelledFolder, size: int) -> dict[str, float]:
    """Seconds of the whole and of the head, the head's peak memory."""
    model, keep = load_row(out, name)
    names = load_vocabulary("ade20k-847").synonyms[:size]
    text = embed_classes(model.text_encoder, names, model.config.prompt)
    image, _ = read_pair(labelled, labelled.pairs[0])
    batch = preprocess([image], model.config.image_size, antialias=model.config.antialias)
    whole = median_seconds(model, batch, text, keep)
    features = model.image_encoder((batch - model.mean) / model.std)
    encoder = model.image_encoder.forward
    model.image_encoder.forward = lambda image: features  # type: ignore[method-assign]
    try:
        head = median_seconds(model, batch, text, keep)
        peak = peak_megabytes(model, batch, text, keep)
    finally:
        model.image_encoder.forward = encoder  # type: ignore[method-assign]
    return {"whole_s": whole, "head_s": head, "head_peak_mb": peak}


def median_seconds(model: ErrSeg, batch: torch.Tensor, text: torch.Tensor, keep: Keep) -> float:
    seconds = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        model(batch, text, keep=keep)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


def peak_megabytes(model: ErrSeg, batch: torch.Tensor, text: torch.Tensor, keep: Keep) -> float:
    """By how much the process grows while the head works (Linux; NaN elsewhere)."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return float("nan")
    ctypes.CDLL(None).malloc_trim(0)  # or the head would work in memory that was kept from before
    reset.write_text("5")
    before = process_memory("VmRSS")
    model(batch, text, keep=keep)
    after = process_memory("VmHWM")
    assert before is not None
    assert after is not None
    return (after - before) / 1e6


def table(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """As Markdown: per T mIoU (facade / idd / clothing), head and whole in ms, peak in MB."""
    sizes = [str(size) for size in VOCABULARY_SIZES]
    yield "| row |" + "".join(f" T = {size}: mIoU | head, whole ms | peak MB |" for size in sizes)
    yield "|---" * (1 + 3 * len(sizes)) + "|"
    for name, row in results.items():
        cells = []
        for size in sizes:
            found = row[size]
            ious = [found[key] for key in found if not key.endswith(("_s", "_mb"))]
            cells += [
                " / ".join(f"{iou * 100:.1f}" for iou in ious),
                f"{found['head_s'] * 1e3:.0f}, {found['whole_s'] * 1e3:.0f}",
                f"{found['head_peak_mb']:.0f}",
            ]
        yield f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
