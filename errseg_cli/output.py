"""Standard output for results, standard error for everything else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

from errseg.errors import WriteError


def print_result(text: str) -> None:
    """Write a result and a line end to standard output.

    A reader that has gone away (`errseg classes ... | head`) is no error: the rest is dropped.

    Raises:
        WriteError: standard output cannot be written (a full disk).
    """
    stream = sys.stdout
    if stream is None:  # closed by the caller: errseg ... >&-
        return
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
    except BrokenPipeError:
        # Python flushes once more at its end, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise WriteError(f"cannot write to standard output ({error.strerror}).") from error


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table: in columns for a person, else a line per row with tabs between its cells."""
    if not to_terminal():
        print_result("\n".join("\t".join(map(str, row)) for row in (header, *rows)))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        # As Text: brackets in a name are no markup. A cell may come with its own style.
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    Console().print(table)


def say(text: str) -> None:
    """Write a message and a line end to standard error; where nobody can read it, go on."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        sys.stderr = None


def shown(name: str) -> str:
    """A file name that stays on its line, whatever characters it holds."""
    return name if name.isprintable() else repr(name)


def to_terminal() -> bool:
    """Whether a person reads standard output."""
    return sys.stdout is not None and sys.stdout.isatty()


def errors_to_terminal() -> bool:
    """Whether a person reads standard error."""
    return sys.stderr is not None and sys.stderr.isatty()
