"""Several processes: the same losses as one, and what they refuse."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from errseg.config import TINY_CONVNEXT
from errseg.errors import ConfigError, DeviceError
from errseg.model.layers import DropPath
from errseg.training import loop
from errseg.training.distributed import (
    ALONE,
    World,
    is_first_process,
    join_world,
    share_stochastic_depth,
)
from errseg.training.loop import CHECKPOINT_NAME, METRICS_NAME, train
from errseg.training.recipe import Recipe
from errseg.weights import load_model

CPU = torch.device("cpu")

WORKER = """
import pickle, sys, torch
from pathlib import Path
from errseg.training.loop import train
recipe, out = pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
seen = []
train(recipe, out, device=torch.device("cpu"), workers=0, report=seen.append)
(out / f"reports-{__import__('os').environ['RANK']}").write_text(str(len(seen)))
"""


def together(recipe: Recipe, out: Path, count: int = 2) -> list[str]:
    """Train in `count` processes; what each wrote to stderr."""
    out.mkdir(exist_ok=True)
    stored = out / "recipe.pickle"
    stored.write_bytes(pickle.dumps(recipe))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(stored), str(out)],
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
            },
        )
        for rank in range(count)
    ]
    return [process.communicate(timeout=240)[1] for process in processes]


def rows(out: Path) -> list[dict[str, str]]:
    with (out / METRICS_NAME).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def shared_recipe(recipe: Recipe) -> Recipe:
    """Every loss, stochastic depth, mosaics, two batches a step: all that a split could change."""
    data = (dataclasses.replace(recipe.data[0], mosaic=2), *recipe.data[1:])
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, drop_path=0.3),
        data=data,
        softmax_loss=0.3,
        lovasz_loss=0.5,
        text_noise=0.1,
        accumulate=2,
        steps=4,
        checkpoint_every=2,
        validate_every=4,
    )


def test_two_processes_learn_as_one(shared_recipe: Recipe, tmp_path: Path) -> None:
    train(shared_recipe, tmp_path / "one", device=CPU, workers=0)
    errors = together(shared_recipe, tmp_path / "two")
    assert "Error" not in "".join(errors), errors
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == len(two) == 4
    for name in ("loss", "cost_loss", "rate"):
        assert [float(row[name]) for row in two] == pytest.approx(
            [float(row[name]) for row in one], rel=1e-4
        )
    # four steps and a validation, from the first process alone
    assert [(tmp_path / "two" / f"reports-{rank}").read_text() for rank in (0, 1)] == ["5", "0"]
    alone, both = (
        load_model(tmp_path / name / "model.safetensors").state_dict() for name in ("one", "two")
    )
    for key, value in alone.items():
        torch.testing.assert_close(both[key], value, rtol=0.02, atol=2e-3)


def test_processes_go_on_from_the_checkpoint_of_one(shared_recipe: Recipe, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def report(figures: object) -> None:
        if len(rows(tmp_path / "run") if (tmp_path / "run" / METRICS_NAME).exists() else []) == 3:
            raise KilledError

    train(shared_recipe, tmp_path / "whole", device=CPU, workers=0)
    with pytest.raises(KilledError):
        train(shared_recipe, tmp_path / "run", device=CPU, workers=0, report=report)
    assert (tmp_path / "run" / CHECKPOINT_NAME).exists()
    together(shared_recipe, tmp_path / "run")
    assert [float(row["loss"]) for row in rows(tmp_path / "run")] == pytest.approx(
        [float(row["loss"]) for row in rows(tmp_path / "whole")], rel=1e-4
    )


def test_two_processes_train_the_towers_of_clip_as_one(recipe: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        recipe,
        model=dataclasses.replace(TINY_CONVNEXT, prompt="{}", drop_path=0.3),
        tuning="published",
        augmentation="published",
        validation=(),
        steps=2,
    )
    train(recipe, tmp_path / "one", device=CPU, workers=0)
    together(recipe, tmp_path / "two")
    assert [float(row["loss"]) for row in rows(tmp_path / "two")] == pytest.approx(
        [float(row["loss"]) for row in rows(tmp_path / "one")], rel=1e-4
    )


def test_a_batch_that_does_not_divide_is_refused(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def join_three(device: torch.device) -> Iterator[tuple[World, torch.device]]:
        yield World(0, 3), device

    monkeypatch.setattr(loop, "join_world", join_three)
    with pytest.raises(ConfigError, match=r"batch_size is 2; .* processes, 3"):
        train(recipe, tmp_path / "run", device=CPU, workers=0)


def test_stochastic_depth_drops_what_one_process_would() -> None:
    """timm's layers are replaced by ours, which draw for the whole batch."""
    from timm.layers import DropPath as TimmDropPath

    model = nn.Sequential(TimmDropPath(0.4), DropPath(0.4))
    x = torch.ones(6, 2)

    def dropped(world: World) -> torch.Tensor:
        share_stochastic_depth(model, world)
        torch.manual_seed(5)
        out: torch.Tensor = model(x.chunk(world.size)[world.rank])
        return out

    torch.manual_seed(5)
    whole = model(x)
    assert 0 in whole and not (whole == 0).all()
    parts = [dropped(World(rank, 3)) for rank in range(3)]
    assert torch.equal(torch.cat(parts), whole)


def test_alone_all_sums_are_the_values_themselves() -> None:
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    assert torch.equal(ALONE.total(values), values)
    assert torch.equal(ALONE.largest(values), values)
    assert ALONE.gather(values) is values
    with ALONE.first_goes_ahead():
        ALONE.wait()


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with join_world(CPU) as (world, device):
        assert (world, device) == (World(0, 1), CPU)
    assert is_first_process()


def test_what_torchrun_does_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert not is_first_process()
    with pytest.raises(ConfigError, match="torchrun"), join_world(CPU):
        pass
    with pytest.raises(DeviceError, match="mps"), join_world(torch.device("mps")):
        pass
