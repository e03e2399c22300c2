"""`errseg run`: the main job. Everything cheap is checked before torch is imported."""

from __future__ import annotations

import json
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from errseg.errors import UsageError
from errseg_cli.errors import EXIT_FAILED, reported
from errseg_cli.job import Job, RunOptions, prepare
from errseg_cli.options import Compile, Debug, Device, Keep, Model, Precision, Synonyms, Weights
from errseg_cli.output import print_result, say
from errseg_cli.progress import progress_shown
from errseg_cli.report import print_classes, say_failures, say_summary
from errseg_cli.running import CPU_BATCH_SIZE, CUDA_BATCH_SIZE, RunUnderWay
from errseg_cli.signals import EXIT_BY_SIGNAL, StopRequest, stop_on_signals

if TYPE_CHECKING:
    from errseg.summary import RunSummary


def run(
    *,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Pictures, videos, folders (with all folders in them), globs in quotes, - for a"
            " list of paths on standard input, or pipe: for a picture or video on standard input.",
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
        str, typer.Option(metavar="LIST", help="What to write, with commas between; or none.")
    ] = "overlays,labels,areas",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files of an earlier run in OUT.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in OUT: do only what is missing. Starts one if there is none.",
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Take the I-th of N parts of the inputs (job arrays)."),
    ] = None,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="Paths in the list on standard input end in NUL.")
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
    window: Annotated[
        str,
        typer.Option(
            metavar="PX|auto|off",
            help="Cut large pictures into overlapping windows of so many pixels a side and blend"
            " them: finer, and slower. auto does so where one pass cannot do justice to a picture.",
        ),
    ] = "auto",
    keep: Keep = "default",
    synonyms: Synonyms = "mean",
    every: Annotated[int, typer.Option(metavar="N", help="Videos: take every N-th frame.")] = 1,
    fps: Annotated[
        float | None, typer.Option(metavar="F", help="Videos: take at most F frames a second.")
    ] = None,
    start: Annotated[
        float, typer.Option(metavar="S", help="Videos: begin after so many seconds.")
    ] = 0.0,
    end: Annotated[
        float | None, typer.Option(metavar="S", help="Videos: end after so many seconds.")
    ] = None,
    steady: Annotated[
        float,
        typer.Option(
            metavar="0..1",
            help="Videos: how much is carried over from frame to frame, so that labels flicker"
            " less; 0.7 is a good value.",
        ),
    ] = 0.0,
    video_labels: Annotated[
        Literal["png", "ffv1"],
        typer.Option(help="Videos: label maps as one PNG a frame, or in one lossless file."),
    ] = "png",
    model: Model = None,
    weights: Weights = None,
    device: Device = "auto",
    precision: Precision = "auto",
    compiled: Compile = False,
    batch_size: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            help="Pictures at once; auto tries what is fastest.",
            show_default=f"{CUDA_BATCH_SIZE} on cuda, else {CPU_BATCH_SIZE}",
        ),
    ] = "default",
    max_pixels: Annotated[
        int, typer.Option(metavar="N", help="Refuse larger pictures, before decoding them.")
    ] = 500_000_000,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Say nothing on standard error but errors.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what run.json holds, instead of a table.")
    ] = False,
    jsonl: Annotated[
        bool,
        typer.Option("--jsonl", help="Print a JSON object per picture or frame when it is done."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Label every pixel of your pictures and videos with your own words.

    Writes to OUT: overlays/ (colours and names over the picture or video), labels/ (class ids as
    PNG), areas.csv (how much each class covers), classes.csv, run.json. Prints the classes found.

    Exit codes: 0 all done, 1 some inputs failed (the rest is written), 2 wrong usage,
    130 or 143 interrupted (what was finished is written; --resume goes on), 141 the reader of
    --jsonl went away.

    Example:

        errseg run holiday/ --classes "sky, sea, beach, person" -o result
    """
    options = RunOptions(
        inputs=inputs,
        classes=classes,
        out=out,
        outputs=outputs,
        overwrite=overwrite,
        resume=resume,
        opacity=opacity,
        model=model,
        weights=weights,
        device=device,
        precision=precision,
        compiled=compiled,
        batch_size=batch_size,
        max_pixels=max_pixels,
        keep=keep,
        threshold=threshold,
        synonyms=synonyms,
        window=window,
        steady=steady,
        every=every,
        fps=fps,
        start=start,
        end=end,
        video_labels=video_labels,
        shard=shard,
        null=null,
    )
    with reported(debug):
        started, begin = datetime.now(UTC), time.perf_counter()
        if as_json and jsonl:
            raise UsageError("--json and --jsonl both want standard output; choose one.")
        job = prepare(options, quiet=quiet)
        with stop_on_signals() as stop:
            with progress_shown(len(job.sources) + len(job.failures), quiet=quiet) as on_progress:
                done = RunUnderWay(job, stop, started, begin)
                done.work(on_progress, jsonl=jsonl)
            _report(job, done.summary, done.record, quiet=quiet, as_json=as_json, jsonl=jsonl)
            raise typer.Exit(_exit_code(done.summary, stop))


def _report(
    job: Job,
    summary: RunSummary,
    record: dict[str, object],
    *,
    quiet: bool,
    as_json: bool,
    jsonl: bool,
) -> None:
    from errseg.outputs import RUN_FILE

    out = job.options.out if job.kinds else None
    if not quiet:
        say_summary(summary, out)
    say_failures(summary.failures, None if out is None else out / RUN_FILE)
    if summary.interrupted and out is not None:
        say(f"to go on: {_resume_command()}")
    if as_json:
        print_result(json.dumps(record, indent=2))
    elif not jsonl:
        print_classes(summary.areas)


def _resume_command() -> str:
    words = [word for word in sys.argv[1:] if word not in ("--overwrite", "--resume")]
    return shlex.join(["errseg", *words, "--resume"])


def _exit_code(summary: RunSummary, stop: StopRequest) -> int:
    if summary.interrupted and stop.signal_number:
        return EXIT_BY_SIGNAL + stop.signal_number
    return EXIT_FAILED if summary.failures or summary.interrupted else 0
