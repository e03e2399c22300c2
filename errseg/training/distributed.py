"""Several processes that train one model, as `torchrun` starts them.

Each takes its share of every batch; gradients are averaged, so a loss that is a mean over the
whole batch must count what the others hold, too. `World` offers the few sums that this takes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from errseg.errors import ConfigError, DeviceError
from errseg.model.layers import DropPath

PATIENCE = timedelta(hours=6)
"""The others wait while the first process measures or labels pictures."""


@dataclass(frozen=True)
class World:
    """This process among those that train together: number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and reports."""
        return self.rank == 0

    def total(self, count: Tensor) -> Tensor:
        """Sum over the processes; without gradient."""
        return self._reduced(count, dist.ReduceOp.SUM)

    def largest(self, value: Tensor) -> Tensor:
        """Element-wise maximum over the processes; without gradient."""
        return self._reduced(value, dist.ReduceOp.MAX)

    def gather(self, own: Tensor) -> Tensor:
        """All processes' tensors (N, ...), joined in order → (size · N, ...).

        Only the own part has a gradient, and as the processes' gradients are averaged, it is
        multiplied by their number: then the average is the gradient of one loss over all parts.
        """
        if self.size == 1:
            return own
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own.detach().contiguous())
        if own.requires_grad:
            parts[self.rank] = own.detach() + self.size * (own - own.detach())
        return torch.cat(parts)

    def wait(self) -> None:
        """Return once all processes have come here."""
        if self.size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """The body runs in the first process, and then, its files there, in the others.

        An error of the first does not keep the others waiting: they will meet the same.
        """
        if not self.first:
            self.wait()
        try:
            yield
        finally:
            if self.first:
                self.wait()

    def _reduced(self, value: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
        value = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(value, how)
        return value


ALONE = World()


def share_stochastic_depth(model: nn.Module, world: World) -> None:
    """Let every process draw for the whole batch and use its share: it drops what one would."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            own: Any = child
            if type(child).__name__ == "DropPath" and not isinstance(child, DropPath):
                # timm's, which does the same but for the share
                own = DropPath(float(own.drop_prob or 0.0)).train(child.training)
                setattr(parent, name, own)
            if isinstance(own, DropPath):
                own.share = (world.rank, world.size)


def is_first_process() -> bool:
    """Whether this process should write and report, told by the environment alone."""
    return os.environ.get("RANK", "0") == "0" or not _is_launched()


def _is_launched() -> bool:
    return all(name in os.environ for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))


@contextlib.contextmanager
def join_world(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """Meet the other processes, where `torchrun` started several; part from them at the end.

    Yields:
        This process's place, and its device: of several GPUs the one with its local number.

    Raises:
        ConfigError: the environment is not what `torchrun` sets.
        DeviceError: more processes than GPUs on this machine, or a device that cannot do it.
    """
    if not _is_launched() or os.environ["WORLD_SIZE"] == "1":
        yield ALONE, device
        return
    device = _own_device(device)
    try:
        if device.type == "cuda":
            dist.init_process_group("nccl", timeout=PATIENCE, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the processes cannot meet ({error}); start them with torchrun."
        ) from error
    try:
        yield World(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()


def _own_device(device: torch.device) -> torch.device:
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise DeviceError(f"several processes cannot train on {device.type}; use cuda or cpu.")
    try:
        local = int(os.environ["LOCAL_RANK"])
    except ValueError as error:
        raise ConfigError(f"LOCAL_RANK is {os.environ['LOCAL_RANK']!r}, not a number.") from error
    if local >= torch.cuda.device_count():
        raise DeviceError(
            f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}. "
            "Start fewer processes."
        )
    own = torch.device("cuda", local)
    torch.cuda.set_device(own)
    return own
