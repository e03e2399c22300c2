"""`errseg bench`: how fast a model is here, with your vocabulary, and what its parts save."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errseg.catalogue import EMBEDDED, find_weights
from errseg.errors import UsageError
from errseg.stages import STAGES
from errseg_cli.downloading import downloaded
from errseg_cli.errors import reported
from errseg_cli.options import (
    Compile,
    Debug,
    Device,
    Keep,
    Model,
    Precision,
    Weights,
    parse_keep,
    whole_number,
)
from errseg_cli.output import errors_to_terminal, print_result, print_table, say

if TYPE_CHECKING:
    from torch import Tensor

    from errseg.benchmark import Latency, Subject
    from errseg.model.err_seg import ErrSeg
    from errseg.vocabulary import Vocabulary

LARGEST_LIST = "ade20k-847"
LONGEST_SIDE = 20_000

OFF: dict[str, dict[str, bool | int]] = {
    "CRM": {"channel_reduction": False},
    "ESCF": {"spatial_stride": 1, "class_pooling": 1},
}
"""What turns a part of the paper off: all T classes are kept; no sequence is shortened."""


def bench(
    *,
    model: Model = None,
    weights: Weights = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights", help="Time the model's shape with no weights; as fast as with them."
        ),
    ] = False,
    classes: Annotated[
        str,
        typer.Option(
            metavar="VOCAB|N",
            help="Vocabulary as for `errseg run`, or a number: so many names of ADE20K-847.",
        ),
    ] = "150",
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="HxW", help="Of the pictures, pixels; may be given several times."),
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Pictures at once.")] = 1,
    keep: Keep = "default",
    device: Device = "auto",
    precision: Precision = "auto",
    compiled: Compile = False,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Timed runs of each.")] = 5,
    threads: Annotated[
        int, typer.Option(metavar="N", min=0, help="CPU threads; 0 leaves it to torch.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    debug: Debug = False,
) -> None:
    """Time a model on this machine: pictures per second, where the time goes, memory.

    Also what the paper's reductions save here: each is turned off in turn. All are run in turns,
    so that what else the machine does falls on all alike. Times are medians, from a picture in
    memory to its label map; reading and writing files comes on top.

    Example:

        errseg bench --classes 847 --size 480x640 --size 1080x1920
    """
    with reported(debug):
        sizes = [_size(text) for text in size or ["480x640"]]
        budget = parse_keep(keep)
        if random_weights and weights is not None:
            raise UsageError("--random-weights and --weights exclude each other; leave one out.")
        vocabulary = _vocabulary(classes)
        if not random_weights:
            weights = find_weights(model, weights) or downloaded(model, quiet=quiet)

        import torch

        from errseg.benchmark import WARM_UPS, Subject, latencies
        from errseg.devices import compile_for, resolve_device, resolve_precision

        if threads:
            torch.set_num_threads(threads)
        where = resolve_device(device)
        loaded = _model(model, weights, random_weights=random_weights).to(where)
        if compiled:
            compile_for(where, loaded.image_encoder)
        text = _text(loaded, vocabulary, random_weights=random_weights).to(where)
        subject = Subject(
            loaded, text, sizes[0], batch_size, budget, resolve_precision(precision, where)
        )
        subjects = _subjects(subject, sizes)
        with _progress((repeats + WARM_UPS) * len(subjects), quiet=quiet) as progress:
            timed = latencies(list(subjects.values()), repeats, progress)
        report = _report(subject, sizes, dict(zip(subjects, timed, strict=True)))
        if as_json:
            print_result(json.dumps(report, indent=2))
        else:
            _print(report)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < min(size) <= max(size) <= LONGEST_SIDE:
        raise UsageError(
            f"--size is {text!r}; it must be HEIGHTxWIDTH in pixels, at most {LONGEST_SIDE} each: "
            "480x640."
        )
    return size


def _vocabulary(classes: str) -> Vocabulary:
    from errseg.vocabulary import Vocabulary, load_vocabulary

    if not classes.isdecimal():
        return load_vocabulary(classes)
    every = load_vocabulary(LARGEST_LIST)
    count = int(whole_number("--classes", classes))
    if count > len(every):
        raise UsageError(f"--classes is {count}; {LARGEST_LIST} has {len(every)} names.")
    return Vocabulary(every.classes[:count], every.source)


def _model(name: str | None, weights: Path | None, *, random_weights: bool) -> ErrSeg:
    if not random_weights:
        from errseg.weights import load_named_model

        return load_named_model(name, weights)
    from errseg.config import PRESETS
    from errseg.model.err_seg import ErrSeg

    find_weights(name)  # for its message where there is no such model
    return ErrSeg(PRESETS[name or EMBEDDED]).eval()


def _text(model: ErrSeg, vocabulary: Vocabulary, *, random_weights: bool) -> Tensor:
    """(T, D) class embeddings."""
    import torch

    from errseg.embedding_cache import cache_folder, cached_embeddings

    if random_weights:
        drawn = torch.randn(len(vocabulary), model.config.embedding_dim)
        return torch.nn.functional.normalize(drawn, dim=-1)
    with torch.inference_mode():
        return cached_embeddings(
            model.text_encoder, vocabulary.synonyms, model.config.prompt, "mean", cache_folder()
        )


def _subjects(subject: Subject, sizes: list[tuple[int, int]]) -> dict[str, Subject]:
    """What is timed, by name: a picture of each size; each part off, at the first size."""
    from errseg.benchmark import without

    named = {_name(size): dataclasses.replace(subject, size=size) for size in sizes}
    for part, switches in OFF.items():
        model = without(subject.model, **switches)
        named[f"without {part}"] = dataclasses.replace(subject, model=model)
    return named


def _name(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _report(
    subject: Subject, sizes: list[tuple[int, int]], timed: dict[str, Latency]
) -> dict[str, Any]:
    """What --json prints."""
    import torch

    config, total = subject.model.config, len(subject.text)
    first = timed[_name(sizes[0])].whole
    return {
        "model": config.name,
        "device": str(subject.text.device),
        "threads": torch.get_num_threads(),
        "precision": str(subject.precision).removeprefix("torch."),
        "classes": total,
        "keep": config.kept(total, subject.keep),
        "batch_size": subject.batch,
        "sizes": {_name(size): _figures(timed[_name(size)], subject.batch) for size in sizes},
        "saved": {
            part: {"whole": timed[f"without {part}"].whole, "share": 1 - first / whole}
            for part in OFF
            for whole in [timed[f"without {part}"].whole]
        },
    }


def _figures(latency: Latency, batch: int) -> dict[str, float | None]:
    return {**latency.figures, "pictures_per_second": batch / latency.whole}


def _print(report: dict[str, Any]) -> None:
    say(
        f"{report['model']} on {report['device']} ({report['threads']} threads, "
        f"{report['precision']}), {report['classes']} classes, {report['keep']} kept, "
        f"{report['batch_size']} at once"
    )
    rows = []
    for size, found in report["sizes"].items():
        peak = "-" if found["peak_gb"] is None else f"{found['peak_gb']:.2f}"
        rows.append(
            (
                size,
                f"{found['pictures_per_second']:.2f}",
                *(f"{1e3 * found[name]:.0f}" for name in (*STAGES, "whole")),
                peak,
            )
        )
    print_table(("picture", "per second", *STAGES, "whole ms", "peak GB"), rows)
    for part, found in report["saved"].items():
        say(f"{part} saves {100 * found['share']:.0f} %: {1e3 * found['whole']:.0f} ms without it")


@contextlib.contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[Callable[[], None]]:
    if quiet or not errors_to_terminal():
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc="timing", unit="run", leave=False) as bar:

        def advance() -> None:
            bar.update()

        yield advance
