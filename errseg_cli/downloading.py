"""A download of weights on standard error: what is fetched, then a bar or sparse lines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from errseg_cli.output import errors_to_terminal, say

if TYPE_CHECKING:
    from errseg.download import OnReceived, RemoteFile

LINES = 10
"""In a log file, from nothing to all."""


def downloaded(name: str | None, *, quiet: bool) -> Path:
    """The checkpoint of a published model, downloaded if it is not there.

    Args:
        name: as for `errseg.download.download`; `find_weights` finds a file for None.
        quiet: say nothing but errors.
    """
    from errseg.download import download

    assert name is not None
    with _shown(quiet) as on_received:
        return download(name, on_received)


@contextlib.contextmanager
def _shown(quiet: bool) -> Iterator[OnReceived | None]:
    if quiet:
        yield None
    elif errors_to_terminal():
        with _bar() as on_received:
            yield on_received
    else:
        yield sparse_lines()


def sparse_lines(write: Callable[[str], None] = say) -> OnReceived:
    """A line that says what is downloaded, then one at every tenth of it."""
    last: int | None = None

    def on_received(remote: RemoteFile, received: int) -> None:
        nonlocal last
        part = received * LINES // remote.size
        if last is None:
            write(headline(remote))
        elif part > last:
            write(f"errseg: {received / 1e6:.0f} of {remote.size / 1e6:.0f} MB")
        last = part

    return on_received


def headline(remote: RemoteFile) -> str:
    """What is downloaded, from where, how large it is and under which licence."""
    licence = remote.licence or "not given"
    return f"errseg: downloading {remote.url} ({remote.size / 1e6:.0f} MB, licence: {licence})"


@contextlib.contextmanager
def _bar() -> Iterator[OnReceived]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeLeft())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:

        def on_received(remote: RemoteFile, received: int) -> None:
            if not bar.tasks:
                console.print(headline(remote), markup=False, highlight=False, soft_wrap=True)
                bar.add_task("", total=remote.size, completed=received)
            bar.update(bar.tasks[0].id, completed=received)

        yield on_received
