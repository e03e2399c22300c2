"""The command `errseg` and its subcommands. Imports no torch, no numpy: help answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

import errseg
from errseg.process import prepare_process
from errseg_cli.bench import bench
from errseg_cli.classes import classes
from errseg_cli.evaluate import evaluate
from errseg_cli.merge import merge
from errseg_cli.models import models
from errseg_cli.output import print_result
from errseg_cli.run import run
from errseg_cli.samples import samples
from errseg_cli.train import train
from errseg_cli.weights import weights

# Plain help: it needs no rich, and brackets in it are nothing but brackets.
app = typer.Typer(
    name="errseg",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (run, merge, classes, models, samples, train, bench):
    app.command()(command)
app.command("eval")(evaluate)
app.add_typer(weights, name="weights")


def _show_version(wanted: bool) -> None:
    if wanted:
        print_result(f"errseg {errseg.__version__}")
        raise typer.Exit


@app.callback()
def _errseg(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Label every pixel of your pictures with your own words.

    Start with: errseg run photo.jpg --classes "sky, tree, person"
    """


def main() -> None:
    """Entry point of the command."""
    prepare_process()
    app()
