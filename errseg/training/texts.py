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
from errseg.training.data import TrainingBatch
from errseg.training.recipe import Recipe
from errseg.vocabulary import load_vocabulary

DISTRACTOR_LIMIT = 0.4
"""A name is no distractor for a set that has a class with a more similar embedding."""

Synonyms = Sequence[Sequence[Sequence[str]]]
"""Per data set and class, its names."""


def learnt_synonyms(recipe: Recipe, folders: Sequence[LabelledFolder]) -> list[list[Sequence[str]]]:
    """Per data set and class, the names it learns under: its own, and those that mean the same."""
    groups = load_vocabulary(str(recipe.synonyms)).synonyms if recipe.synonyms else ()
    same = {name: group for group in groups for name in group}
    return [
        [
            own
            if source.unions
            else tuple(
                dict.fromkeys([*own, *(other for name in own for other in same.get(name, ()))])
            )
            for own in folder.vocabulary.synonyms
        ]
        for folder, source in zip(folders, recipe.data, strict=True)
    ]


def all_names(synonyms: Synonyms) -> list[str]:
    return sorted({name for own in synonyms for group in own for name in group})


class ClassTexts:
    """The names' embeddings, made once; or anew in each step, where the text tower is trained."""

    def __init__(
        self,
        recipe: Recipe,
        folders: Sequence[LabelledFolder],
        synonyms: Synonyms,
        encoder: TextEncoder,
    ) -> None:
        self.recipe, self.folders, self.synonyms = recipe, folders, synonyms
        self.encoder = encoder
        self.names = all_names(synonyms)
        self.trained = isinstance(encoder, nn.Module) and any(
            parameter.requires_grad for parameter in encoder.parameters()
        )
        row = {name: index for index, name in enumerate(self.names)}
        self.own_rows = [
            torch.tensor([row[name] for group in own for name in group]) for own in synonyms
        ]
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
            for folder, groups in zip(self.folders, self.synonyms, strict=True)
            if folder.folder.name in self.recipe.data[index].overlapping
            for group in groups
            for name in group
        }
        return np.flatnonzero(absent & [name not in doubtful for name in self.names])

    def of_batch(self, batch: TrainingBatch) -> Tensor:
        """(T, D) embeddings of the set's classes, by this step's names, then of the distractors."""
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
