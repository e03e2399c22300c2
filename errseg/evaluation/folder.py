"""Measure a model on a labelled data set: a stream of pairs in, counts out."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from errseg.ahead import ReadAhead
from errseg.datasets import LabelledFolder, Pair, read_pair
from errseg.errors import ConfigError, InputError
from errseg.evaluation.metrics import Calibration, ConfusionMatrix, Metrics, metrics
from errseg.files import write_bytes_atomic
from errseg.model.err_seg import ErrSeg
from errseg.records import UNLABELLED, Failure, ImageArray, Segmentation
from errseg.segmenter import Segmenter

AHEAD_PAIRS, AHEAD_BYTES = 8, 256 << 20
"""Pairs read ahead, at most."""

SAVE_EVERY_S = 30.0
"""How much work an evaluation that is killed loses, at most."""

Segment = Callable[[Sequence[ImageArray]], list[Segmentation]]


@dataclass
class Evaluation:
    """What has been counted so far on one data set.

    Attributes:
        identity: what the counts depend on; a saved evaluation goes on only under the same.
        names: the C measured classes.
        done: pairs looked at, failures included.
        failures: pairs that could not be read, by the picture's path.
        seconds: spent so far, reading included.
    """

    identity: str
    names: tuple[str, ...]
    confusion: ConfusionMatrix
    calibration: Calibration = field(default_factory=Calibration)
    done: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def metrics(self) -> Metrics:
        return metrics(self.confusion)


def new_evaluation(folder: LabelledFolder, identity: str = "") -> Evaluation:
    """An evaluation of which nothing is done yet."""
    return Evaluation(identity, folder.measured_names, ConfusionMatrix(len(folder.measured_names)))


def chosen_pairs(folder: LabelledFolder, limit: int = 0) -> tuple[Pair, ...]:
    """`limit` evenly spaced pairs of the set; 0 = all."""
    pairs = folder.pairs
    if not 0 < limit < len(pairs):
        return pairs
    return tuple(pairs[i * len(pairs) // limit] for i in range(limit))


def evaluate(
    segment: Segment,
    folder: LabelledFolder,
    evaluation: Evaluation,
    *,
    limit: int = 0,
    state: Path | None = None,
    progress: Callable[[Evaluation], None] = lambda evaluation: None,
) -> Evaluation:
    """Segment the pictures and count; goes on where `evaluation` stands.

    One pair is held at a time, besides those read ahead: memory does not grow with the set.

    Args:
        segment: pictures in, `Segmentation`s out, of the folder's vocabulary.
        evaluation: counted into.
        limit: evenly spaced pictures to measure on; 0 = all.
        state: saved here now and then, at the end, and when interrupted.
        progress: called after every pair.

    Returns:
        `evaluation`. Pairs that cannot be read are among its failures, and count nowhere.

    Raises:
        WriteError: `state` cannot be written.
    """
    pairs = chosen_pairs(folder, limit)[evaluation.done :]
    measured_as = None if folder.measured_as is None else np.array(folder.measured_as)
    ahead = ReadAhead(_read(folder, pairs), _bytes_of, max_items=AHEAD_PAIRS, max_bytes=AHEAD_BYTES)
    begun = last_saved = time.monotonic()
    earlier = evaluation.seconds
    try:
        for item in ahead:
            if isinstance(item, Failure):
                evaluation.failures.append(item)
            else:
                image, truth = item
                found = segment([image])[0]
                predicted = found.labels.astype(np.int64)
                predicted[found.labels == UNLABELLED] = -1
                if measured_as is not None:
                    predicted = np.where(predicted < 0, -1, measured_as[predicted])
                evaluation.confusion.update(truth, predicted)
                evaluation.calibration.update(truth, predicted, found.scores)
            evaluation.done += 1
            now = time.monotonic()
            evaluation.seconds = earlier + now - begun
            if state is not None and now - last_saved >= SAVE_EVERY_S:
                save_evaluation(evaluation, state)
                last_saved = now
            progress(evaluation)
    finally:
        ahead.close()
        if state is not None:
            save_evaluation(evaluation, state)
    return evaluation


def _read(
    folder: LabelledFolder, pairs: Sequence[Pair]
) -> Generator[tuple[ImageArray, NDArray[np.int64]] | Failure, None, None]:
    for pair in pairs:
        try:
            yield read_pair(folder, pair)
        except InputError as error:
            yield Failure(str(pair[0]), str(error))


def _bytes_of(item: tuple[ImageArray, NDArray[np.int64]] | Failure) -> int:
    return 0 if isinstance(item, Failure) else item[0].nbytes + item[1].nbytes


def save_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write the state to `path`, whole or not at all."""
    facts = {
        "identity": evaluation.identity,
        "names": evaluation.names,
        "done": evaluation.done,
        "seconds": evaluation.seconds,
        "failures": [[failure.source, failure.message] for failure in evaluation.failures],
    }
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        facts=np.array(json.dumps(facts)),
        confusion=evaluation.confusion.counts,
        pixels=evaluation.calibration.pixels,
        right=evaluation.calibration.right,
    )
    write_bytes_atomic(path, buffer.getvalue())


def load_evaluation(folder: LabelledFolder, identity: str, path: Path) -> Evaluation:
    """The evaluation saved at `path`, or a new one if there is none.

    Raises:
        ConfigError: the file is damaged, or of another model, data set or setting.
    """
    evaluation = new_evaluation(folder, identity)
    if not path.exists():
        return evaluation
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as saved:
            facts = json.loads(str(saved["facts"]))
            same = facts["identity"] == identity
            if same:
                evaluation.confusion.counts[:] = saved["confusion"]
                evaluation.calibration.pixels[:] = saved["pixels"]
                evaluation.calibration.right[:] = saved["right"]
                evaluation.done, evaluation.seconds = int(facts["done"]), float(facts["seconds"])
                evaluation.failures = [Failure(*failure) for failure in facts["failures"]]
    except Exception as error:  # a damaged file raises whatever its bytes suggest
        raise ConfigError(
            f"{path} is no whole saved evaluation; remove it to start anew."
        ) from error
    if not same:
        raise ConfigError(
            f"{path} belongs to an evaluation of another model, data set or setting; "
            "name another file, or remove it."
        )
    return evaluation


def segmenter_of(model: ErrSeg, folder: LabelledFolder) -> Segmenter:
    """A model where it is, in float32, with the classes of a data set; it is set to `eval`."""
    device = str(model.mean.device)
    return Segmenter(model, classes=folder.vocabulary, device=device, precision="fp32")


def evaluate_folder(model: ErrSeg, folder: LabelledFolder, limit: int = 0) -> Metrics:
    """Figures of a model on a data set, while it is being trained.

    Args:
        limit: evenly spaced pictures to measure on; 0 = all.

    Raises:
        InputError: a pair cannot be read.
    """
    segmenter = segmenter_of(model, folder)
    evaluation = evaluate(segmenter, folder, new_evaluation(folder), limit=limit)
    if evaluation.failures:
        raise InputError(evaluation.failures[0].message)
    return evaluation.metrics
