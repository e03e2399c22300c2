"""Progress of a run on standard error: a bar for a person, sparse lines for a log file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from errseg_cli.output import errors_to_terminal, say

if TYPE_CHECKING:
    from errseg.summary import Progress

OnProgress = Callable[["Progress"], None]

LONGEST_SILENCE_S = 30.0
"""A log file gets a line at least this often, as long as pictures get done."""


@contextlib.contextmanager
def progress_shown(total: int, *, quiet: bool) -> Iterator[OnProgress | None]:
    """What to hand to `pipeline.run` as listener of its progress.

    Args:
        total: pictures and videos of the run.
        quiet: show nothing.
    """
    if quiet:
        yield None
    elif errors_to_terminal():
        with _bar(total) as on_progress:
            yield on_progress
    else:
        yield sparse_lines()


def sparse_lines(write: Callable[[str], None] = say) -> OnProgress:
    """A line at 1, 2, 5, 10, 20, 50, ... frames, and whenever there was none for long."""
    last = 0.0

    def on_progress(progress: Progress) -> None:
        nonlocal last
        count = progress.done + progress.failed
        silence = progress.seconds - last
        wanted = is_round(progress.frames) or silence >= LONGEST_SILENCE_S
        if progress.frames + progress.failed > 0 and count < progress.total and wanted:
            last = progress.seconds
            write(f"errseg: {count}/{progress.total} {what(progress)}, {pace(progress)}")

    return on_progress


def what(progress: Progress) -> str:
    """What is counted, in words: pictures, or inputs where there are videos among them."""
    if _holds_videos(progress):
        return f"inputs and {progress.frames} frames"
    return "pictures"


def _holds_videos(progress: Progress) -> bool:
    return progress.frames > progress.done - progress.earlier or progress.part > 0


def is_round(count: int) -> bool:
    """Whether a count is 1, 2 or 5 times a power of ten."""
    return str(count).rstrip("0") in ("1", "2", "5")


def pace(progress: Progress) -> str:
    """Pictures or frames per second and time left, in words."""
    if progress.frames == 0 or progress.seconds <= 0:
        return "starting"
    unit = "frames" if _holds_videos(progress) else "pictures"
    rate = f"{progress.frames / progress.seconds:.2f} {unit}/s"
    covered = progress.done + progress.failed - progress.earlier + progress.part
    if covered <= 0:
        return rate
    left = progress.total - progress.earlier - covered
    return f"{rate}, {clock(max(0.0, left) * progress.seconds / covered)} left"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss where there are no hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextlib.contextmanager
def _bar(total: int) -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
    )
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=total, pace="loading the model")

        def on_progress(progress: Progress) -> None:
            completed = progress.done + progress.failed + progress.part
            bar.update(task, completed=completed, pace=pace(progress))

        yield on_progress
