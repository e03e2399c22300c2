"""Options that several commands have, written once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from errseg.errors import UsageError

if TYPE_CHECKING:
    from errseg.config import Keep as Budget

SMALLEST_WINDOW = 64

Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="`errseg models` lists them; one that is not there yet is downloaded.",
        show_default="what FILE of --weights holds, or errseg-mini",
    ),
]
Weights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Checkpoint to use for the model.")
]
Device = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="auto, cpu, cuda, cuda:N or mps; auto takes a GPU if there is one."
    ),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="Of the model's arithmetic.")
]
Keep = Annotated[
    str,
    typer.Option(
        metavar="K|auto|published",
        help="Classes kept per picture: fewer is faster. published goes by the number of classes;"
        " auto keeps at most that many, those that enough pixels may show.",
        show_default="auto for errseg-mini, else published",
    ),
]
Synonyms = Annotated[
    Literal["mean", "first"],
    typer.Option(help="Look for the mean of a class's synonyms, or for the first one."),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile", help="Compile the model first: a minute or so, then faster. For long runs."
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]


def whole_number(name: str, text: str, *words: str, least: int = 1) -> int | str:
    """The number, or one of the words.

    Raises:
        UsageError: it is neither.
    """
    if text in words:
        return text
    if re.fullmatch(r"\d{1,12}", text) and int(text) >= least:
        return int(text)
    shown = ", ".join(word for word in words if word != "default")
    raise UsageError(
        f"{name} is {text!r}; it must be {shown} or a whole number of at least {least}."
    )


def parse_keep(text: str) -> Budget:
    """What `--keep K|auto|published` says; None where it says nothing.

    Raises:
        UsageError: none of these.
    """
    keep = whole_number("--keep", text, "auto", "published", "default")
    return None if keep == "default" else keep  # type: ignore[return-value]


def parse_window(text: str) -> int | Literal["auto"] | None:
    """What `--window PX|auto|off` says: pixels, "auto", or None for off.

    Raises:
        UsageError: none of these.
    """
    window = whole_number("--window", text, "auto", "off", least=SMALLEST_WINDOW)
    return None if window == "off" else "auto" if window == "auto" else int(window)
