"""`errseg run`: the main job. Everything cheap is checked before torch is imported."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from errseg.catalogue import EMBEDDED
from errseg_cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, reported
from errseg_cli.job import Job, RunOptions, prepare
from errseg_cli.output import print_result
from errseg_cli.progress import progress_shown
from errseg_cli.report import print_classes, say_failures, say_summary

if TYPE_CHECKING:
    from errseg.segmenter import Segmenter
    from errseg.sinks import Sink
    from errseg.summary import RunSummary

CUDA_BATCH_SIZE = 4
CPU_BATCH_SIZE = 1
"""More pictures at once gain nothing where one already keeps all cores busy."""


def run(
    *,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Pictures, folders (with all folders in them), globs in quotes, or - for a list of"
            " paths on standard input, one a line.",
        ),
    ],
    classes: Annotated[
        str,
        typer.Option(
            metavar="VOCAB",
            help="What to look for: names with commas between them, a text file with one class a"
            " line, or a built-in list (`errseg classes` shows them).",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="Folder for the results.")
    ] = Path("errseg_out"),
    outputs: Annotated[
        str, typer.Option(metavar="LIST", help="What to write, with commas between.")
    ] = "overlays,labels,areas",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files of an earlier run in OUT.")
    ] = False,
    opacity: Annotated[
        float, typer.Option(metavar="0..1", help="Of the colours laid over the picture.")
    ] = 0.55,
    threshold: Annotated[
        float,
        typer.Option(
            metavar="0..1", help="Leave pixels unlabelled whose best probability is lower."
        ),
    ] = 0.0,
    keep: Annotated[
        str,
        typer.Option(
            metavar="K|auto",
            help="Classes kept per picture: fewer is faster. auto goes by the number of classes.",
        ),
    ] = "auto",
    synonyms: Annotated[
        Literal["mean", "first"],
        typer.Option(help="Look for the mean of a class's synonyms, or for the first one."),
    ] = "mean",
    model: Annotated[
        str, typer.Option(metavar="NAME", help="`errseg models` lists them.")
    ] = EMBEDDED,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Checkpoint to use for the model.")
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="auto, cpu, cuda, cuda:N or mps; auto takes a GPU if there is one."
        ),
    ] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="Of the model's arithmetic.")
    ] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Pictures at once.",
            show_default=f"{CUDA_BATCH_SIZE} on cuda, else {CPU_BATCH_SIZE}",
        ),
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(metavar="N", help="Refuse larger pictures, before decoding them.")
    ] = 500_000_000,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Say nothing on standard error but errors.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what run.json holds, instead of a table.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Label every pixel of your pictures with your own words.

    Writes to OUT: overlays/ (colours and names over the picture), labels/ (class ids as PNG),
    areas.csv (how much each class covers), classes.csv and run.json. Prints the classes found.

    Exit codes: 0 all done, 1 some inputs failed (the rest is written), 2 wrong usage,
    130 interrupted (what was finished is written).

    Example:

        errseg run holiday/ --classes "sky, sea, beach, person" -o result
    """
    options = RunOptions(
        inputs=inputs,
        classes=classes,
        out=out,
        outputs=outputs,
        overwrite=overwrite,
        opacity=opacity,
        model=model,
        weights=weights,
        device=device,
        precision=precision,
        batch_size=batch_size,
        max_pixels=max_pixels,
        keep=keep,
        threshold=threshold,
        synonyms=synonyms,
    )
    with reported(debug):
        started, start = datetime.now(UTC), time.perf_counter()
        job = prepare(options)
        with progress_shown(len(job.sources) + len(job.failures), quiet=quiet) as on_progress:
            from errseg import pipeline

            segmenter = _load(job)
            batch_size = options.batch_size or _default_batch_size(segmenter)
            sinks = _open_sinks(job)
            load_seconds = time.perf_counter() - start
            summary = pipeline.run(
                segmenter,
                job.vocabulary.names,
                job.sources,
                sinks,
                failures=job.failures,
                batch_size=batch_size,
                max_pixels=options.max_pixels,
                on_progress=on_progress,
            )
        job = dataclasses.replace(job, options=dataclasses.replace(options, batch_size=batch_size))
        record = _write_record(job, segmenter, summary, load_seconds, started)
        _report(job, summary, record, quiet=quiet, as_json=as_json)
        raise typer.Exit(_exit_code(summary))


def _load(job: Job) -> Segmenter:
    from errseg.segmenter import Segmenter

    options = job.options
    return Segmenter(
        options.model,
        classes=job.vocabulary,
        weights=options.weights,
        device=options.device,
        precision=options.precision,
        keep=job.keep,
        threshold=options.threshold,
        synonyms=options.synonyms,
    )


def _open_sinks(job: Job) -> Sequence[Sink]:
    from errseg.sinks import make_sinks, write_classes

    write_classes(job.options.out, job.vocabulary)
    return make_sinks(job.options.out, job.vocabulary, job.kinds, job.options.opacity)


def _default_batch_size(segmenter: Segmenter) -> int:
    return CUDA_BATCH_SIZE if segmenter.device.type == "cuda" else CPU_BATCH_SIZE


def _write_record(
    job: Job, segmenter: Segmenter, summary: RunSummary, load_seconds: float, started: datetime
) -> dict[str, object]:
    from errseg.run_record import run_record
    from errseg.sinks import write_run_record

    options = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(job.options).items()
        if name != "inputs"
    }
    record = run_record(
        segmenter,
        summary,
        weights=job.weights,
        inputs=job.options.inputs,
        options=options,
        load_seconds=load_seconds,
        started=started,
        finished=datetime.now(UTC),
    )
    record = {"command": shlex.join(["errseg", *sys.argv[1:]]), **record}
    write_run_record(job.options.out, record)
    return record


def _report(
    job: Job, summary: RunSummary, record: dict[str, object], *, quiet: bool, as_json: bool
) -> None:
    from errseg.outputs import RUN_FILE

    out = job.options.out
    if not quiet:
        say_summary(summary, out)
    say_failures(summary.failures, out / RUN_FILE)
    if as_json:
        print_result(json.dumps(record, indent=2))
    else:
        print_classes(summary.areas)


def _exit_code(summary: RunSummary) -> int:
    if summary.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if summary.failures else 0
