"""What the classes of the data sets are called, and the embeddings of these names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from errseg.datasets import LabelledFolder
from errseg.model.text_encoder import TextEncoder, embed_classes
from errseg.training.data import Meanings, Thing, TrainingBatch
from errseg.training.recipe import DataSource, Recipe
from errseg.vocabulary import load_vocabulary

DISTRACTOR_LIMIT = 0.4
"""A name is no distractor for a set that has a class with a more similar embedding."""


def learnt_meanings(recipe: Recipe, folders: Sequence[LabelledFolder]) -> list[Meanings]:
    """Per data set, what its classes mean, with all the names that they are to learn under."""
    groups = load_vocabulary(str(recipe.synonyms)).synonyms if recipe.synonyms else ()
    same = {name: group for group in groups for name in group}

    def thing(own: tuple[str, ...]) -> Thing:
        others = dict.fromkeys(other for name in own for other in same.get(name, ()))
        return Thing(own, tuple(name for name in others if name not in own))

    def meanings(folder: LabelledFolder, source: DataSource) -> Meanings:
        known = thing if source.own_names < 1 else Thing
        return [
            [known((name,)) for name in own] if source.unions else [known(tuple(own))]
            for own in folder.vocabulary.synonyms
        ]

    return [meanings(folder, source) for folder, source in zip(folders, recipe.data, strict=True)]


def all_names(meanings: Sequence[Meanings]) -> list[str]:
    return sorted({name for own in meanings for name in _names(own)})


def _names(meanings: Meanings) -> list[str]:
    """All names of a set, in the order of `draw_naming`'s columns."""
    return [name for things in meanings for thing in things for name in thing.names]


class ClassTexts:
    """The names' embeddings, made once; or anew in each step, where the text tower is trained."""

    def __init__(
        self,
        recipe: Recipe,
        folders: Sequence[LabelledFolder],
        meanings: Sequence[Meanings],
        encoder: TextEncoder,
    ) -> None:
        self.recipe, self.folders, self.meanings = recipe, folders, meanings
        self.encoder = encoder
        self.names = all_names(meanings)
        self.trained = isinstance(encoder, nn.Module) and any(
            parameter.requires_grad for parameter in encoder.parameters()
        )
        row = {name: index for index, name in enumerate(self.names)}
        self.own_rows = [torch.tensor([row[name] for name in _names(own)]) for own in meanings]
        with torch.no_grad():
            self.embeddings = self._encode(range(len(self.names)))
        self.candidates = [self._candidates(index) for index in range(len(folders))]

    def _encode(self, rows: Sequence[int]) -> Tensor:
        names = [[self.names[row]] for row in rows]
        return embed_classes(self.encoder, names, self.recipe.model.prompt)

    def _candidates(self, index: int) -> NDArray[np.int64]:
        """The names (of all sets') that are absent from this set's pictures, or may be taken so."""
        nearest = (self.embeddings @ self.embeddings[self.own_rows[index]].T).amax(dim=1)
        absent = (nearest < DISTRACTOR_LIMIT).cpu().numpy()
        doubtful = {
            name
            for folder, own in zip(self.folders, self.meanings, strict=True)
            if folder.folder.name in self.recipe.data[index].overlapping
            for name in _names(own)
        }
        return np.flatnonzero(absent & [name not in doubtful for name in self.names])

    def of_batch(self, batch: TrainingBatch) -> Tensor:
        """(R, D) embeddings of the batch's classes or their parts, then of the distractors."""
        used = batch.naming.any(dim=0)
        rows = torch.cat([self.own_rows[batch.source][used], batch.distractors])
        if self.trained:
            distinct, places = rows.unique(return_inverse=True)
            embeddings = self._encode(distinct.tolist())[places.to(self.embeddings.device)]
        else:
            embeddings = self.embeddings[rows.to(self.embeddings.device)]
        # float32 whatever the autocast, as are the cost maps: near classes must not tie
        with torch.autocast(embeddings.device.type, enabled=False):
            count = int(used.sum())
            own = batch.naming[:, used].to(embeddings.device) @ embeddings[:count]
            text = F.normalize(torch.cat([own, embeddings[count:]]), dim=-1)
            noise = torch.randn_like(text) * (self.recipe.text_noise / text.shape[1] ** 0.5)
            return F.normalize(text + noise, dim=-1)
