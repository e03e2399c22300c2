"""`errseg weights`: checkpoints downloaded, and converted to a format of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errseg.catalogue import PUBLISHED_NAMES, find_weights
from errseg.errors import ConfigError, UsageError
from errseg_cli.downloading import downloaded
from errseg_cli.errors import reported
from errseg_cli.options import Debug
from errseg_cli.output import print_result, print_table, shown

weights = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@weights.callback()
def _weights() -> None:
    """Download the published checkpoints, or convert them."""


@weights.command()
def fetch(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"{' or '.join(PUBLISHED_NAMES)}.")],
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Say nothing on standard error but errors.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Download a model's checkpoint, unless it is there, and print where it is.

    It comes from its authors on Hugging Face, and is kept in the folder that HF_HOME names. After
    an interruption the same command goes on where it was.

    Example:

        errseg weights fetch errseg-base
    """
    with reported(debug):
        if model not in PUBLISHED_NAMES:
            raise ConfigError(
                f"{model!r} is not published; there are {' and '.join(PUBLISHED_NAMES)}."
            )
        path = find_weights(model) or downloaded(model, quiet=quiet)
        print_result(shown(str(path)))


@weights.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A checkpoint as published (.pth).")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Ends in .safetensors.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    debug: Debug = False,
) -> None:
    """Write a checkpoint as safetensors, with the model's configuration inside.

    It holds no training state, runs no code when it is read, and gives the same results, bit for
    bit. Prints what was recognised.

    Example:

        errseg weights convert model_final.pth errseg-base.safetensors
    """
    with reported(debug):
        if target.suffix != ".safetensors":
            raise UsageError(f"OUT is {str(target)!r}; its name must end in .safetensors.")
        if target.exists() and not overwrite:
            raise UsageError(f"{target} is there already; name another file, or add --overwrite.")
        # After the checks: torch takes seconds to import.
        from errseg.weights import load_weights, save_model

        model = load_weights(source)
        save_model(model, target)
        facts = (model.config.name, len(model.state_dict()), target.stat().st_size, target)
        print_table(("model", "tensors", "bytes", "file"), [facts])
