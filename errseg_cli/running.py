"""A run under way: the job as `prepare` found it, the model, the output folder, the loop."""

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
from typing import TYPE_CHECKING, BinaryIO

from errseg.errors import WriteError
from errseg_cli.job import Job
from errseg_cli.progress import OnProgress
from errseg_cli.signals import StopRequest

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


class RunUnderWay:
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
