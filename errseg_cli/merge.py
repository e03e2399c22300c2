"""`errseg merge`: runs made elsewhere, joined into one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from errseg_cli.errors import reported
from errseg_cli.options import Debug
from errseg_cli.output import print_result, say, shown
from errseg_cli.report import print_classes


def merge(
    *,
    runs: Annotated[
        list[Path], typer.Argument(metavar="OUT…", help="Output folders of errseg run.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="MERGED", help="Folder for the result.")
    ],
    partial: Annotated[
        bool, typer.Option("--partial", help="Take runs that are not complete, too.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier result in MERGED.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what run.json holds, instead of a table.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Join runs with the same classes into one: areas.csv, classes.csv and run.json.

    Overlays and label maps stay where they are. A picture that stands in several runs is taken
    once; if its areas differ there, nothing is written.

    Example:

        errseg merge part1 part2 part3 -o all
    """
    with reported(debug):
        from errseg.merge import merge_runs

        merged = merge_runs(runs, out, partial=partial, overwrite=overwrite)
        counts = merged.record["counts"]
        assert isinstance(counts, dict)
        say(f"{len(runs)} runs joined, {counts['frames']} pictures, into {shown(str(out))}")
        for warning in merged.warnings:
            say(f"note: {warning}")
        if as_json:
            print_result(json.dumps(merged.record, indent=2))
        else:
            print_classes(merged.areas)
