"""Curves and samples: that they show what was measured, and are not needed to go on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from errseg.datasets import open_folder
from errseg.model.err_seg import ErrSeg
from errseg.training import loop, pictures
from errseg.training.loop import train
from errseg.training.pictures import draw_curves, draw_samples
from errseg.training.recipe import Recipe

CPU = torch.device("cpu")


def files(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("curves", [True, False])
def test_a_run_leaves_samples_and_curves_of_each_validation(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, curves: bool
) -> None:
    if curves:
        pytest.importorskip("matplotlib")
    monkeypatch.setattr(loop, "can_plot", lambda: curves)
    recipe = dataclasses.replace(recipe, steps=3, validate_every=2)
    train(recipe, tmp_path / "run", device=CPU, workers=0)
    left = {"checkpoint.pt", "metrics.csv", "model.safetensors"}
    left |= {"samples/step-2.jpg", "samples/step-3.jpg"}
    assert files(tmp_path / "run") == left | ({"curves.png"} if curves else set())


def test_a_run_without_validation_sets_leaves_curves_alone(recipe: Recipe, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    train(dataclasses.replace(recipe, steps=2, validation=()), tmp_path, device=CPU, workers=0)
    assert (tmp_path / "curves.png").is_file()
    assert not (tmp_path / "samples").exists()


def test_samples_show_picture_truth_and_answer_side_by_side(recipe: Recipe, tmp_path: Path) -> None:
    folder = open_folder(recipe.validation[0])
    torch.manual_seed(0)
    draw_samples(ErrSeg(recipe.model).eval(), [folder], 2, tmp_path / "s.jpg")
    sheet = np.asarray(Image.open(tmp_path / "s.jpg")).astype(int)
    # two pictures of (67, 71), at 320 rows each
    side = round(71 * 320 / 67)
    assert sheet.shape == (2 * 320 + pictures.GAP, 3 * side + 2 * pictures.GAP, 3)
    truth = sheet[:320, side + pictures.GAP :][:, :side]
    # the unlabelled corner of the truth shows the picture itself
    picture = sheet[:320, :side]
    assert np.abs(truth - picture)[4:24, 4:24].mean() < 8
    assert np.abs(truth - picture)[160:].mean() > 20


def test_curves_of_a_metrics_file_with_gaps(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lines = ["step,rate,source,loss,cost_loss,miou_val"]
    lines += [f"{n},0.1,0,{1 / n},,{0.1 * n if n % 2 == 0 else ''}" for n in range(1, 9)]
    lines += ["9,0.1,0,nan,,nan"]
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    draw_curves(tmp_path / "m.csv", tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert image.format == "PNG"
        # a loss and the mIoU; the empty column of the other loss has no axis
        assert image.width > image.height > image.width / 2
