"""Class embeddings in training: the same whether kept or made anew, and then with gradient."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import nn

from errseg.datasets import open_folder
from errseg.model.err_seg import ErrSeg
from errseg.training.data import Thing, TrainingBatches
from errseg.training.recipe import Recipe
from errseg.training.texts import ClassTexts, all_names, learnt_meanings


def test_a_trained_tower_embeds_anew_with_gradient(recipe: Recipe) -> None:
    recipe = dataclasses.replace(recipe, text_noise=0.1)
    folders = [open_folder(source.folder) for source in recipe.data]
    meanings = learnt_meanings(recipe, folders)
    encoder = ErrSeg(recipe.model).text_encoder
    assert isinstance(encoder, nn.Module)
    trained = ClassTexts(recipe, folders, meanings, encoder)
    encoder.requires_grad_(False)
    kept = ClassTexts(recipe, folders, meanings, encoder)
    encoder.requires_grad_(True)
    assert (trained.trained, kept.trained) == (True, False)
    batches = TrainingBatches(recipe, folders, meanings, trained.candidates)
    for number in range(3):
        torch.manual_seed(number)
        anew = trained.of_batch(batches[number])
        torch.manual_seed(number)
        torch.testing.assert_close(anew, kept.of_batch(batches[number]))
        assert anew.requires_grad
    torch.manual_seed(0)
    exact = kept.of_batch(batches[0])
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kept.of_batch(batches[0]), exact)
    torch.nn.init.normal_(next(iter(encoder.parameters())))
    torch.manual_seed(0)
    assert not torch.allclose(trained.of_batch(batches[0]), kept.of_batch(batches[0]))


def test_names_that_mean_the_same_are_learnt_for_each_thing(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "same.txt"
    path.write_text("lake, pond\nbrick, stone\n")
    data = (recipe.data[0], dataclasses.replace(recipe.data[1], unions=True))
    recipe = dataclasses.replace(recipe, data=data, synonyms=path)
    folders = [open_folder(source.folder) for source in recipe.data]
    first, second = learnt_meanings(recipe, folders)
    assert first == [
        [Thing(("brick", "red wall"), ("stone",))],
        [Thing(("lawn",))],
        [Thing(("lake",), ("pond",))],
    ]
    assert second == [
        [Thing(("brick",), ("stone",)), Thing(("red wall",))],
        [Thing(("lawn",))],
        [Thing(("lake",), ("pond",))],
    ]
    own = dataclasses.replace(recipe.data[0], own_names=1.0)
    (plain,) = learnt_meanings(dataclasses.replace(recipe, data=(own,)), folders[:1])
    assert [thing.names for things in plain for thing in things] == [
        ("brick", "red wall"),
        ("lawn",),
        ("lake",),
    ]
    assert all_names([first, second]) == sorted(
        ["brick", "red wall", "stone", "lawn", "lake", "pond"]
    )
