"""`errseg train`: a recipe in, checkpoints, figures and final weights out."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errseg.errors import ConfigError
from errseg_cli.errors import reported
from errseg_cli.options import Debug, Device
from errseg_cli.output import errors_to_terminal, print_result, say
from errseg_cli.progress import is_round

if TYPE_CHECKING:
    from errseg.training.recipe import Recipe

LINE_EVERY_STEPS = 100
"""Off a terminal, besides the first few steps."""

Report = Callable[[Mapping[str, float]], None]


def train(
    *,
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A TOML file, or the name of a recipe that comes with errseg."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="RUN", help="Folder for checkpoints and figures.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where the recipe's folders are.", show_default="beside the recipe"
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Weights to go on from, instead of the recipe's start; an open_clip checkpoint "
            "where that is CLIP.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Instead of the recipe's, to try it out."),
    ] = None,
    device: Device = "auto",
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Processes that read and augment pictures.")
    ] = 1,
    debug: Debug = False,
) -> None:
    """Train a model by a recipe; the same command again goes on from the last checkpoint.

    Prints the path of the final weights, for `errseg run --weights`. RUN also gets metrics.csv,
    curves.png and, for some validation pictures, the labels at that step.
    Several GPUs train together where torchrun starts the command.

    Example:

        errseg train errseg-mini --data datasets/ -o runs/mini

        torchrun --nproc-per-node 4 --no-python errseg train recipe.toml -o runs/mine
    """
    with reported(debug):
        from errseg.training.recipe import FROM_CLIP

        plan = _recipe(recipe, data, steps)
        if init is not None:
            # a recipe that starts from CLIP says so, but not where the user keeps it
            changed = {"clip_file": init} if plan.init == FROM_CLIP else {"init": str(init)}
            plan = dataclasses.replace(plan, **changed)
        # After the recipe is checked: torch takes seconds to import.
        from errseg.devices import resolve_device
        from errseg.figures import can_plot
        from errseg.training import loop
        from errseg.training.distributed import is_first_process

        first = is_first_process()
        if first and any(source.pseudo_labels for source in plan.data):
            say("errseg: making label maps first, where they are missing; it takes minutes")
        if first and not can_plot():
            say("errseg: no curves.png without matplotlib; type: pip install 'errseg[plots]'")
        # torchrun's other processes train, too, but one is enough to tell of it
        shown = _figures_shown(plan.steps) if first else contextlib.nullcontext(_tell_nobody)
        with shown as report:
            weights = loop.train(
                plan, out, device=resolve_device(device), workers=workers, report=report
            )
        if first:
            print_result(str(weights))


def _tell_nobody(figures: Mapping[str, float]) -> None:
    """The report of a process that is not the first."""


def _recipe(name: str, data: Path | None, steps: int | None) -> Recipe:
    from errseg.training.recipe import load_recipe

    folder = importlib.resources.files("errseg") / "assets" / "recipes"
    shipped = sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir())
    path = Path(name)
    if name in shipped and not path.exists():
        if data is None:
            raise ConfigError(
                f"the recipe {name} needs --data DIR: the folder that its data is in."
            )
        path = Path(str(folder / f"{name}.toml"))
    elif not path.is_file():
        raise ConfigError(
            f"there is no recipe {name!r}; give a TOML file, or one of: {', '.join(shipped)}."
        )
    recipe = load_recipe(path, root=data)
    return recipe if steps is None else dataclasses.replace(recipe, steps=steps)


@contextlib.contextmanager
def _figures_shown(steps: int) -> Iterator[Report]:
    """What to hand to the training loop as `report`."""
    if not errors_to_terminal():
        yield lambda figures: _say_figures(figures, steps)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    loss = TextColumn("{task.fields[loss]}", markup=False)
    columns = (BarColumn(), MofNCompleteColumn(), TimeLeft(), loss)
    console = Console(stderr=True)
    with Progress(*columns, console=console, redirect_stdout=False) as bar:
        task = bar.add_task("", total=steps, loss="starting")

        def report(figures: Mapping[str, float]) -> None:
            if "loss" in figures:
                bar.update(task, completed=figures["step"], loss=f"loss {figures['loss']:.4f}")
            else:
                console.print(_line(figures, steps), markup=False, highlight=False)

        yield report


def _say_figures(figures: Mapping[str, float], steps: int) -> None:
    step = int(figures["step"])
    if "loss" not in figures or step % LINE_EVERY_STEPS == 0 or is_round(step) or step == steps:
        say(f"errseg: {_line(figures, steps)}")


def _line(figures: Mapping[str, float], steps: int) -> str:
    """A step's figures on one line: the loss, or what a validation measured."""
    shown = {name: value for name, value in figures.items() if name not in ("step", "source")}
    words = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
    return f"step {int(figures['step'])}/{steps}: {words}"
