"""`errseg run`: the main job. Everything cheap is checked before torch is imported."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import typer

from errseg.errors import UsageError, WriteError
from errseg_cli.errors import EXIT_FAILED, reported
from errseg_cli.job import Job, RunOptions, prepare
from errseg_cli.options import Compile, Debug, Device, Keep, Model, Precision, Synonyms, Weights
from errseg_cli.output import print_result, say
from errseg_cli.progress import OnProgress, progress_shown
from errseg_cli.report import print_classes, say_failures, say_summary
from errseg_cli.signals import EXIT_BY_SIGNAL, StopRequest, stop_on_signals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from errseg.halving import Steady
    from errseg.journal import Journal
    from errseg.plan import Listeners, Plan, Steadying
    from errseg.records import ImageArray, Segmentation
    from errseg.run_record import RunFacts
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
                done = _Run(job, stop, started, begin)
                done.work(on_progress, jsonl=jsonl)
            _report(job, done.summary, done.record, quiet=quiet, as_json=as_json, jsonl=jsonl)
            raise typer.Exit(_exit_code(done.summary, stop))


class _Run:
    """The job under way: model, output folder, loop.

    Attributes:
        summary, record: what came of it, and run.json; there after `work`.
    """

    summary: RunSummary
    record: dict[str, object]

    def __init__(self, job: Job, stop: StopRequest, started: datetime, begin: float) -> None:
        self._job, self._stop, self._started, self._begin = job, stop, started, begin

    def work(self, on_progress: OnProgress | None, *, jsonl: bool) -> None:
        """Load the model, do everything, write run.json."""
        from errseg import pipeline
        from errseg.run_record import finished_record, started_record

        job = self._job
        segmenter = _load(job)
        facts = self._facts(_batch_size(job, segmenter))
        with _journal(job) as journal:
            sinks = _sinks(job)
            plan = _plan(job, segmenter, facts.batch_size, journal, sinks)
            if journal is not None:
                _open_output(job, started_record(facts, segmenter))
            load_seconds = time.perf_counter() - self._begin
            self.summary = pipeline.run(
                segmenter,
                job.vocabulary.names,
                job.sources,
                sinks,
                plan,
                listeners=self._listeners(on_progress, jsonl=jsonl),
                stop=self._stop.event,
            )
            self.record = finished_record(
                facts,
                segmenter,
                self.summary,
                load_seconds=load_seconds,
                finished=datetime.now(UTC),
            )
            if journal is not None:
                self._close_output(journal)

    def _close_output(self, journal: Journal) -> None:
        """Where that fails, the journal has everything still: the next run can go on."""
        from errseg.pipeline import OUTPUT_FILES
        from errseg.records import Failure
        from errseg.resume import settle
        from errseg.sinks import write_run_record

        job = self._job
        try:
            settle(journal, job.sources, job.kinds, job.vocabulary.names)
            write_run_record(job.options.out, self.record)
        except WriteError as error:
            failures = (*self.summary.failures, Failure(OUTPUT_FILES, str(error)))
            self.summary = dataclasses.replace(self.summary, failures=failures)

    def _facts(self, batch_size: int) -> RunFacts:
        from errseg.run_record import RunFacts

        job = self._job
        options = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(job.options).items()
            if name not in ("inputs", "resume", "overwrite")
        }
        return RunFacts(
            command=_command(),
            inputs=job.options.inputs,
            options=options,
            identity=job.identity,
            weights=str(job.weights),
            weights_hash=job.weights_hash,
            batch_size=batch_size,
            started=self._started,
        )

    def _listeners(self, on_progress: OnProgress | None, *, jsonl: bool) -> Listeners:
        from errseg.plan import Listeners
        from errseg_cli.json_lines import JsonLines

        listeners = Listeners()
        if on_progress is not None:
            listeners = dataclasses.replace(listeners, progress=on_progress)
        if jsonl:
            lines = JsonLines(self._job.options.out, self._job.vocabulary.names, self._stop)
            listeners = dataclasses.replace(listeners, result=lines.result, failure=lines.failure)
        return listeners


def _command() -> str:
    return shlex.join(["errseg", *sys.argv[1:]])


def _load(job: Job) -> Segmenter:
    from errseg.segmenter import Segmenter

    options = job.options
    return Segmenter(
        options.model,
        classes=job.vocabulary,
        weights=options.weights,
        device=options.device,
        precision=options.precision,
        compiled=options.compiled,
        keep=job.keep,
        threshold=options.threshold,
        synonyms=options.synonyms,
        window=job.window,
    )


def _batch_size(job: Job, segmenter: Segmenter) -> int:
    if job.resuming and job.batch_size == "auto":
        return _earlier_batch_size(job)
    if job.batch_size == "auto":
        from errseg.tuning import best_batch_size

        return best_batch_size(segmenter)
    if job.batch_size is None:
        return CUDA_BATCH_SIZE if segmenter.device.type == "cuda" else CPU_BATCH_SIZE
    return job.batch_size


def _earlier_batch_size(job: Job) -> int:
    """The same as before: which pictures share a batch can change their results by rounding."""
    from errseg.outputs import RUN_FILE

    record = json.loads((job.options.out / RUN_FILE).read_text("utf-8"))
    return int(record["batch_size"])


@contextlib.contextmanager
def _journal(job: Job) -> Iterator[Journal | None]:
    from errseg.journal import Journal

    if not job.kinds:
        yield None
        return
    journal = Journal(job.options.out)
    if not job.resuming:
        journal.forget_all()
    try:
        yield journal
    finally:
        journal.close()


def _sinks(job: Job) -> Sequence[Sink]:
    from errseg.sinks import make_sinks

    if not job.kinds:
        return []
    options = job.options
    return make_sinks(options.out, job.vocabulary, job.kinds, options.opacity, options.video_labels)


def _plan(
    job: Job,
    segmenter: Segmenter,
    batch_size: int,
    journal: Journal | None,
    sinks: Sequence[Sink],
) -> Plan:
    from errseg.plan import Earlier, Plan
    from errseg.resume import Resumption

    earlier = Earlier()
    if journal is not None and job.resuming:
        earlier = Resumption(
            journal,
            job.sources,
            sinks,
            batch_size=batch_size,
            video_medium=job.video_medium,
            steadily=job.options.steady > 0,
        ).take_up()
    return Plan(
        failures=job.failures,
        batch_size=batch_size,
        reading=job.reading,
        stdin=_binary_stdin(),
        journal=journal,
        earlier=earlier,
        steadying=_steadying(job, segmenter),
    )


def _binary_stdin() -> BinaryIO | None:
    return None if sys.stdin is None else sys.stdin.buffer


def _steadying(job: Job, segmenter: Segmenter) -> Steadying | None:
    if job.options.steady <= 0:
        return None
    from errseg.plan import Steadying
    from errseg.steady import Steadier

    def steadily(images: Sequence[ImageArray], steady: Steady, /) -> list[Segmentation]:
        assert isinstance(steady, Steadier)
        return segmenter(images, steadier=steady)

    return Steadying(steadily, lambda: Steadier(job.options.steady))


def _open_output(job: Job, record: dict[str, object]) -> None:
    """What is in OUT from the first moment: what the run is, so that it can be resumed."""
    from errseg.outputs import AREAS_FILE, remove_frames
    from errseg.sinks import write_classes, write_run_record

    out = job.options.out
    write_run_record(out, record)
    write_classes(out, job.vocabulary)
    if not job.options.overwrite:
        return
    # what would pass for this run's: rows, and frames that it may not have
    if "areas" in job.kinds:
        (out / AREAS_FILE).unlink(missing_ok=True)
    if "labels" in job.kinds:
        for source in job.sources:
            if not source.is_picture:
                remove_frames(out, source.source)


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
