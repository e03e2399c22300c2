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
    """What to hand to `pipeline.run` as `on_progress`.

    Args:
        total: pictures of the run.
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
    """A line at 1, 2, 5, 10, 20, 50, ... pictures, and whenever there was none for long."""
    last = 0.0

    def on_progress(progress: Progress) -> None:
        nonlocal last
        count = progress.done + progress.failed
        silence = progress.seconds - last
        if 0 < count < progress.total and (is_round(count) or silence >= LONGEST_SILENCE_S):
            last = progress.seconds
            write(f"errseg: {count}/{progress.total} pictures, {pace(progress)}")

    return on_progress


def is_round(count: int) -> bool:
    """Whether a count is 1, 2 or 5 times a power of ten."""
    return str(count).rstrip("0") in ("1", "2", "5")


def pace(progress: Progress) -> str:
    """Pictures per second and time left, in words."""
    count = progress.done + progress.failed
    if count == 0 or progress.seconds <= 0:
        return "starting"
    rate = count / progress.seconds
    return f"{rate:.2f} pictures/s, {clock((progress.total - count) / rate)} left"


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
            bar.update(task, completed=progress.done + progress.failed, pace=pace(progress))

        yield on_progress
