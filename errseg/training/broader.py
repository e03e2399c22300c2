"""Broader classes for a data set whose own are finer than what people say: dog, not whippet."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from errseg.datasets import LabelledFolder
from errseg.errors import ConfigError
from errseg.vocabulary import parse_vocabulary


def broadened(folder: LabelledFolder, path: Path) -> LabelledFolder:
    """The same pictures and label maps under broader classes.

    Args:
        folder: its n-th picture is of class n alone.
        path: a text file; of each broader class a line `NUMBERS: names`, the numbers of its members
            (`3, 5-9`) and what it is called, synonyms after commas. `#` begins a comment.

    Returns:
        The pictures that are of a broader class; each label map says that class.

    Raises:
        ConfigError: the file cannot be read, or a line is not of this form.
        VocabularyError: a name is none.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the broader classes {path}: {error}.") from error
    ids = [-1] * len(folder.ids)
    names: list[str] = []
    for place, line in enumerate(lines, 1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        numbers, colon, named = content.partition(":")
        if not colon or not named.strip():
            raise ConfigError(f"{path}:{place} is {line!r}; it must be NUMBERS: names.")
        for number in _numbers(numbers, f"{path}:{place}"):
            if not number < len(ids) or ids[number] >= 0:
                raise ConfigError(
                    f"{path}:{place} names class {number}; it must be one of the {len(ids)} "
                    "of the data set, and of one broader class."
                )
            ids[number] = len(names)
        names.append(named)
    return dataclasses.replace(
        folder,
        vocabulary=parse_vocabulary("\n".join(names), str(path)),
        ids=tuple(ids),
        pairs=tuple(pair for pair, own in zip(folder.pairs, ids, strict=True) if own >= 0),
    )


def _numbers(text: str, where: str) -> Iterator[int]:
    """Of `3, 5-9`: 3, 5, 6, 7, 8, 9."""
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise ConfigError(f"{where} has {part.strip()!r} for numbers; write 3, 5-9.")
        yield from range(int(first), int(last or first) + 1)
