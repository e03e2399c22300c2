"""Running the command in tests, and looking at what it left."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner, Result

from errseg_cli.main import app


class Runner:
    """`errseg run ... --weights <tiny>` in this process."""

    def __init__(self, weights: Path) -> None:
        self.weights = weights

    def __call__(
        self, *arguments: object, classes: str = "sky, sea, sand", stdin: str = ""
    ) -> Result:
        line = ["run", *map(str, arguments), "--classes", classes, "--device", "cpu"]
        return CliRunner().invoke(app, [*line, "--weights", str(self.weights)], input=stdin)


def picture(path: Path, size: tuple[int, int] = (40, 60), seed: int = 0, **options: object) -> Path:
    """A noisy picture of (H, W) `size`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize(size[::-1]).save(path, **options)  # type: ignore[arg-type]
    return path


def files_in(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def labels_of(path: Path) -> np.ndarray:  # type: ignore[type-arg]
    with Image.open(path) as image:
        return np.asarray(image)


def areas_of(out: Path) -> dict[str, dict[int, int]]:
    """Pixels by source and class id, as areas.csv has them."""
    found: dict[str, dict[int, int]] = {}
    with (out / "areas.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["source"], {})[int(row["class_id"])] = int(row["pixels"])
    return found


def histograms_of(out: Path, sources: Sequence[str]) -> dict[str, dict[int, int]]:
    """Pixels by source and class id, counted in the label maps."""
    found = {}
    for source in sources:
        labels = labels_of(out / "labels" / Path(source).with_suffix(".png"))
        unlabelled = np.iinfo(labels.dtype).max
        ids, counts = np.unique(labels, return_counts=True)
        pairs = zip(ids.tolist(), counts.tolist(), strict=True)
        found[source] = {-1 if i == unlabelled else i: count for i, count in pairs}
    return found


def record_of(out: Path) -> dict[str, object]:
    record: dict[str, object] = json.loads((out / "run.json").read_text("utf-8"))
    return record
