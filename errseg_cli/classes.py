"""`errseg classes`: what a vocabulary means to the tool, or which ones come with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from errseg_cli.errors import reported
from errseg_cli.options import Debug
from errseg_cli.output import print_result, print_table, to_terminal

if TYPE_CHECKING:
    from errseg.vocabulary import Vocabulary


def classes(
    vocabulary: Annotated[
        str | None,
        typer.Argument(
            metavar="[VOCAB]",
            help="Names with commas between them, a text file, or a built-in list.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Show the classes of a vocabulary with their colours, or list the built-in ones.

    In a vocabulary file every line is one class: synonyms after commas, a colour as #rrggbb at the
    end, the name to show before an equals sign.

    Example:

        errseg classes "sky, sea, sand"
    """
    with reported(debug):
        from errseg.vocabulary import load_vocabulary

        if vocabulary is None:
            _show_builtin(as_json)
        else:
            _show(load_vocabulary(vocabulary), as_json)


def _show_builtin(as_json: bool) -> None:
    from errseg.vocabulary import builtin_vocabularies, load_vocabulary

    sizes = {name: len(load_vocabulary(name)) for name in builtin_vocabularies()}
    if as_json:
        entries = [{"vocabulary": name, "classes": size} for name, size in sizes.items()]
        print_result(json.dumps(entries, indent=2))
    else:
        print_table(("vocabulary", "classes"), sizes.items())


def _show(vocabulary: Vocabulary, as_json: bool) -> None:
    if as_json:
        print_result(json.dumps(_record(vocabulary), indent=2))
        return
    rows = [
        (entry.id, entry.name, "#" + bytes(entry.colour).hex(), ", ".join(entry.synonyms))
        for entry in vocabulary.classes
    ]
    header = ("id", "name", "colour", "synonyms")
    if to_terminal():
        from rich.text import Text

        swatches = [Text("    ", f"on {row[2]}") for row in rows]
        pairs = zip(swatches, rows, strict=True)
        print_table(("", *header), [(swatch, *row) for swatch, row in pairs])
    else:
        print_table(header, rows)


def _record(vocabulary: Vocabulary) -> dict[str, object]:
    classes = [
        {
            "id": entry.id,
            "name": entry.name,
            "colour": "#" + bytes(entry.colour).hex(),
            "synonyms": entry.synonyms,
        }
        for entry in vocabulary.classes
    ]
    return {"source": vocabulary.source, "sha256": vocabulary.hash, "classes": classes}
