"""The one training loop: recipe in, checkpoints, metrics and final weights out."""

from __future__ import annotations

import contextlib
import copy
import csv
import hashlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from errseg.datasets import LabelledFolder, open_folder
from errseg.devices import arithmetic, resolve_precision
from errseg.errors import ConfigError
from errseg.evaluation.folder import evaluate_folder
from errseg.figures import can_plot
from errseg.files import atomic_write, write_bytes_atomic
from errseg.model.err_seg import Prediction
from errseg.training.broader import broadened
from errseg.training.calibration import calibrate
from errseg.training.data import TrainingBatch, TrainingBatches
from errseg.training.distributed import World, join_world, share_stochastic_depth
from errseg.training.loss import (
    classes_present,
    cost_loss,
    lovasz_loss,
    segmentation_loss,
    softmax_loss,
    united,
)
from errseg.training.pictures import draw_curves, draw_samples
from errseg.training.pseudo_labels import make_pseudo_labels
from errseg.training.recipe import DataSource, Recipe
from errseg.training.refinement import refine_labels
from errseg.training.start import initial_model, parameter_groups
from errseg.training.texts import ClassTexts, all_names, learnt_meanings
from errseg.weights import save_model

CHECKPOINT_NAME = "checkpoint.pt"
METRICS_NAME = "metrics.csv"
WEIGHTS_NAME = "model.safetensors"
CURVES_NAME = "curves.png"
SAMPLES_NAME = "samples"
SAMPLE_COUNT = 6
"""Pictures of all validation sets together, but at least one of each."""

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

    Where `torchrun` started several processes, all call this alike: each takes its share of every
    batch, and the first one writes and reports.

    Args:
        recipe: the whole run; the same recipe and seed give the same losses.
        out: gets `checkpoint.pt`, `metrics.csv` and, at the end, `model.safetensors`; with each
            validation `samples/step-N.jpg` and, where matplotlib is installed, `curves.png`.
        workers: processes that read and augment pictures, for each process that trains.
        report: called after every step with its figures, and with the figures of a validation.

    Returns:
        The final weights (the moving average, where the recipe keeps one).
    """
    with join_world(device) as (world, own_device):
        if recipe.batch_size % world.size:
            raise ConfigError(
                f"batch_size is {recipe.batch_size}; it must divide by the number of processes, "
                f"{world.size}."
            )
        run = _TrainingRun(recipe, out, own_device, world)
        run.resume()
        _steps(run, workers, report if world.first else lambda figures: None)
        if world.first:
            # a text tower of CLIP is worth its bytes, the more so where it was trained
            compact = recipe.model.text_encoder == "minilm"
            if recipe.calibration_pictures:
                folders = list(run.validation.values())
                calibrate(run.averaged, folders, recipe.calibration_pictures)
            save_model(run.averaged, out / WEIGHTS_NAME, compact=compact)
        world.wait()
    return out / WEIGHTS_NAME


def _steps(run: _TrainingRun, workers: int, report: Report) -> None:
    recipe, texts = run.recipe, run.texts
    loader = DataLoader(
        TrainingBatches(recipe, run.folders, texts.meanings, texts.candidates, run.world),
        batch_size=None,
        sampler=range(run.step * recipe.accumulate, recipe.steps * recipe.accumulate),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    batches = iter(loader)
    while run.step < recipe.steps:
        figures = run.advance(itertools.islice(batches, recipe.accumulate))
        report(figures)
        if not run.world.first:
            continue
        last = run.step == recipe.steps
        if last:
            run.mix_with_start()
        measures = run.step % recipe.validate_every == 0 or last
        if measures:
            measured = run.validate(0 if last else recipe.validation_limit)
            figures = {**figures, **measured}
            if measured:
                report({"step": run.step, **measured})
        run.log(figures)
        if measures:
            run.draw()
        if run.step % recipe.checkpoint_every == 0 or last:
            run.save()


class _TrainingRun:
    """State of one run: model, average, optimiser, step."""

    def __init__(self, recipe: Recipe, out: Path, device: torch.device, world: World) -> None:
        self.recipe, self.out, self.device, self.world = recipe, out, device, world
        self.step = 0
        self.dtype = resolve_precision(recipe.precision, device)
        torch.manual_seed(recipe.seed)
        with world.first_goes_ahead():
            out.mkdir(parents=True, exist_ok=True)
            self.folders = [_open(source, recipe, out) for source in recipe.data]
        self.validation = {folder.name: open_folder(folder) for folder in recipe.validation}
        meanings = learnt_meanings(recipe, self.folders)
        self.model = initial_model(recipe, all_names(meanings)).to(device)
        # the backward pass of depth-wise convs takes two thirds of the time in this layout
        self.model.image_encoder.to(memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.model)
        self.start = _trained(copy.deepcopy(self.model)) if recipe.init_share else {}
        self.texts = ClassTexts(recipe, self.folders, meanings, self.model.text_encoder)
        self.optimiser = torch.optim.AdamW(parameter_groups(self.model, recipe))
        self.peaks = [group["lr"] for group in self.optimiser.param_groups]
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.shared: DistributedDataParallel | None = None
        if world.size > 1:
            share_stochastic_depth(self.model, world)
            # a depth-wise conv's gradient has two names for one layout: no copy is made
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
            device_ids = [device.index] if device.type == "cuda" else None
            self.shared = DistributedDataParallel(self.model, device_ids=device_ids)

    def advance(self, batches: Iterable[TrainingBatch]) -> dict[str, float]:
        """One optimiser step on `accumulate` batches.

        Returns:
            The step's figures: losses are means over its batches and all processes.
        """
        rate = self._schedule()
        self.optimiser.zero_grad(set_to_none=True)
        rows = [self._learn(batch, place) for place, batch in enumerate(batches)]
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_limit)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.step += 1
        self._average()
        mean = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        return {"step": self.step, "rate": rate, **mean, "source": rows[0]["source"]}

    def _learn(self, batch: TrainingBatch, place: int) -> dict[str, float]:
        """Add the gradient of the step's batch number `place`."""
        recipe, world = self.recipe, self.world
        images = batch.images.to(self.device, memory_format=torch.channels_last)
        labels = batch.labels.to(self.device)
        # text noise and stochastic depth draw from here: a resumed run must draw the same numbers
        number = self.step * recipe.accumulate + place
        torch.manual_seed(recipe.seed * recipe.steps * recipe.accumulate + number)
        self.model.train()
        with self._exchange(last=place == recipe.accumulate - 1):
            with arithmetic(self.device, self.dtype):
                text = self.texts.of_batch(batch)
                class_count, parts_of = _parts(batch, len(text), self.device)
                required = classes_present(labels, class_count)[:, parts_of]
                # all processes keep as many classes as the one whose pictures hold the most
                most = int(world.largest(required.sum(dim=1).max()))
                prediction = (self.shared or self.model)(
                    images, text, keep=max(recipe.keep, most), required=required
                )
            if batch.parts_of is not None:
                prediction = united(prediction, parts_of, class_count, recipe.cost_temperature)
            loss, figures = self._losses(prediction, labels, class_count)
            self.scaler.scale(loss / recipe.accumulate).backward()
        return {"source": batch.source, **figures}

    def _exchange(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Processes exchange gradients once a step, in the backward pass of its last batch."""
        if self.shared is None or last:
            return contextlib.nullcontext()
        exchange: contextlib.AbstractContextManager[None] = self.shared.no_sync()
        return exchange

    def _losses(
        self, prediction: Prediction, labels: Tensor, class_count: int
    ) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum, and the figures to report, means over all processes."""
        recipe, world = self.recipe, self.world
        prediction = prediction._replace(logits=prediction.logits.float())
        loss = segmentation_loss(
            prediction, labels, class_count, mask_ignored=recipe.mask_ignored, world=world
        )
        reported = {"loss": loss}
        if recipe.cost_loss > 0:
            aligned = cost_loss(prediction.cost, labels, recipe.cost_temperature, world)
            reported["cost_loss"] = aligned
            loss = loss + recipe.cost_loss * aligned
        if recipe.softmax_loss > 0:
            loss = loss + recipe.softmax_loss * softmax_loss(prediction, labels, world)
        if recipe.lovasz_loss > 0:
            loss = loss + recipe.lovasz_loss * lovasz_loss(prediction, labels, class_count, world)
        means = world.total(torch.stack([loss, *reported.values()])) / world.size
        total, *values = means.tolist()
        if not math.isfinite(total):
            raise ConfigError(f"the loss is {total} at step {self.step}; lower the rate.")
        return loss, dict(zip(reported, values, strict=True))

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

    @torch.no_grad()
    def mix_with_start(self) -> None:
        """Take the recipe's share of the weights that the run began with into the average."""
        kept = _trained(self.averaged)
        for name, value in self.start.items():
            kept[name].lerp_(value, self.recipe.init_share)

    def validate(self, limit: int) -> dict[str, float]:
        """Mean IoU of the average on each validation set."""
        return {
            f"miou_{name}": evaluate_folder(self.averaged, folder, limit).mean_iou
            for name, folder in self.validation.items()
        }

    def draw(self) -> None:
        """Pictures of what the average makes of the validation sets, and of the figures so far."""
        if folders := list(self.validation.values()):
            path = self.out / SAMPLES_NAME / f"step-{self.step}.jpg"
            draw_samples(self.averaged, folders, max(1, SAMPLE_COUNT // len(folders)), path)
        if can_plot():
            draw_curves(self.out / METRICS_NAME, self.out / CURVES_NAME)

    def log(self, figures: Mapping[str, float]) -> None:
        """Append one row of metrics.csv."""
        path = self.out / METRICS_NAME
        columns = ["step", "rate", "source", "loss", "cost_loss"]
        columns += [f"miou_{name}" for name in self.validation]
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
            "recipe": self.recipe.identity(),
            "step": self.step,
            "model": _trained(self.model),
            "averaged": _trained(self.averaged),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
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
        if state["recipe"] != self.recipe.identity():
            raise ConfigError(
                f"{path} belongs to another recipe; give another output folder or the old recipe."
            )
        self.model.load_state_dict(state["model"], strict=False)
        self.averaged.load_state_dict(state["averaged"], strict=False)
        self.optimiser.load_state_dict(state["optimiser"])
        # checkpoints had none before there was mixed precision
        if scaler := state.get("scaler"):
            self.scaler.load_state_dict(scaler)
        self.step = state["step"]
        if self.world.first:
            self._forget_later_rows()

    def _forget_later_rows(self) -> None:
        """Drop the metrics of steps after the checkpoint: they will be taken again."""
        path = self.out / METRICS_NAME
        if not path.exists():
            return
        header, *rows = path.read_text("utf-8").splitlines(keepends=True)
        kept = [row for row in rows if int(row.partition(",")[0]) <= self.step]
        write_bytes_atomic(path, "".join([header, *kept]).encode())


def _parts(batch: TrainingBatch, rows: int, device: torch.device) -> tuple[int, Tensor]:
    """The number of classes that compete, distractors included, and the class of each text row."""
    if batch.parts_of is None:
        return rows, torch.arange(rows, device=device)
    absent = batch.class_count + torch.arange(len(batch.distractors))
    return batch.class_count + len(absent), torch.cat([batch.parts_of, absent]).to(device)


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes: the rest is rebuilt from the recipe."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def _open(source: DataSource, recipe: Recipe, out: Path) -> LabelledFolder:
    if not source.pseudo_labels:
        return open_folder(source.folder)
    labelled = make_pseudo_labels(source.folder, out / "pseudo-labels")
    if source.refined:
        start = Path(recipe.init)
        labelled = refine_labels(start, labelled, out / f"refined-labels-{_digest(start)}")
    folder = open_folder(labelled)
    return folder if source.broader is None else broadened(folder, source.broader)


def _digest(path: Path) -> str:
    """What tells one file of weights from another."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise ConfigError(f"cannot read the weights {path}: {error.strerror}.") from error
