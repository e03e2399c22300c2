"""The one place where errors become messages and exit codes.

0    all done
1    some inputs failed, or results could not be written
2    wrong usage: what was asked cannot be done as asked, and nothing was written
130  interrupted
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator

import typer

from errseg.errors import ErrsegError, InputError, WriteError
from errseg_cli.output import say

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


@contextlib.contextmanager
def reported(debug: bool = False) -> Iterator[None]:
    """Turn an error of the block into one message and an exit code.

    Args:
        debug: show tracebacks as well, also those of errors that the library survives.

    Raises:
        typer.Exit: with the code, after any error.
    """
    with _library_log_shown() if debug else contextlib.nullcontext():
        try:
            yield
        except KeyboardInterrupt:
            say("errseg: interrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except ErrsegError as error:
            _show(error, str(error), debug)
            code = EXIT_FAILED if isinstance(error, InputError | WriteError) else EXIT_USAGE
            raise typer.Exit(code) from error
        except typer.Exit:
            raise
        except Exception as error:
            words = " ".join(str(error).split())
            text = f"unexpected {type(error).__name__} ({words}); --debug shows where it comes from"
            _show(error, text, debug)
            raise typer.Exit(EXIT_FAILED) from error


def _show(error: Exception, text: str, debug: bool) -> None:
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    say(f"errseg: {text}")


@contextlib.contextmanager
def _library_log_shown() -> Iterator[None]:
    logger, handler = logging.getLogger("errseg"), logging.StreamHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
