"""Segmenter: the one class a Python user needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor

from errseg.config import Keep
from errseg.devices import Precision, compile_for, resolve_device, resolve_precision
from errseg.embedding_cache import cache_folder, cached_embeddings
from errseg.errors import ConfigError, InputError
from errseg.inference import best_class, predict
from errseg.model.err_seg import ClassMaps, ErrSeg
from errseg.model.text_encoder import Synonyms
from errseg.records import ImageArray, LabelMap, ScoreMap, Segmentation
from errseg.steady import Steadier
from errseg.vocabulary import Vocabulary, load_vocabulary, vocabulary_from_names
from errseg.weights import load_named_model
from errseg.windows import WindowSize, segment_in_windows, window_for

SMALLEST_WINDOW = 64
WINDOWS_ON_CUDA = 4
"""Windows of one picture that go through the model together there."""

Classes = str | Sequence[str | Sequence[str]] | Vocabulary


class Segmenter:
    """Labels every pixel of a picture with one of your classes.

    segmenter = Segmenter(classes=["cat", ["sofa", "couch"], "floor"])
    result = segmenter(image)            # (H, W, 3) uint8 RGB
    result.labels, result.scores, result.areas()
    """

    def __init__(
        self,
        model: str | ErrSeg | None = None,
        *,
        classes: Classes,
        weights: str | Path | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        keep: Keep = None,
        threshold: float = 0.0,
        synonyms: Synonyms = "mean",
        window: WindowSize = "auto",
        compiled: bool = False,
    ) -> None:
        """
        Args:
            model: a name that `errseg models` lists, or a model already built; None takes what
                `weights` holds, or errseg-mini.
            classes: a built-in vocabulary's name, a path, names on one line, a list of names (each
                a name or a sequence of synonyms), or a `Vocabulary`.
            weights: checkpoint file, of ours or as published; None takes the model's own, which
                for errseg-base and errseg-large is downloaded the first time. Not with a model
                already built.
            device: "auto", "cpu", "cuda", "cuda:N" or "mps".
            precision: "auto", "fp32", "bf16" or "fp16".
            keep: CRM's budget K; "published", by the number of classes; "auto", at most that, of
                each picture the classes that enough of its pixels vote for; None, the model's own
                of these two ("auto" for errseg-mini).
            threshold: pixels whose best probability (0..1) is lower stay unlabelled.
            synonyms: "mean" averages a class's synonyms, "first" takes the first one.
            window: pictures longer than so many pixels are cut into overlapping windows of this
                side; "auto" cuts what one pass cannot do justice to, None cuts nothing.
            compiled: put the image tower through torch.compile: faster after a minute or so, for
                long runs. The model given or loaded stays compiled.

        Raises:
            VocabularyError, WeightsError, DeviceError, ConfigError: by name.
        """
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        if not 0.0 <= threshold <= 1.0:
            raise ConfigError(f"threshold is {threshold}; it must lie between 0 and 1.")
        if not (keep in (None, "auto", "published") or (isinstance(keep, int) and keep >= 1)):
            raise ConfigError(
                f"keep is {keep!r}; it must be None, 'auto', 'published' or a whole number, at "
                "least 1."
            )
        if synonyms not in ("mean", "first"):
            raise ConfigError(f"synonyms is {synonyms!r}; it must be 'mean' or 'first'.")
        if not _is_window(window):
            raise ConfigError(
                f"window is {window!r}; it must be 'auto', None or a whole number of pixels, "
                f"at least {SMALLEST_WINDOW}."
            )
        self.keep: Keep = keep
        self.threshold, self.synonyms = threshold, synonyms
        self.window: WindowSize = window
        if isinstance(model, ErrSeg) and weights is not None:
            raise ConfigError("weights came with a model already built; give its name instead.")
        loaded = model if isinstance(model, ErrSeg) else load_named_model(model, weights)
        self.model = loaded.to(self.device).eval()
        if compiled:
            compile_for(self.device, self.model.image_encoder)
        self.set_classes(classes)

    def set_classes(self, classes: Classes) -> None:
        """Change the vocabulary; the model stays loaded."""
        self.vocabulary = _as_vocabulary(classes)
        self.text = self._embed(self.vocabulary)

    @torch.inference_mode()
    def _embed(self, vocabulary: Vocabulary) -> Tensor:
        encoder, prompt = self.model.text_encoder, self.model.config.prompt
        embeddings = cached_embeddings(
            encoder, vocabulary.synonyms, prompt, self.synonyms, cache_folder()
        )
        return embeddings.to(self.device)

    @overload
    def __call__(self, images: ImageArray, *, steadier: Steadier | None = None) -> Segmentation: ...
    @overload
    def __call__(
        self, images: Sequence[ImageArray], *, steadier: Steadier | None = None
    ) -> list[Segmentation]: ...
    def __call__(
        self, images: ImageArray | Sequence[ImageArray], *, steadier: Steadier | None = None
    ) -> Segmentation | list[Segmentation]:
        """Segment one picture, or several in one batch.

        Args:
            images: (H, W, 3) uint8 RGB 0..255, or a sequence of them; sizes may differ.
            steadier: what is carried from frame to frame, where the pictures are consecutive frames
                of one video; it is carried on. Frames are never cut into windows.

        Returns:
            One `Segmentation` per picture, of exactly the picture's size; alone for one picture.

        Raises:
            InputError: a picture has another shape or dtype.
        """
        if not isinstance(images, (np.ndarray, Sequence)):
            _check_image(images)
        single = isinstance(images, np.ndarray) and images.ndim != 4
        batch: list[ImageArray] = [images] if single else list(images)  # type: ignore[list-item]
        for image in batch:
            _check_image(image)
        if not batch:
            return []
        names = self.vocabulary.names
        results = self._segment(batch, steadier)
        found = [Segmentation(labels, scores, names) for labels, scores in results]
        return found[0] if single else found

    @torch.inference_mode()
    def _segment(
        self, images: Sequence[ImageArray], steadier: Steadier | None
    ) -> list[tuple[LabelMap, ScoreMap]]:
        sides = [None if steadier else window_for(image.shape[:2], self.window) for image in images]
        whole = [image for image, side in zip(images, sides, strict=True) if side is None]
        in_one_pass = iter(
            best_class(maps.probabilities, maps.classes, image.shape[:2], self.threshold)
            for maps, image in zip(self._predict(whole, steadier), whole, strict=True)
        )
        return [
            next(in_one_pass)
            if side is None
            else segment_in_windows(
                self._predict,
                image,
                side,
                batch_size=WINDOWS_ON_CUDA if self.device.type == "cuda" else 1,
                threshold=self.threshold,
            )
            for image, side in zip(images, sides, strict=True)
        ]

    def _predict(
        self, images: Sequence[ImageArray], steadier: Steadier | None = None
    ) -> list[ClassMaps]:
        if not images:
            return []
        try:
            return predict(
                self.model,
                images,
                self.text,
                keep=self.keep,
                precision=self.precision,
                steadier=steadier,
            )
        except torch.OutOfMemoryError:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # smaller batches are tried next
            raise


def _is_window(window: object) -> bool:
    if isinstance(window, int):
        return window >= SMALLEST_WINDOW
    return window is None or window == "auto"


def _as_vocabulary(classes: Classes) -> Vocabulary:
    if isinstance(classes, Vocabulary):
        return classes
    if isinstance(classes, str):
        return load_vocabulary(classes)
    return vocabulary_from_names(classes)


def _check_image(image: object) -> None:
    rule = "a picture must be an array (H, W, 3), uint8, RGB"
    if not isinstance(image, np.ndarray):
        raise InputError(f"{type(image).__name__} came; {rule}.")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise InputError(f"an array {image.shape} of {image.dtype} came; {rule}.")
