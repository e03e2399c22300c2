"""What `errseg eval` prints and writes: figures per data set and per class."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from typing import TYPE_CHECKING, Any

from errseg_cli.output import print_result, print_table

if TYPE_CHECKING:
    from errseg.datasets import LabelledFolder
    from errseg.evaluation.folder import Evaluation
    from errseg.segmenter import Segmenter


def class_table(done: dict[str, Evaluation]) -> str:
    """A CSV of all classes of all sets; no figure where a class has no pixel."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["set", "id", "class", "pixels", "iou", "accuracy"])
    for name, evaluation in done.items():
        for row in _classes(evaluation):
            figures = ("" if row[key] is None else row[key] for key in ("iou", "accuracy"))
            writer.writerow([name, row["id"], row["name"], row["pixels"], *figures])
    return text.getvalue()


def print_figures(
    done: dict[str, Evaluation],
    sets: dict[str, LabelledFolder],
    segmenter: Segmenter,
    *,
    as_json: bool,
) -> None:
    """Figures of the sets, then of the classes that are present, the largest first; or JSON."""
    if as_json:
        reports = [_report(name, done[name], sets[name], segmenter) for name in done]
        facts = {"model": segmenter.model.config.name, "sets": reports}
        print_result(json.dumps(facts, ensure_ascii=False, indent=2))
        return
    header = ("set", "pictures", "mIoU", "fwIoU", "pixel acc.", "mean acc.")
    print_table(header, [(name, *_row(evaluation)) for name, evaluation in done.items()])
    for name, evaluation in done.items():
        present = [row for row in _classes(evaluation) if row["pixels"]]
        present.sort(key=lambda row: -row["pixels"])
        print_result("")
        print_table(
            (name, "pixels", "IoU", "accuracy"),
            [
                (row["name"], row["pixels"], percent(row["iou"]), percent(row["accuracy"]))
                for row in present
            ],
        )


def _row(evaluation: Evaluation) -> tuple[str, ...]:
    found = evaluation.metrics
    figures = (
        found.mean_iou,
        found.frequency_weighted_iou,
        found.pixel_accuracy,
        found.mean_accuracy,
    )
    pictures = evaluation.done - len(evaluation.failures)
    return (str(pictures), *(percent(figure) for figure in figures))


def _report(
    name: str, evaluation: Evaluation, labelled: LabelledFolder, segmenter: Segmenter
) -> dict[str, Any]:
    found = evaluation.metrics
    classes = len(labelled.vocabulary)
    calibration = evaluation.calibration
    return {
        "set": name,
        "folder": str(labelled.folder),
        "pictures": evaluation.done - len(evaluation.failures),
        "failed": [dataclasses.asdict(failure) for failure in evaluation.failures],
        "class_count": classes,
        "keep": segmenter.model.config.kept(classes, segmenter.keep),
        "mean_iou": _number(found.mean_iou),
        "frequency_weighted_iou": _number(found.frequency_weighted_iou),
        "pixel_accuracy": _number(found.pixel_accuracy),
        "mean_accuracy": _number(found.mean_accuracy),
        "seconds": round(evaluation.seconds, 3),
        "classes": _classes(evaluation),
        "calibration": [
            {
                "from": index / len(calibration.pixels),
                "to": (index + 1) / len(calibration.pixels),
                "pixels": int(pixels),
                "right": int(right) / int(pixels) if pixels else None,
            }
            for index, (pixels, right) in enumerate(
                zip(calibration.pixels, calibration.right, strict=True)
            )
        ],
    }


def _classes(evaluation: Evaluation) -> list[dict[str, Any]]:
    found = evaluation.metrics
    pixels = evaluation.confusion.counts.sum(axis=1)
    return [
        {
            "id": index,
            "name": name,
            "pixels": int(pixels[index]),
            "iou": _number(float(found.iou[index])),
            "accuracy": _number(float(found.accuracy[index])),
        }
        for index, name in enumerate(evaluation.names)
    ]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def percent(value: float | None) -> str:
    """A share in percent; a dash where nothing was measured."""
    return "-" if value is None or math.isnan(value) else f"{value * 100:.1f}"
