"""`--jsonl`: one JSON object per picture on standard output, as soon as it is done."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from errseg.journal import FrameEntry
from errseg.records import UNLABELLED_CLASS_ID, UNLABELLED_NAME

if TYPE_CHECKING:
    from pathlib import Path

    from errseg.plan import FrameResult
    from errseg.records import Failure
    from errseg_cli.signals import StopRequest


class JsonLines:
    """Writes the lines; a reader that goes away ends the run quietly."""

    def __init__(self, out: Path, class_names: Sequence[str], stop: StopRequest) -> None:
        self._out, self._stop = out, stop
        self._names = {UNLABELLED_CLASS_ID: UNLABELLED_NAME} | dict(enumerate(class_names))

    def result(self, result: FrameResult) -> None:
        """A finished picture or frame, or a finished video."""
        entry = result.entry
        values: dict[str, object] = {"source": entry.source}
        if isinstance(entry, FrameEntry):
            values |= {
                "frame": entry.frame,
                "time_s": round(entry.time_s, 6),
                "width": entry.width,
                "height": entry.height,
                "areas": [
                    {
                        "class_id": area.class_id,
                        "class": self._names[area.class_id],
                        "pixels": area.pixels,
                        "fraction": round(area.fraction, 6),
                        "mean_score": round(area.mean_score, 6),
                    }
                    for area in entry.areas
                ],
            }
        else:
            values["end"] = True
            if entry.failure:
                values["error"] = entry.failure
        values["outputs"] = {kind: str(self._out / path) for kind, path in result.outputs.items()}
        self._write(values)

    def failure(self, failure: Failure) -> None:
        """An input that failed."""
        self._write({"source": failure.source, "error": failure.message})

    def _write(self, values: dict[str, object]) -> None:
        if sys.stdout is None or self._stop.signal_number == signal.SIGPIPE:
            return
        try:
            # ASCII: names that are not UTF-8 survive as escaped surrogates
            sys.stdout.write(json.dumps(values) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            # Python flushes once more at its end, and would complain then
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._stop.ask(signal.SIGPIPE)
