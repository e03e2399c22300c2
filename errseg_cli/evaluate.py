"""`errseg eval`: how good a model is on labelled pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from errseg.catalogue import file_hash, find_weights
from errseg.errors import UsageError
from errseg_cli.downloading import downloaded
from errseg_cli.errors import EXIT_FAILED, reported
from errseg_cli.evaluation_report import class_table, percent, print_figures
from errseg_cli.options import (
    Debug,
    Device,
    Keep,
    Model,
    Precision,
    Synonyms,
    Weights,
    parse_keep,
    parse_window,
)
from errseg_cli.output import errors_to_terminal, say, shown
from errseg_cli.progress import clock, is_round

if TYPE_CHECKING:
    from errseg.config import Keep as Budget
    from errseg.datasets import LabelledFolder
    from errseg.evaluation.folder import Evaluation
    from errseg.segmenter import Segmenter

OnPair = Callable[["Evaluation"], None]

SAID_FAILURES = 20
"""Per data set; the rest is counted."""


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What decides the figures, besides the data."""

    model: str | None
    weights: str
    keep: Budget
    synonyms: Literal["mean", "first"]
    window: int | Literal["auto"] | None
    precision: str
    limit: int


def evaluate(
    *,
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR",
            help="Folders with images/, labels/ and classes.txt, or benchmarks as published.",
        ),
    ],
    benchmark: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Which benchmark DIR is, where its files do not tell: ade20k-150, ade20k-847,"
            " pascal-context-59, pascal-context-459, voc-20, voc-20b, coco-stuff-171.",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="VOCAB", help="Other names for the data set's classes, one for each, in order."
        ),
    ] = None,
    model: Model = None,
    weights: Weights = None,
    keep: Keep = "default",
    synonyms: Synonyms = "mean",
    window: Annotated[
        str, typer.Option(metavar="PX|auto|off", help="As for `errseg run`.")
    ] = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    limit: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Measure on so many pictures of each set, evenly spaced."
        ),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a table of the classes.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw the confusion matrix (one file per set)."),
    ] = None,
    reliability: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw how often the model is right, by probability."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep what is done in DIR: the same command goes on from there."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files given to --csv, --plot, ….")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    debug: Debug = False,
) -> None:
    """Measure a model on labelled pictures: mean IoU and its relatives, per set and per class.

    A pair that cannot be read is named, left out, and makes the exit code 1.

    Example:

        errseg eval datasets/val/facade datasets/val/idd --plot confusion.png
    """
    with reported(debug):
        checkpoint = find_weights(model, weights)
        from errseg.benchmarks import open_labelled
        from errseg.vocabulary import load_vocabulary

        names = None if classes is None else load_vocabulary(classes)
        sets = _named([open_labelled(folder, benchmark, names) for folder in folders])
        files = _files(list(sets), csv_file, plot, reliability, overwrite=overwrite)
        checkpoint = checkpoint or downloaded(model, quiet=quiet)
        settings = _Settings(
            model,
            file_hash(checkpoint),
            parse_keep(keep),
            synonyms,
            parse_window(window),
            precision,
            limit,
        )
        segmenter = _segmenter(settings, weights, device, next(iter(sets.values())))
        done: dict[str, Evaluation] = {}
        for name, labelled in sets.items():
            done[name] = _measured(segmenter, name, labelled, settings, state, quiet=quiet)
        _write(files, done)
        print_figures(done, sets, segmenter, as_json=as_json)
        if any(evaluation.failures for evaluation in done.values()):
            raise typer.Exit(EXIT_FAILED)


@dataclasses.dataclass(frozen=True)
class _Files:
    """Where the figures go besides standard output; None = nowhere."""

    csv: Path | None
    plot: Path | None
    reliability: Path | None
    single: bool

    def plot_of(self, name: str) -> Path:
        """With several sets each gets a file of its own."""
        assert self.plot is not None
        return self.plot if self.single else self.plot.with_stem(f"{self.plot.stem}-{name}")


def _files(
    sets: list[str],
    table: Path | None,
    plot: Path | None,
    reliability: Path | None,
    *,
    overwrite: bool,
) -> _Files:
    files = _Files(table, plot, reliability, single=len(sets) == 1)
    for path in (plot, reliability):
        if path is None:
            continue
        if path.suffix.lower() != ".png":
            raise UsageError(f"{path} is to be a picture; give it a name that ends in .png.")
        from errseg.figures import new_figure

        new_figure(1, 1)  # that matplotlib is missing is better known before the work
    targets = [files.plot_of(name) for name in sets] if plot else []
    for target in (table, reliability, *targets):
        if target is not None and target.exists() and not overwrite:
            raise UsageError(f"{target} is there already; name another file, or add --overwrite.")
    return files


def _named(sets: list[LabelledFolder]) -> dict[str, LabelledFolder]:
    """The sets by short names: that of the folder, and as much of the path as tells them apart."""
    named: dict[str, LabelledFolder] = {}
    for labelled in sets:
        if any(labelled.folder.resolve() == other.folder.resolve() for other in named.values()):
            raise UsageError(f"{labelled.folder} came twice; name each data set once.")
        parts = labelled.folder.resolve().parts
        name, taken = labelled.name, 1
        while name in named and taken < len(parts):
            taken += 1
            name = "-".join(parts[-taken:])
        named[name] = labelled
    return named


def _segmenter(
    settings: _Settings, weights: Path | None, device: str, first: LabelledFolder
) -> Segmenter:
    from errseg.segmenter import Segmenter

    return Segmenter(
        settings.model,
        classes=first.vocabulary,
        weights=weights,
        device=device,
        precision=settings.precision,  # type: ignore[arg-type]
        keep=settings.keep,
        synonyms=settings.synonyms,
        window=settings.window,
    )


def _measured(
    segmenter: Segmenter,
    name: str,
    labelled: LabelledFolder,
    settings: _Settings,
    state: Path | None,
    *,
    quiet: bool,
) -> Evaluation:
    from errseg.evaluation.folder import chosen_pairs, evaluate, load_evaluation, new_evaluation

    segmenter.set_classes(labelled.vocabulary)
    identity = _identity(settings, labelled)
    saved = None if state is None else state / f"{name}.npz"
    evaluation = (
        new_evaluation(labelled, identity)
        if saved is None
        else load_evaluation(labelled, identity, saved)
    )
    total = len(chosen_pairs(labelled, settings.limit))
    with _progress(name, total, quiet=quiet) as progress:
        evaluate(
            segmenter, labelled, evaluation, limit=settings.limit, state=saved, progress=progress
        )
    for failure in evaluation.failures[:SAID_FAILURES]:
        say(f"errseg: left out {shown(failure.source)}: {failure.message}")
    if len(evaluation.failures) > SAID_FAILURES:
        say(f"errseg: … and {len(evaluation.failures) - SAID_FAILURES} more of {name}")
    return evaluation


def _identity(settings: _Settings, labelled: LabelledFolder) -> str:
    facts = [
        dataclasses.astuple(settings),
        labelled.vocabulary.hash,
        labelled.ids,
        [str(picture) for picture, _ in labelled.pairs],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _write(files: _Files, done: dict[str, Evaluation]) -> None:
    from errseg.files import write_bytes_atomic

    if files.csv is not None:
        write_bytes_atomic(files.csv, class_table(done).encode())
    if files.plot is not None:
        from errseg.evaluation.plots import confusion_png

        for name, evaluation in done.items():
            write_bytes_atomic(files.plot_of(name), confusion_png(evaluation, name))
    if files.reliability is not None:
        from errseg.evaluation.plots import reliability_png

        write_bytes_atomic(files.reliability, reliability_png(done))


@contextlib.contextmanager
def _progress(name: str, total: int, *, quiet: bool) -> Iterator[OnPair]:
    """What to hand to the evaluation as `progress`."""
    if quiet:
        yield lambda evaluation: None
        return
    if not errors_to_terminal():
        yield lambda evaluation: _say_pair(name, total, evaluation)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    words = TextColumn("{task.description}", markup=False)
    figures = TextColumn("{task.fields[figures]}", markup=False)
    console = Console(stderr=True)
    columns = (words, BarColumn(), MofNCompleteColumn(), figures)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(name, total=total, figures="")
        yield lambda evaluation: bar.update(
            task, completed=evaluation.done, figures=_so_far(total, evaluation)
        )


def _say_pair(name: str, total: int, evaluation: Evaluation) -> None:
    if is_round(evaluation.done) and evaluation.done < total:
        say(f"errseg: {name} {evaluation.done}/{total}, {_so_far(total, evaluation)}")


def _so_far(total: int, evaluation: Evaluation) -> str:
    left = (total - evaluation.done) * evaluation.seconds / max(1, evaluation.done)
    return f"mIoU {percent(evaluation.metrics.mean_iou)}, {clock(left)} left"
