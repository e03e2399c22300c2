"""run.json: how a run was made and what came of it, so that it can be told apart and repeated."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import errseg
from errseg.summary import RunSummary

if TYPE_CHECKING:
    from errseg.segmenter import Segmenter

_PRECISION_NAMES = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}
_SECOND_DIGITS = 3


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run before its first picture.

    Attributes:
        command: as it was typed.
        inputs: as the user gave them.
        options: as the user gave them, defaults included; plain values only.
        identity: everything that decides the results; a run with another one cannot go on.
        weights, weights_hash: the file that the model was read from, and its SHA-256.
        batch_size: as it was used.
        started: with a time zone.
    """

    command: str
    inputs: Sequence[str]
    options: Mapping[str, object]
    identity: Mapping[str, object]
    weights: str
    weights_hash: str
    batch_size: int
    started: datetime


def started_record(facts: RunFacts, segmenter: Segmenter) -> dict[str, object]:
    """The content of run.json while the run goes on, ready for `write_run_record`."""
    config, vocabulary = segmenter.model.config, segmenter.vocabulary
    return {
        "command": facts.command,
        "version": errseg.__version__,
        "state": "running",
        "started": facts.started.isoformat(timespec="seconds"),
        "inputs": list(facts.inputs),
        "options": dict(facts.options),
        "identity": dict(facts.identity),
        "model": {
            "name": config.name,
            "config_sha256": hashlib.sha256(config.to_json().encode()).hexdigest(),
            "weights": facts.weights,
            "weights_sha256": facts.weights_hash,
        },
        "vocabulary": {
            "source": vocabulary.source,
            "sha256": vocabulary.hash,
            "classes": len(vocabulary),
        },
        "device": str(segmenter.device),
        "precision": _PRECISION_NAMES[str(segmenter.precision)],
        "keep": config.kept(len(vocabulary), segmenter.keep),
        "batch_size": facts.batch_size,
    }


def finished_record(
    facts: RunFacts,
    segmenter: Segmenter,
    summary: RunSummary,
    *,
    load_seconds: float,
    finished: datetime,
) -> dict[str, object]:
    """The content of run.json when the run is over, ready for `write_run_record`.

    Args:
        segmenter: as it was used.
        summary: what came of the run.
        load_seconds: from the start of the command to the first picture.
        finished: with a time zone.
    """
    state: Literal["complete", "interrupted"] = "interrupted" if summary.interrupted else "complete"
    seconds = {"load": load_seconds, **dataclasses.asdict(summary.seconds)}
    return {
        **started_record(facts, segmenter),
        "state": state,
        "finished": finished.isoformat(timespec="seconds"),
        "counts": {
            "done": summary.done,
            "failed": summary.failed,
            "skipped": summary.skipped,
            "frames": summary.frames,
        },
        "frames_per_second": round(summary.frames_per_second, _SECOND_DIGITS),
        "seconds": {stage: round(value, _SECOND_DIGITS) for stage, value in seconds.items()},
        "areas": [
            {**dataclasses.asdict(total), "fraction": round(total.fraction, 6)}
            for total in summary.areas
        ],
        "failures": [dataclasses.asdict(failure) for failure in summary.failures],
        "warnings": [dataclasses.asdict(warning) for warning in summary.warnings],
    }
