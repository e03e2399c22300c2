"""`errseg models`: which models there are, and where their weights are. Imports no torch."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from errseg.catalogue import CATALOGUE, PUBLISHED_NAMES, PUBLISHED_REPOSITORY, own_path
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
                "present": own_path(entry.name).is_file(),
                "weights": _place(entry.name),
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
        say(
            "A model that is not present is downloaded when --model names it, or by `errseg weights"
        )
        say("fetch MODEL`. Without a network, give its checkpoint: --weights FILE.")


def _place(name: str) -> str:
    path = own_path(name)
    if name in PUBLISHED_NAMES and not path.is_file():
        return f"{PUBLISHED_REPOSITORY} on Hugging Face"
    return str(path)


def _yes_no(value: object) -> str:
    return "yes" if value else "no"
