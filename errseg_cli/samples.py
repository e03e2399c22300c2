"""`errseg samples`: photographs to try the tool on, out of packages that ship some."""

from __future__ import annotations

import importlib.resources
import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from errseg.errors import MissingDependencyError
from errseg_cli.errors import reported
from errseg_cli.options import Debug
from errseg_cli.output import print_result, say, shown

PHOTOGRAPHS = (
    ("scikit-image", "skimage", "data/astronaut.png"),
    ("scikit-image", "skimage", "data/chelsea.png"),
    ("scikit-image", "skimage", "data/coffee.png"),
    ("scikit-image", "skimage", "data/motorcycle_left.png"),
    ("scikit-image", "skimage", "data/rocket.jpg"),
    ("scikit-learn", "sklearn", "datasets/images/china.jpg"),
    ("scikit-learn", "sklearn", "datasets/images/flower.jpg"),
)
"""(distribution, package, file in the package)."""

CLASSES_FILE = "classes.txt"


def samples(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to put them in.")],
    debug: Debug = False,
) -> None:
    """Write sample photographs, and a class list that suits them, into a folder.

    Files that are there already are left as they are. The photographs come from the packages
    scikit-image and scikit-learn: pip install 'errseg[samples]'
    """
    with reported(debug):
        found = [_photograph(*entry) for entry in PHOTOGRAPHS]
        vocabulary = importlib.resources.files("errseg") / "assets" / "samples" / CLASSES_FILE
        for picture in found:
            _write(folder / picture.name, picture.read_bytes())
        _write(folder / CLASSES_FILE, vocabulary.read_bytes())
        say(f"now type: errseg run {folder} --classes {folder / CLASSES_FILE}")


def _photograph(distribution: str, package: str, file: str) -> Path:
    """Where a photograph is; the package itself, slow to import, is not imported."""
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or []) if spec else []:
        path = Path(root) / file
        if path.is_file():
            return path
    raise MissingDependencyError(distribution, "samples", f"the photograph {Path(file).name}")


def _write(path: Path, data: bytes) -> None:
    from errseg.files import write_bytes_atomic

    if path.exists():
        say(f"kept as it is: {shown(str(path))}")
        return
    write_bytes_atomic(path, data)
    print_result(shown(str(path)))
