"""Recipes: what a file may say, and what is wrong with those that say something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from errseg.config import PRESETS
from errseg.errors import ConfigError
from errseg.training.recipe import load_recipe

GOOD = """
steps = 10
crop = [64, 96]
validation = ["val"]

[model]
preset = "tiny"
channels = 32

[[data]]
folder = "train"
weight = 2.0
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text, "utf-8")
    return path


def test_settings_and_folders_relative_to_the_file(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert (recipe.steps, recipe.crop, recipe.model.channels) == (10, (64, 96), 32)
    assert recipe.data[0].folder == tmp_path / "train"
    assert recipe.validation == (tmp_path / "val",)


def test_folders_relative_to_a_given_root(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD), root=Path("/elsewhere"))
    assert recipe.data[0].folder == Path("/elsewhere/train")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("steps = 10", "stepps = 10", "stepps"),
        ('preset = "tiny"', 'preset = "huge"', "huge"),
        ("channels = 32", "chanels = 32", "chanels"),
        ("channels = 32", "channels = 33", "33"),
        ("weight = 2.0", "wait = 2.0", "wait"),
        ('folder = "train"', "", "folder"),
        ("steps = 10", "steps = ", "TOML"),
        ("[[data]]", "[[dater]]", "data"),
        ("crop = [64, 96]", "crop = [64, 90]", "90"),
        ("steps = 10", "steps = 0", "steps"),
        ("steps = 10", "accumulate = 0", "accumulate"),
        ("steps = 10", 'precision = "fp8"', "fp8"),
        ("steps = 10", 'augmentation = "none"', "augmentation"),
        ("steps = 10", 'tuning = "published"', "CLIP"),
        ("steps = 10", "init_share = 1.5", "init_share"),
        ("steps = 10", 'init_share = "half"', "init_share"),
        ("steps = 10", "synonyms = 3", "synonyms"),
        ("steps = 10", 'extends = "a\\u0000b"', "extends"),
        ("weight = 2.0", "degraded = -0.5", "degraded"),
        ("weight = 2.0", 'hue = "red"', "hue"),
        ("weight = 2.0", "own_names = 2", "own_names"),
        ("weight = 2.0", "copy_paste = 2", "copy_paste"),
        ("weight = 2.0", "apart = 0.5", "unions"),
        ("weight = 2.0", 'broader = "broader.txt"', "pseudo_labels"),
        ("weight = 2.0", "pseudo_labels = true\nbroader = 3", "broader"),
        ("weight = 2.0", "unions = true\napart = -1", "apart"),
        ("weight = 2.0", "refined = true", "pseudo_labels"),
        ("weight = 2.0", "pseudo_labels = true\nrefined = true", "segments already"),
        ('[model]\npreset = "tiny"\nchannels = 32\n', "model = 3", "model"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=named) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_recipe(tmp_path / "nowhere.toml")


def test_a_recipe_has_what_it_does_not_say_from_the_one_it_extends(tmp_path: Path) -> None:
    (tmp_path / "same.txt").touch()
    write(tmp_path, 'synonyms = "same.txt"\n' + GOOD)
    (tmp_path / "more").mkdir()
    path = tmp_path / "more" / "second.toml"
    path.write_text('extends = "../recipe.toml"\nsteps = 20\n[model]\nlayers = 3\n')
    recipe = load_recipe(path, root=tmp_path)
    base = load_recipe(tmp_path / "recipe.toml")
    assert (recipe.steps, recipe.crop, recipe.data) == (20, base.crop, base.data)
    assert (recipe.model.channels, recipe.model.layers) == (32, 3)
    assert recipe.synonyms is not None and recipe.synonyms.samefile(tmp_path / "same.txt")
    path.write_text('extends = "../recipe.toml"\n[[data]]\nfolder = "other"\n')
    assert [source.folder.name for source in load_recipe(path).data] == ["other"]


def test_recipes_that_extend_one_another_are_refused(tmp_path: Path) -> None:
    write(tmp_path, 'extends = "other.toml"\n' + GOOD)
    (tmp_path / "other.toml").write_text('extends = "recipe.toml"\n')
    with pytest.raises(ConfigError, match=r"extends itself.*recipe\.toml"):
        load_recipe(tmp_path / "recipe.toml")
    write(tmp_path, 'extends = "nowhere.toml"\n' + GOOD)
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_recipe(tmp_path / "recipe.toml")
    write(tmp_path, "extends = 3\n" + GOOD)
    with pytest.raises(ConfigError, match="extends is 3"):
        load_recipe(tmp_path / "recipe.toml")


@pytest.mark.parametrize(
    "name", ["errseg-mini", "errseg-mini-second", "errseg-mini-third", "errseg-mini-fourth"]
)
def test_the_recipes_of_the_embedded_model_load(name: str) -> None:
    shipped = Path(__file__).parents[2] / "errseg" / "assets" / "recipes" / f"{name}.toml"
    recipe = load_recipe(shipped, root=Path("data"))
    assert recipe.model.name == "errseg-mini"
    assert {source.folder.parent for source in recipe.data} == {Path("data/train")}
    assert {folder.parent for folder in recipe.validation} == {Path("data/val")}


@pytest.mark.parametrize(("name", "side"), [("errseg-base", 640), ("errseg-large", 768)])
def test_the_published_recipes_load(name: str, side: int) -> None:
    shipped = Path(__file__).parents[2] / "errseg" / "assets" / "recipes" / f"{name}.toml"
    recipe = load_recipe(shipped, root=Path("data"))
    assert recipe.model == PRESETS[name]
    assert recipe.crop == recipe.model.image_size == (side, side)
    assert (recipe.steps, recipe.batch_size, recipe.keep) == (80_000, 4, 32)
    assert (recipe.learning_rate, recipe.trunk_rate, recipe.weight_decay) == (2e-4, 0.01, 1e-4)
    assert (recipe.init, recipe.tuning, recipe.augmentation) == ("clip", "published", "published")
    assert recipe.data[0].folder == Path("data/train/coco-stuff")
