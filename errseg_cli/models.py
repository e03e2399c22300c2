"""`errseg models`: which models there are, and where their weights are. Imports no torch."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from errseg.catalogue import CATALOGUE, EMBEDDED, PUBLISHED_REPOSITORY, embedded_path
from errseg_cli.errors import reported
from errseg_cli.options import Debug
from errseg_cli.output import print_result, print_table, say


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """List the models: size, where their weights are, and whether they are present."""
    with reported(debug):
        entries = [
            {
                "model": entry.name,
                "parameters": entry.parameters,
                "present": entry.name == EMBEDDED and embedded_path().is_file(),
                "weights": str(embedded_path())
                if entry.name == EMBEDDED
                else f"{PUBLISHED_REPOSITORY} on Hugging Face",
            }
            for entry in CATALOGUE
        ]
        if as_json:
            print_result(json.dumps(entries, indent=2))
            return
        rows = [
            (entry["model"], entry["parameters"], _yes_no(entry["present"]), entry["weights"])
            for entry in entries
        ]
        print_table(("model", "parameters", "present", "weights"), rows)
        say("To use a model that is not present, download its checkpoint and give --weights FILE.")


def _yes_no(value: object) -> str:
    return "yes" if value else "no"
