"""The one training loop: recipe in, checkpoints, metrics and final weights out."""

from __future__ import annotations

import copy
import csv
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from errseg.datasets import LabelledFolder, open_folder
from errseg.errors import ConfigError
from errseg.evaluation.folder import evaluate_folder
from errseg.files import atomic_write, write_bytes_atomic
from errseg.model.err_seg import ErrSeg
from errseg.model.image_encoder import EfficientNetLiteEncoder
from errseg.model.text_encoder import MiniLMTextEncoder, embed_classes
from errseg.training.data import TrainingBatch, TrainingBatches
from errseg.training.loss import (
    classes_present,
    cost_loss,
    lovasz_loss,
    segmentation_loss,
    softmax_loss,
)
from errseg.training.mini_init import imagenet_names, init_mini, set_centre
from errseg.training.pseudo_labels import make_pseudo_labels
from errseg.training.recipe import DataSource, Recipe
from errseg.vocabulary import load_vocabulary
from errseg.weights import load_model, save_model

CHECKPOINT_NAME = "checkpoint.pt"
METRICS_NAME = "metrics.csv"
WEIGHTS_NAME = "model.safetensors"
DISTRACTOR_LIMIT = 0.4
"""A name is no distractor for a set that has a class with a more similar embedding."""

Report = Callable[[Mapping[str, float]], None]


def train(
    recipe: Recipe,
    out: Path,
    *,
    device: torch.device,
    workers: int = 1,
    report: Report = lambda figures: None,
) -> Path:
    """Train, continuing from `out`'s checkpoint if it holds one.

    Args:
        recipe: the whole run; the same recipe and seed give the same losses.
        out: gets `checkpoint.pt`, `metrics.csv` and, at the end, `model.safetensors`.
        workers: processes that read and augment pictures.
        report: called after every step with its figures, and with the figures of a validation.

    Returns:
        The final weights (the moving average, where the recipe keeps one).
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    run = _TrainingRun(recipe, out, device)
    run.resume()
    batches = DataLoader(
        TrainingBatches(recipe, run.folders, run.synonyms, run.candidates),
        batch_size=None,
        sampler=range(run.step, recipe.steps),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    for batch in batches:
        figures = run.advance(batch)
        report(figures)
        last = run.step == recipe.steps
        if run.step % recipe.validate_every == 0 or last:
            measured = run.validate(0 if last else recipe.validation_limit)
            figures = {**figures, **measured}
            report({"step": run.step, **measured})
        run.log(figures)
        if run.step % recipe.checkpoint_every == 0 or last:
            run.save()
    save_model(run.averaged, out / WEIGHTS_NAME, compact=True)
    return out / WEIGHTS_NAME


class _TrainingRun:
    """State of one run: model, average, optimiser, step."""

    def __init__(self, recipe: Recipe, out: Path, device: torch.device) -> None:
        self.recipe, self.out, self.device = recipe, out, device
        self.step = 0
        self.folders = [_open(source, out) for source in recipe.data]
        self.synonyms = _synonyms(recipe, self.folders)
        self.names = sorted({name for own in self.synonyms for group in own for name in group})
        self.model = _initial_model(recipe, self.names).to(device)
        # the backward pass of depth-wise convs takes two thirds of the time in this layout
        self.model.image_encoder.to(memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.model)
        with torch.no_grad():
            self.name_embeddings = embed_classes(
                self.model.text_encoder, [[name] for name in self.names], recipe.model.prompt
            ).to(device)
        row = {name: index for index, name in enumerate(self.names)}
        self.own_embeddings = [
            self.name_embeddings[[row[name] for group in own for name in group]]
            for own in self.synonyms
        ]
        self.candidates = [self._candidates(index) for index in range(len(self.folders))]
        self.optimiser = torch.optim.AdamW(_parameter_groups(self.model, recipe))
        self.peaks = [group["lr"] for group in self.optimiser.param_groups]

    def _candidates(self, index: int) -> NDArray[np.int64]:
        """The names (of all sets') that are absent from this set's pictures, or may be taken so."""
        nearest = (self.name_embeddings @ self.own_embeddings[index].T).amax(dim=1)
        absent = (nearest < DISTRACTOR_LIMIT).cpu().numpy()
        doubtful = {
            name
            for folder, groups in zip(self.folders, self.synonyms, strict=True)
            if folder.folder.name in self.recipe.data[index].overlapping
            for group in groups
            for name in group
        }
        return np.flatnonzero(absent & [name not in doubtful for name in self.names])

    def advance(self, batch: TrainingBatch) -> dict[str, float]:
        """One optimiser step."""
        recipe = self.recipe
        images = batch.images.to(self.device, memory_format=torch.channels_last)
        labels = batch.labels.to(self.device)
        rate = self._schedule()
        # text noise and stochastic depth draw from here: a resumed run must draw the same numbers
        torch.manual_seed(recipe.seed * recipe.steps + self.step)
        text = self._text(batch)
        self.model.train()
        prediction = self.model(
            images, text, keep=recipe.keep, required=classes_present(labels, len(text))
        )
        loss = segmentation_loss(prediction, labels, len(text), mask_ignored=recipe.mask_ignored)
        figures = {"loss": float(loss.detach())}
        if recipe.cost_loss > 0:
            aligned = cost_loss(prediction.cost, labels, recipe.cost_temperature)
            figures["cost_loss"] = float(aligned.detach())
            loss = loss + recipe.cost_loss * aligned
        if recipe.softmax_loss > 0:
            loss = loss + recipe.softmax_loss * softmax_loss(prediction, labels)
        if recipe.lovasz_loss > 0:
            loss = loss + recipe.lovasz_loss * lovasz_loss(prediction, labels, len(text))
        if not math.isfinite(float(loss.detach())):
            raise ConfigError(f"the loss is {float(loss)} at step {self.step}; lower the rate.")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), recipe.gradient_limit)
        self.optimiser.step()
        self.step += 1
        self._average()
        return {"step": self.step, "rate": rate, "source": batch.source, **figures}

    def _text(self, batch: TrainingBatch) -> Tensor:
        """(T, D) embeddings of the set's classes, by this step's names, then of the distractors."""
        own = batch.naming.to(self.device) @ self.own_embeddings[batch.source]
        text = torch.cat([own, self.name_embeddings[batch.distractors.to(self.device)]])
        text = F.normalize(text, dim=-1)
        noise = torch.randn_like(text) * (self.recipe.text_noise / text.shape[1] ** 0.5)
        return F.normalize(text + noise, dim=-1)

    def _schedule(self) -> float:
        """Set the rates of this step: linear warm-up, then a cosine to zero."""
        recipe = self.recipe
        progress = max(0, self.step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
        factor = min(1.0, (self.step + 1) / max(1, recipe.warmup))
        factor *= 0.5 * (1 + math.cos(math.pi * progress))
        for group, peak in zip(self.optimiser.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        return recipe.learning_rate * factor

    @torch.no_grad()
    def _average(self) -> None:
        # early on the average follows fast: the start is not worth remembering
        decay = min(self.recipe.average_decay, (1 + self.step) / (10 + self.step))
        pairs = zip(self.averaged.parameters(), self.model.parameters(), strict=True)
        for mean, value in pairs:
            if value.requires_grad:
                mean.lerp_(value, 1 - decay)

    def validate(self, limit: int) -> dict[str, float]:
        """Mean IoU of the average on each validation set."""
        self.averaged.eval()
        return {
            f"miou_{folder.name}": evaluate_folder(
                self.averaged, open_folder(folder), limit
            ).mean_iou
            for folder in self.recipe.validation
        }

    def log(self, figures: Mapping[str, float]) -> None:
        """Append one row of metrics.csv."""
        path = self.out / METRICS_NAME
        columns = ["step", "rate", "source", "loss", "cost_loss"]
        columns += [f"miou_{folder.name}" for folder in self.recipe.validation]
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            if new:
                writer.writeheader()
            writer.writerow(
                {key: round(value, 6) for key, value in figures.items() if key in columns}
            )

    def save(self) -> None:
        state = {
            "recipe": repr(self.recipe),
            "step": self.step,
            "model": _trained(self.model),
            "averaged": _trained(self.averaged),
            "optimiser": self.optimiser.state_dict(),
        }
        with atomic_write(self.out / CHECKPOINT_NAME) as file:
            torch.save(state, file)

    def resume(self) -> None:
        path = self.out / CHECKPOINT_NAME
        if not path.exists():
            return
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # a damaged pickle raises whatever its bytes suggest
            raise ConfigError(
                f"{path} is not a whole checkpoint; remove it to start anew."
            ) from error
        if state["recipe"] != repr(self.recipe):
            raise ConfigError(
                f"{path} belongs to another recipe; give another output folder or the old recipe."
            )
        self.model.load_state_dict(state["model"], strict=False)
        self.averaged.load_state_dict(state["averaged"], strict=False)
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]
        self._forget_later_rows()

    def _forget_later_rows(self) -> None:
        """Drop the metrics of steps after the checkpoint: they will be taken again."""
        path = self.out / METRICS_NAME
        if not path.exists():
            return
        header, *rows = path.read_text("utf-8").splitlines(keepends=True)
        kept = [row for row in rows if int(row.partition(",")[0]) <= self.step]
        write_bytes_atomic(path, "".join([header, *kept]).encode())


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes: the rest is rebuilt from the recipe."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def _open(source: DataSource, out: Path) -> LabelledFolder:
    if source.pseudo_labels:
        return open_folder(make_pseudo_labels(source.folder, out / "pseudo-labels"))
    return open_folder(source.folder)


def _synonyms(recipe: Recipe, folders: Sequence[LabelledFolder]) -> list[list[tuple[str, ...]]]:
    """Per data set and class, the names it learns under: its own, and those that mean the same."""
    groups = load_vocabulary(str(recipe.synonyms)).synonyms if recipe.synonyms else ()
    same = {name: group for group in groups for name in group}
    return [
        [
            own
            if source.unions
            else tuple(
                dict.fromkeys([*own, *(other for name in own for other in same.get(name, ()))])
            )
            for own in folder.vocabulary.synonyms
        ]
        for folder, source in zip(folders, recipe.data, strict=True)
    ]


def _initial_model(recipe: Recipe, names: Sequence[str]) -> ErrSeg:
    if recipe.init == "errseg-mini":
        model = ErrSeg(recipe.model)
        every = {*names, *(name for group in imagenet_names() for name in group)}
        init_mini(model, sorted(every))
    elif recipe.init:
        model = load_model(Path(recipe.init))
        if dataclasses.replace(model.config, name="") != dataclasses.replace(recipe.model, name=""):
            raise ConfigError(f"{recipe.init} holds a model of another shape than the recipe's.")
    else:
        model = ErrSeg(recipe.model)
        if isinstance(model.text_encoder, MiniLMTextEncoder):
            set_centre(model.text_encoder, names, recipe.model.prompt)
    _freeze(model, recipe)
    return model


def _freeze(model: ErrSeg, recipe: Recipe) -> None:
    """Keep the text tower, and of the trunk what the recipe says, as they are."""
    if isinstance(model.text_encoder, nn.Module):
        model.text_encoder.requires_grad_(False)
    if recipe.trunk_rate == 0:
        model.image_encoder.requires_grad_(False)
    encoder = model.image_encoder.encoder
    if recipe.frozen_stages and isinstance(encoder, EfficientNetLiteEncoder):
        encoder.stem.requires_grad_(False)
        encoder.stages[: recipe.frozen_stages].requires_grad_(False)


def _parameter_groups(model: ErrSeg, recipe: Recipe) -> list[dict[str, Any]]:
    """Trunk and head at their own rates; no decay for norms and biases."""

    def of(part: Sequence[nn.Parameter], rate: float) -> list[dict[str, Any]]:
        trained = [parameter for parameter in part if parameter.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim > 1], "lr": rate},
            {"params": [p for p in trained if p.ndim <= 1], "lr": rate, "weight_decay": 0.0},
        ]

    trunk = list(model.image_encoder.parameters())
    inside = {id(parameter) for parameter in trunk}
    head = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    groups = of(head, recipe.learning_rate)
    groups += of(trunk, recipe.learning_rate * recipe.trunk_rate)
    return [{"weight_decay": recipe.weight_decay, **group} for group in groups]
