"""Compare errseg with what the reference implementation computed, for weights made by a rule.

    python bench/parity.py DIR [--plain]

DIR holds `rule.py`, `input_480x640.png` and cases `<model>_<vocabulary>_K<K>.npz` with
`…_labels.png`; its README says what the arrays are. Keys and vocabularies are read from DIR's
sibling `design`. Exit code 1 where a case is past the limits. `--plain` compares the method as the
tests have it (tests/model/plain.py: no rewrites, one class and one pixel at a time, minutes) by
its kept classes, logits, probabilities and labels.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from errseg.config import BASE, LARGE
from errseg.inference import best_class, preprocess
from errseg.model.err_seg import ErrSeg
from errseg.model.text_encoder import embed_classes
from errseg.published import translate
from errseg.vocabulary import load_vocabulary
from errseg.weights import build_empty, fill

ARRAY_LIMIT = 1e-4
LABEL_LIMIT = 0.999
CONFIGS = {"B": BASE, "L": LARGE}
FIRST_CLASSES = 8

Array = NDArray[np.float32]
Compute = Callable[[ErrSeg, tuple[tuple[str, ...], ...], NDArray[np.uint8], int], dict[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--design", type=Path, help="folder of keys and vocabularies")
    parser.add_argument("--plain", action="store_true", help="the slow and obvious path instead")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    design = options.design or options.folder / ".." / "design"
    cases = sorted(options.folder.glob("*_K*.npz"))
    if not cases:
        sys.exit(f"{options.folder} holds no case *_K*.npz")
    path = compute_plainly if options.plain else compute
    passed = [run_case(case, options.folder, design, path) for case in cases]
    return 0 if all(passed) else 1


def run_case(case: Path, folder: Path, design: Path, path: Compute) -> bool:
    match = re.fullmatch(r"([BL])_(.+)_K(\d+)", case.stem)
    if match is None:
        sys.exit(f"{case.name} is not named <model>_<vocabulary>_K<K>.npz")
    letter, vocabulary, keep = match[1], match[2], int(match[3])
    print(f"{case.stem}: building the weights", flush=True)
    model = build_model(letter, folder, design)
    names = load_vocabulary(str(vocabulary_file(vocabulary, design)))
    image = cv2.imread(str(folder / "input_480x640.png"), cv2.IMREAD_COLOR_RGB)
    ours = path(model, names.synonyms, image, keep)
    return compare(case, ours)


def vocabulary_file(name: str, design: Path) -> Path:
    """`ade150` → `ade20k-150.txt`: the file with the same letters at the start and number."""
    letters, number = re.fullmatch(r"([a-z-]+?)-?(\d+\w?)", name).groups()  # type: ignore[union-attr]
    found = [
        path
        for path in sorted((design / "vocabularies").glob("*.txt"))
        if path.stem.endswith(f"-{number}") and _matches(letters, path.stem)
    ]
    if len(found) != 1:
        sys.exit(f"no single vocabulary for {name!r}: {[path.name for path in found]}")
    return found[0]


def _matches(letters: str, stem: str) -> bool:
    words = stem.rsplit("-", 1)[0].split("-")
    initials = "".join(word[0] for word in words)
    return stem.startswith(letters) or initials.startswith(letters) or letters in stem


def build_model(letter: str, folder: Path, design: Path) -> ErrSeg:
    spec = importlib.util.spec_from_file_location("rule", folder / "rule.py")
    assert spec and spec.loader
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    keys = json.loads((design / f"official_keys_{letter}.json").read_text())["keys"]
    state = {key: torch.from_numpy(np.array(rule.value(key, shape))) for key, shape, _ in keys}
    model = build_empty(CONFIGS[letter])
    fill(model, translate(state, model, "the rule"), "the rule")
    return model.eval()


@torch.inference_mode()
def compute(
    model: ErrSeg, synonyms: tuple[tuple[str, ...], ...], image: NDArray[np.uint8], keep: int
) -> dict[str, Any]:
    """Every array of a case, in full, by the name it has there."""
    seen: dict[str, Any] = {}
    watch(model, seen)
    text = embed_classes(model.text_encoder, synonyms, model.config.prompt, "first")
    batch = preprocess([image], model.config.image_size, antialias=model.config.antialias)
    prediction = model(batch, text, keep=keep)
    probabilities = prediction.logits[0].sigmoid()
    full = torch.nn.functional.interpolate(
        probabilities[None], size=image.shape[:2], mode="bilinear", align_corners=False
    )[0]
    seen["selected"] = prediction.classes[0]
    seen["text_first5"] = text[:5]
    seen["logits_selected"] = prediction.logits[0]
    seen["prob_fullres_selected"] = full
    seen["labels"] = best_class(probabilities, prediction.classes[0], image.shape[:2])[0]
    return seen


@torch.inference_mode()
def compute_plainly(
    model: ErrSeg, synonyms: tuple[tuple[str, ...], ...], image: NDArray[np.uint8], keep: int
) -> dict[str, Any]:
    """What comes out of the plain path, by the names that the arrays have in a case."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "model"))
    plain = importlib.import_module("plain")
    text = embed_classes(model.text_encoder, synonyms, model.config.prompt, "first")
    batch = preprocess([image], model.config.image_size, antialias=model.config.antialias)
    logits = plain.err_seg(model, batch[0], text, keep)
    kept = torch.nonzero((logits != plain.DROPPED).flatten(1).any(dim=1)).flatten()
    return {
        "selected": kept,
        "text_first5": text[:5],
        "logits_selected": logits[kept],
        "prob_fullres_selected": plain.resize(logits[kept].sigmoid(), image.shape[:2]),
        "labels": plain.best_class(logits, image.shape[:2])[0].numpy(),
    }


def watch(model: ErrSeg, seen: dict[str, Any]) -> None:
    """Keep what the parts return as they run."""

    def keep(part: nn.Module, store: Callable[[Any], dict[str, Tensor]]) -> None:
        part.register_forward_hook(lambda _module, _inputs, output: seen.update(store(output)))

    def maps(x: Tensor) -> Tensor:  # (1, K, H, W, C) → (K, C, H, W); the next layer overwrites x
        return x[0].permute(0, 3, 1, 2).clone()

    def appended(name: str, block: Tensor) -> Tensor:  # the decoder's classes come in blocks
        return torch.cat([seen[name], block]) if name in seen else block

    keep(
        model.image_encoder,
        lambda out: {
            "vis_os4": out.stride4[0],
            "vis_os8": out.stride8[0],
            "vis_os16": out.stride16[0],
            "vis_os32": out.stride32[0],
            "vis_os16_dense": out.embeddings[0][0].permute(2, 0, 1),
            "vis_clip_vis_dense": out.embeddings[1][0].permute(2, 0, 1),
        },
    )
    keep(model.image_guidance, lambda out: {"fusion_img_guidance": out[0]})
    keep(model.text_guidance, lambda out: {"text_guidance": out[0]})
    keep(model.cost_embedding, lambda out: {"corr_embed": out[0]})
    for index, layer in enumerate(model.context_fusion):
        keep(layer.spatial, lambda out, i=index: {f"agg{i}_spatial": maps(out)})  # type: ignore
        keep(layer, lambda out, i=index: {f"agg{i}": maps(out)})  # type: ignore[misc]
    for index, step in enumerate(model.decoder.steps, 1):
        keep(step, lambda out, i=index: {f"up{i}": appended(f"up{i}", out)})  # type: ignore[misc]


def thin(name: str, array: Array) -> tuple[str, Array]:
    """Thin an array as the suffix of its published name says → (plain name, array)."""
    plain, _, suffix = name.partition("__")
    if suffix.startswith("cls8"):
        array = array[:FIRST_CLASSES]
    if suffix == "sortedcls_all":
        return plain, array[:, ::4]
    for letter, step in re.findall(r"([cyx])(\d+)", suffix):
        axis = {"c": -3, "y": -2, "x": -1}[letter]
        array = array[tuple([slice(None)] * (array.ndim + axis) + [slice(None, None, int(step))])]
    return plain, array


def compare(case: Path, ours: dict[str, Any]) -> bool:
    """Print a line per array; true where all are within the limits."""
    passed = True
    reference = np.load(case)
    for name in reference.files:
        theirs = reference[name]
        plain = name.partition("__")[0]
        if plain not in ours:
            print(f"  {plain:32} not computed on this path")
            continue
        mine = np.asarray(ours[plain].cpu().numpy())
        if plain == "selected":
            same = np.array_equal(np.sort(theirs), mine)
            print(f"  {'kept classes':32} {'same' if same else 'DIFFERENT'}")
            passed &= same
            continue
        _, mine = thin(name, mine)
        if mine.shape != theirs.shape:
            print(f"  {plain:32} shape {mine.shape}, expected {theirs.shape}")
            passed = False
            continue
        difference = float(np.abs(mine - theirs).max() / np.abs(theirs).max())
        passed &= difference <= ARRAY_LIMIT
        print(f"  {plain:32} {difference:.2e}{'' if difference <= ARRAY_LIMIT else '  PAST 1e-4'}")
    labels = cv2.imread(str(case.with_name(case.stem + "_labels.png")), cv2.IMREAD_UNCHANGED)
    agreement = float((labels == ours["labels"]).mean())
    passed &= agreement >= LABEL_LIMIT
    print(f"  {'equal labels':32} {100 * agreement:.4f} %")
    print(f"{case.stem}: {'pass' if passed else 'FAIL'}")
    return passed


if __name__ == "__main__":
    sys.exit(main())
