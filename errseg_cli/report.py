"""What a run says when it is over: the summary for a person, the classes found as its result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from errseg_cli.output import print_result, print_table, say, shown, to_terminal

if TYPE_CHECKING:
    from errseg.records import Failure
    from errseg.summary import ClassTotal, PictureWarning, RunSummary

LISTED_FAILURES = 20
LISTED_CLASSES = 20


def say_summary(summary: RunSummary, out: Path | None) -> None:
    """Counts, where the results are, and what was assumed while reading, on standard error."""
    videos = summary.frames > summary.done
    counts = [f"{summary.done} {_inputs(summary.done, videos)} done"]
    if summary.failed:
        counts.append(f"{summary.failed} failed")
    if summary.interrupted:
        counts.append(f"interrupted with {summary.skipped} to go")
    unit = "frames" if videos else "pictures"
    if videos:
        counts.append(f"{summary.frames - summary.earlier} frames")
    seconds, rate = summary.seconds.total, summary.frames_per_second
    say(f"{', '.join(counts)}, in {seconds:.1f} s ({rate:.2f} {unit}/s)")
    if summary.earlier:
        say(f"{summary.earlier} {unit} were there already")
    if out is not None:
        say(f"results are in {shown(str(out))}")
    for line in _warning_lines(summary.warnings):
        say(line)


def say_failures(failures: Sequence[Failure], record: Path | None) -> None:
    """The first failures by name, on standard error.

    Args:
        record: the run.json that names them all, if there is one.
    """
    for failure in failures[:LISTED_FAILURES]:
        say(f"failed: {shown(failure.source)}: {failure.message}")
    rest = len(failures) - LISTED_FAILURES
    if rest > 0:
        named = "" if record is None else f", named in {shown(str(record))}"
        say(f"failed: and {rest} more{named}")


def print_classes(areas: Sequence[ClassTotal]) -> None:
    """The classes found and their share of all pixels: for a person or for another program."""
    if not to_terminal():
        print_table(
            ("class_id", "class", "pixels", "fraction", "pictures"),
            [(a.class_id, a.name, a.pixels, f"{a.fraction:.6f}", a.pictures) for a in areas],
        )
        return
    rows = [(a.name, f"{a.fraction:6.1%}", a.pictures) for a in areas[:LISTED_CLASSES]]
    print_table(("class", "  area", "pictures"), rows)
    rest = len(areas) - LISTED_CLASSES
    if rest > 0:
        print_result(f"and {rest} more")


def _warning_lines(warnings: Iterable[PictureWarning]) -> list[str]:
    """One line per kind of warning, the first picture named."""
    kinds: dict[str, list[str]] = {}
    for warning in warnings:
        kinds.setdefault(warning.message, []).append(warning.source)
    return [
        f"note: {message} ({shown(sources[0])}"
        + (f" and {len(sources) - 1} more)" if len(sources) > 1 else ")")
        for message, sources in kinds.items()
    ]


def _inputs(count: int, videos: bool) -> str:
    name = "input" if videos else "picture"
    return name if count == 1 else f"{name}s"
