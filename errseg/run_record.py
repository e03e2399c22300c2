"""run.json: how a run was made and what came of it, so that it can be told apart and repeated."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import errseg
from errseg.summary import RunSummary
from errseg.weights import file_hash

if TYPE_CHECKING:
    from errseg.segmenter import Segmenter

_PRECISION_NAMES = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}
_SECOND_DIGITS = 3


def run_record(
    segmenter: Segmenter,
    summary: RunSummary,
    *,
    weights: Path,
    inputs: Sequence[str],
    options: Mapping[str, object],
    load_seconds: float,
    started: datetime,
    finished: datetime,
) -> dict[str, object]:
    """The content of run.json, ready for `write_run_record`.

    Args:
        segmenter: as it was used.
        summary: what came of the run.
        weights: the file that the model was read from.
        inputs: as the user gave them.
        options: as the user gave them, defaults included; plain values only.
        load_seconds: from the start of the command to the first picture.
        started, finished: of the whole command, with a time zone.

    Raises:
        WeightsError: `weights` cannot be read any more.
    """
    config, vocabulary = segmenter.model.config, segmenter.vocabulary
    seconds = {"load": load_seconds, **dataclasses.asdict(summary.seconds)}
    return {
        "version": errseg.__version__,
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "interrupted": summary.interrupted,
        "inputs": list(inputs),
        "options": dict(options),
        "model": {
            "name": config.name,
            "config_sha256": hashlib.sha256(config.to_json().encode()).hexdigest(),
            "weights": str(weights),
            "weights_sha256": file_hash(weights),
        },
        "vocabulary": {
            "source": vocabulary.source,
            "sha256": vocabulary.hash,
            "classes": len(vocabulary),
        },
        "device": str(segmenter.device),
        "precision": _PRECISION_NAMES[str(segmenter.precision)],
        "keep": config.keep_for(len(vocabulary), segmenter.keep),
        "counts": {
            "done": summary.done,
            "failed": summary.failed,
            "skipped": summary.skipped,
        },
        "pictures_per_second": round(summary.pictures_per_second, _SECOND_DIGITS),
        "seconds": {stage: round(value, _SECOND_DIGITS) for stage, value in seconds.items()},
        "areas": [
            {**dataclasses.asdict(total), "fraction": round(total.fraction, 6)}
            for total in summary.areas
        ],
        "failures": [dataclasses.asdict(failure) for failure in summary.failures],
        "warnings": [dataclasses.asdict(warning) for warning in summary.warnings],
    }
