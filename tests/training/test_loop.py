"""The training loop: it learns, resumes exactly, and refuses what does not fit."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
import torch

from errseg.config import TINY, ModelConfig
from errseg.errors import ConfigError, DeviceError
from errseg.model.err_seg import ErrSeg
from errseg.training.loop import CHECKPOINT_NAME, METRICS_NAME, train
from errseg.training.recipe import Recipe
from errseg.weights import load_model, save_model

CPU = torch.device("cpu")


def losses(out: Path) -> list[str]:
    with (out / METRICS_NAME).open(newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


def run(recipe: Recipe, out: Path, stop_after: int | None = None) -> None:
    class KilledError(Exception):
        pass

    def report(figures: object) -> None:
        nonlocal steps
        steps += 1
        if stop_after is not None and steps > stop_after:
            raise KilledError

    steps = 0
    if stop_after is None:
        train(recipe, out, device=CPU, workers=0)
    else:
        with pytest.raises(KilledError):
            train(recipe, out, device=CPU, workers=0, report=report)


def test_a_killed_run_resumes_with_the_same_losses(recipe: Recipe, tmp_path: Path) -> None:
    run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "killed", stop_after=4)
    run(recipe, tmp_path / "killed")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    first = load_model(tmp_path / "whole" / "model.safetensors").state_dict()
    second = load_model(tmp_path / "killed" / "model.safetensors").state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_workers_do_not_change_the_losses(recipe: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(recipe, steps=3, validate_every=100)
    run(recipe, tmp_path / "none")
    train(recipe, tmp_path / "two", device=CPU, workers=2)
    assert losses(tmp_path / "none") == losses(tmp_path / "two")


def test_losses_fall(recipe: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        recipe, steps=30, validate_every=100, checkpoint_every=100, learning_rate=5e-4
    )
    rows: list[dict[str, float]] = []
    train(
        recipe, tmp_path / "run", device=CPU, workers=0, report=lambda row: rows.append(dict(row))
    )
    for name, share in (("loss", 0.97), ("cost_loss", 0.6)):
        values = [row[name] for row in rows if name in row]
        assert sum(values[-5:]) < share * sum(values[:5]), name


def test_only_what_is_trained_changes(recipe: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(recipe.seed)
    before = ErrSeg(recipe.model).state_dict()
    run(dataclasses.replace(recipe, frozen_stages=2), tmp_path / "run")
    after = load_model(tmp_path / "run" / "model.safetensors").state_dict()
    stem = "image_encoder.encoder.stem.weight"
    head = "decoder.head.weight"
    torch.testing.assert_close(after[stem], before[stem].half().float())
    assert not torch.equal(after[head], before[head].half().float())


def test_the_start_has_its_share_in_what_is_kept(recipe: Recipe, tmp_path: Path) -> None:
    weight = "decoder.head.weight"
    ends = {}
    for share in (0.0, 0.25, 1.0):
        run(dataclasses.replace(recipe, init_share=share), tmp_path / str(share))
        ends[share] = load_model(tmp_path / str(share) / "model.safetensors").state_dict()[weight]
    torch.manual_seed(recipe.seed)
    before = ErrSeg(recipe.model).state_dict()[weight].half().float()
    assert torch.equal(ends[1.0], before)
    assert not torch.allclose(ends[0.0], before, atol=1e-4)
    run(dataclasses.replace(recipe, init_share=0.25), tmp_path / "0.25")
    again = load_model(tmp_path / "0.25" / "model.safetensors").state_dict()[weight]
    assert torch.equal(again, ends[0.25]), "a finished run has taken its share already"
    torch.testing.assert_close(
        ends[0.25], torch.lerp(ends[0.0], before, 0.25), rtol=2e-3, atol=1e-5
    )


def test_another_recipe_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    run(recipe, tmp_path / "run", stop_after=4)
    with pytest.raises(ConfigError, match="another recipe"):
        run(dataclasses.replace(recipe, learning_rate=1e-4), tmp_path / "run")


def test_a_damaged_checkpoint_is_named(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CHECKPOINT_NAME).write_bytes(b"half")
    with pytest.raises(ConfigError, match=CHECKPOINT_NAME):
        run(recipe, tmp_path / "run")


def test_validation_is_reported_and_logged(recipe: Recipe, tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    train(
        recipe, tmp_path / "run", device=CPU, workers=0, report=lambda row: seen.append(dict(row))
    )
    assert 0.0 <= seen[-1]["miou_val"] <= 1.0
    assert "miou_val" in (tmp_path / "run" / METRICS_NAME).read_text().splitlines()[0]


def test_accumulated_batches_resume_with_the_same_losses(recipe: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(recipe, accumulate=2, validate_every=100)
    run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "killed", stop_after=4)
    run(recipe, tmp_path / "killed")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == recipe.steps


def test_a_step_takes_the_mean_of_its_batches(recipe: Recipe, tmp_path: Path) -> None:
    """At a rate of zero nothing is learnt: two steps of one batch are one step of two."""
    still = dataclasses.replace(
        recipe, learning_rate=0.0, steps=4, validation=(), model=no_depth(recipe)
    )
    run(still, tmp_path / "single")
    run(dataclasses.replace(still, steps=2, accumulate=2), tmp_path / "double")
    single = [float(loss) for loss in losses(tmp_path / "single")]
    double = [float(loss) for loss in losses(tmp_path / "double")]
    assert double == pytest.approx(
        [(single[0] + single[1]) / 2, (single[2] + single[3]) / 2], abs=2e-6
    )


def no_depth(recipe: Recipe) -> ModelConfig:
    return dataclasses.replace(recipe.model, drop_path=0.0)


def test_bf16_losses_are_near_those_of_fp32(recipe: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(recipe, steps=3, validate_every=100)
    run(recipe, tmp_path / "fp32")
    run(dataclasses.replace(recipe, precision="bf16"), tmp_path / "bf16")
    exact, mixed = ([float(x) for x in losses(tmp_path / name)] for name in ("fp32", "bf16"))
    assert mixed != exact
    assert mixed == pytest.approx(exact, rel=0.02)


def test_fp16_on_a_cpu_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="fp16"):
        run(dataclasses.replace(recipe, precision="fp16"), tmp_path / "run")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_fp16_resumes_with_its_loss_scale(recipe: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(recipe, precision="fp16")
    train(recipe, tmp_path / "run", device=torch.device("cuda"), workers=0)
    state = torch.load(tmp_path / "run" / CHECKPOINT_NAME, weights_only=True)
    assert state["scaler"]["scale"] > 0


def test_a_checkpoint_from_before_there_were_more_settings_goes_on(recipe: Recipe) -> None:
    assert "accumulate" not in recipe.identity()
    assert recipe.identity().endswith("validation_limit=0)")
    assert "accumulate=2" in dataclasses.replace(recipe, accumulate=2).identity()
    assert "degraded" not in recipe.identity()
    one = dataclasses.replace(recipe, data=recipe.data[:1]).identity()
    assert "pseudo_labels=False),), validation=" in one
    assert "min_scale=0.5, mosaic=1, rare_share=0.0, unions=False, pseudo_labels=False)" in one
    assert "keep='published', hierarchical=True" in one
    competing = dataclasses.replace(recipe, model=dataclasses.replace(TINY, competition=2.0))
    assert "competition=2.0" in competing.identity()
    union = dataclasses.replace(recipe.data[0], unions=True)
    assert "own_names=0.0" in dataclasses.replace(recipe, data=(union,)).identity()
    for settings in ({"degraded": 0.5}, {"weight": 3.0}):
        data = (dataclasses.replace(recipe.data[0], **settings), *recipe.data[1:])
        ((name, value),) = settings.items()
        assert f"{name}={value}" in dataclasses.replace(recipe, data=data).identity()


def test_calibration_goes_with_the_weights_that_a_run_starts_from(
    recipe: Recipe, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(recipe.model, name="tiny-one", logit_shift=0.5, competition=1.3)
    save_model(ErrSeg(config), tmp_path / "start.safetensors")
    start = str(tmp_path / "start.safetensors")
    run(dataclasses.replace(recipe, steps=1, init=start), tmp_path / "out")
    expected = dataclasses.replace(recipe.model, logit_shift=0.5, competition=1.3)
    assert load_model(tmp_path / "out" / "model.safetensors").config == expected
    other = dataclasses.replace(recipe.model, layers=1)
    with pytest.raises(ConfigError, match="another shape"):
        run(dataclasses.replace(recipe, init=start, model=other), tmp_path / "other")
