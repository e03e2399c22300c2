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
from collections.abc import Iterator, Mapping
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
import os, pickle, sys, torch
from pathlib import Path
from errseg.training.loop import train
for recipe, out, port in pickle.loads(Path(sys.argv[1]).read_bytes()):
    os.environ["MASTER_PORT"] = str(port)
    seen = []
    train(recipe, out, device=torch.device("cpu"), workers=0, report=seen.append)
    (out / f"reports-{os.environ['RANK']}").write_text(str(len(seen)))
"""
PATIENCE_S = 900
"""Two processes wait for each other, and for whoever else keeps the cores busy."""


def together(jobs: dict[Path, Recipe], folder: Path) -> None:
    """Run trainings, each into its folder, one after the other in two processes."""
    with contextlib.ExitStack() as taken:
        sockets = [taken.enter_context(socket.socket()) for _ in jobs]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        ports = [free.getsockname()[1] for free in sockets]
    stored = folder / "jobs.pickle"
    listed = [(recipe, out, port) for (out, recipe), port in zip(jobs.items(), ports, strict=True)]
    stored.write_bytes(pickle.dumps(listed))
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    launched = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": paths}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(stored)],
            stderr=subprocess.PIPE,
            text=True,
            env={**launched, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    try:
        errors = [process.communicate(timeout=PATIENCE_S)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    # nothing of the library's, nor of torch's about it
    assert "errseg" not in "".join(errors)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / METRICS_NAME).open(newline="") as file:
        return list(csv.DictReader(file))


def losses(out: Path) -> list[float]:
    return [float(row["loss"]) for row in rows(out)]


def whatever_a_split_could_change(recipe: Recipe) -> Recipe:
    """Every loss, stochastic depth, mosaics, pasting, parts of classes, two batches a step."""
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, drop_path=0.3),
        data=(
            dataclasses.replace(recipe.data[0], mosaic=2, copy_paste=0.5),
            dataclasses.replace(recipe.data[1], weight=1.0, unions=True, apart=0.7),
        ),
        softmax_loss=0.3,
        lovasz_loss=0.5,
        text_noise=0.1,
        accumulate=2,
        steps=4,
        checkpoint_every=2,
        validate_every=4,
    )


def towers_of_clip(recipe: Recipe) -> Recipe:
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(TINY_CONVNEXT, prompt="{}", drop_path=0.3),
        tuning="published",
        augmentation="published",
        validation=(),
        steps=2,
    )


def test_two_processes_learn_as_one(recipe: Recipe, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def report(figures: Mapping[str, float]) -> None:
        if figures["step"] == 4:
            raise KilledError

    all_losses, clip = whatever_a_split_could_change(recipe), towers_of_clip(recipe)
    train(all_losses, tmp_path / "one", device=CPU, workers=0)
    train(clip, tmp_path / "clip-one", device=CPU, workers=0)
    with pytest.raises(KilledError):
        train(all_losses, tmp_path / "resumed", device=CPU, workers=0, report=report)
    assert (tmp_path / "resumed" / CHECKPOINT_NAME).exists()
    together(
        {
            tmp_path / "two": all_losses,
            tmp_path / "clip-two": clip,
            tmp_path / "resumed": all_losses,
        },
        tmp_path,
    )
    whole = losses(tmp_path / "one")
    assert len(whole) == 4
    assert losses(tmp_path / "two") == pytest.approx(whole, rel=1e-4)
    assert losses(tmp_path / "resumed") == pytest.approx(whole, rel=1e-4)
    assert losses(tmp_path / "clip-two") == pytest.approx(losses(tmp_path / "clip-one"), rel=1e-4)
    aligned = [[float(row["cost_loss"]) for row in rows(tmp_path / n)] for n in ("one", "two")]
    assert aligned[1] == pytest.approx(aligned[0], rel=1e-4)
    # four steps and a validation, and from the first process alone
    assert [(tmp_path / "two" / f"reports-{rank}").read_text() for rank in (0, 1)] == ["5", "0"]
    one, two = (
        load_model(tmp_path / name / "model.safetensors").state_dict() for name in ("one", "two")
    )
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0.02, atol=2e-3)


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
