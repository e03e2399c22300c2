"""Vocabularies: names, synonyms, ids and colours of the classes, parsed and checked once.

A vocabulary is text, one class per line:

    # a comment
    sky
    sofa, couch, settee                       # synonyms after commas
    Road users = person, rider, cyclist       # the name to show, where it is not the first synonym
    car #00008e                               # a colour; without one, the name gives it
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import importlib.resources
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from errseg.errors import VocabularyError
from errseg.palette import RGB, assign_colours, parse_colour
from errseg.records import UNLABELLED

MAX_CLASSES = UNLABELLED - 1
"""Most classes of a vocabulary: label maps are 16-bit and their last value marks no class."""

MAX_FILE_BYTES = 1_000_000
"""Largest class list read; a larger file is no class list."""

FILE_SUFFIXES = (".txt", ".csv", ".tsv", ".lst", ".list", ".json", ".yaml", ".yml")
"""Endings by which words on the command line are taken for the name of a file."""

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class ClassEntry:
    """One class.

    Attributes:
        id: index in the vocabulary, from 0.
        name: the name to show; unique in the vocabulary, whatever the case of its letters.
        synonyms: the words the text encoder sees, at least one, none twice.
        colour: RGB, 0..255, never black.
    """

    id: int
    name: str
    synonyms: tuple[str, ...]
    colour: RGB


@dataclass(frozen=True)
class Vocabulary:
    """The T classes of a run, in the order of their ids.

    Attributes:
        classes: T entries, `classes[i].id == i`.
        source: where they come from: a file name, "built-in ade20k-150" or "command line".
    """

    classes: tuple[ClassEntry, ...]
    source: str

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """The T names to show."""
        return tuple(entry.name for entry in self.classes)

    @property
    def synonyms(self) -> tuple[tuple[str, ...], ...]:
        """What the text encoder sees of each of the T classes."""
        return tuple(entry.synonyms for entry in self.classes)

    @property
    def colours(self) -> NDArray[np.uint8]:
        """(T, 3) uint8, RGB, 0..255."""
        return np.array([entry.colour for entry in self.classes], dtype=np.uint8)

    @property
    def hash(self) -> str:
        """SHA-256, 64 hex digits, of names, synonyms, colours and their order; not of `source`."""
        content = [(entry.name, entry.synonyms, entry.colour) for entry in self.classes]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class _Draft:
    """One class as written; `place` says where, as in "line 3"."""

    place: str
    name: str
    synonyms: tuple[str, ...]
    colour: RGB | None = None


def load_vocabulary(spec: str) -> Vocabulary:
    """The vocabulary that the user means by one string.

    In this order: an existing file; the name of a built-in vocabulary; classes written out. In the
    last case every comma separates two classes ("sky, road, car"), unless the string has more
    than one line: then it is read like a file.

    Raises:
        VocabularyError: what looks like a path does not exist, what looks like a built-in name is
            none, or the content is wrong; see `parse_vocabulary`.
    """
    spec = spec.strip()
    path = _existing_path(spec)
    if path is not None:
        return parse_vocabulary(_read_text(path), str(path))
    if spec.lower() in builtin_vocabularies():
        return _load_builtin(spec.lower())
    if "\n" in spec:
        return parse_vocabulary(spec, COMMAND_LINE)
    if _looks_like_path(spec):
        raise VocabularyError(
            f"there is no vocabulary file {spec!r}; give an existing text file, names with commas "
            f"between them, or a built-in vocabulary: {', '.join(builtin_vocabularies())}"
        )
    _refuse_misspelt_builtin(spec)
    return _parse_inline(spec)


def parse_vocabulary(text: str, source: str) -> Vocabulary:
    """The vocabulary written in `text`, one class per line.

    A line is `[name to show =] synonym, synonym, ... [#rrggbb]`. A line that starts with `#` is a
    comment, and so is what follows a `#` with blanks around it. Blank lines are skipped, several
    blanks count as one.

    Args:
        text: the lines.
        source: where the text comes from; error messages name it.

    Raises:
        VocabularyError: no class or too many, an empty or repeated name, two classes with the same
            synonyms, a bad colour, text that is not text; the message names source and line.
    """
    drafts = []
    # Not splitlines(): it also cuts where no editor starts a line, which shifts the numbers.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff")), start=1):
        content = re.sub(r"(^|\s)#(\s.*)?$", "", line).strip()
        if content and not content.startswith("#"):
            drafts.append(_parse_class(content, source, f"line {number}"))
    return _build(drafts, source)


def vocabulary_from_names(
    names: Sequence[str | Sequence[str]], source: str = "names"
) -> Vocabulary:
    """The vocabulary of a Python caller.

    Args:
        names: T classes, each a name or a sequence of synonyms, the first of which is its name.
        source: where the names come from; error messages name it.

    Raises:
        VocabularyError: as for `parse_vocabulary`, or something else than names came.
    """
    if isinstance(names, str):
        raise VocabularyError(
            f"{source}: got the string {names!r} instead of a sequence of names; "
            "write a list, or use load_vocabulary()"
        )
    drafts = []
    for number, item in enumerate(names, start=1):
        place = f"name {number}"
        where = f"{source}, {place}"
        synonyms = _clean_synonyms([item] if isinstance(item, str) else item, where)
        drafts.append(_Draft(place, synonyms[0], synonyms))
    return _build(drafts, source)


def builtin_vocabularies() -> tuple[str, ...]:
    """Names of the vocabularies that come with the package, in alphabetical order."""
    folder = importlib.resources.files("errseg") / "assets" / "vocabularies"
    files = [entry.name for entry in folder.iterdir()]
    return tuple(sorted(name.removesuffix(".txt") for name in files if name.endswith(".txt")))


def _load_builtin(name: str) -> Vocabulary:
    folder = importlib.resources.files("errseg") / "assets" / "vocabularies"
    text = (folder / f"{name}.txt").read_text(encoding="utf-8")
    return parse_vocabulary(text, f"built-in {name}")


def _existing_path(spec: str) -> Path | None:
    """The file of this name; a folder counts only where `spec` can be nothing but a path."""
    path = Path(spec)
    try:
        # Not is_file(): shells hand over pipes, as in --classes <(sort names.txt).
        exists = path.exists() and (not path.is_dir() or _looks_like_path(spec))
    except (OSError, ValueError):  # too long or not a possible file name: words, then
        return None
    return path if exists else None


def _looks_like_path(spec: str) -> bool:
    if spec.lower().endswith(FILE_SUFFIXES):
        return True
    return "," not in spec and ("/" in spec or "\\" in spec)


def _refuse_misspelt_builtin(spec: str) -> None:
    builtins = builtin_vocabularies()
    word = spec.lower()
    likely = [name for name in builtins if name.startswith(f"{word}-")]
    likely = likely or difflib.get_close_matches(word, builtins, n=1, cutoff=0.75)
    if likely:
        raise VocabularyError(
            f"there is no built-in vocabulary {spec!r}; did you mean {' or '.join(likely)}? "
            "A class of that name can be given in a text file"
        )


def _parse_inline(spec: str) -> Vocabulary:
    parts = spec.split(",") if spec else []
    drafts = [
        _parse_class(part.strip(), COMMAND_LINE, f"name {number}")
        for number, part in enumerate(parts, start=1)
    ]
    return _build(drafts, COMMAND_LINE)


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise VocabularyError(f"the vocabulary {str(path)!r} is a folder; give a text file")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise VocabularyError(
            f"the vocabulary {str(path)!r} cannot be read ({reason}); give a readable text file"
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise VocabularyError(
            f"{path}: larger than {MAX_FILE_BYTES / 1e6:g} MB, which no list of classes is; "
            "give a text file with one class per line"
        )
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise VocabularyError(
            f"{path}, line {line}: not text in UTF-8; save the file as UTF-8, one class per line"
        ) from error


def _parse_class(content: str, source: str, place: str) -> _Draft:
    where = f"{source}, {place}"
    content, colour = _split_colour(content, where)
    display, equals, words = content.rpartition("=")
    synonyms = _clean_synonyms(words.split(","), where)
    name = _clean_name(display, where) if equals else synonyms[0]
    return _Draft(place, name, synonyms, colour)


def _split_colour(content: str, where: str) -> tuple[str, RGB | None]:
    """Takes the colour off the end. A `#` within a word ("C#") belongs to the word."""
    match = re.search(r"(?:^|\s)#\S*$|#[0-9a-fA-F]{6}$", content)
    words = content[: match.start()] if match else content
    if stray := re.search(r"(?:^|[\s,=])(#\S*)", words):
        raise VocabularyError(
            f"{where}: {stray[1]!r} is not at the end; write the colour last, as in: sky #4682b4"
        )
    if match is None:
        return words, None
    return words, parse_colour(match[0].strip(), where)


def _clean_synonyms(words: Iterable[object], where: str) -> tuple[str, ...]:
    """The names without blanks too many; of repeated ones the first stays."""
    if not isinstance(words, Iterable):
        raise VocabularyError(f"{where}: got {words!r}; give a name or a sequence of synonyms")
    synonyms: dict[str, str] = {}
    for word in words:
        name = _clean_name(word, where)
        synonyms.setdefault(name.casefold(), name)
    if not synonyms:
        raise VocabularyError(f"{where}: no synonym; give at least one name")
    return tuple(synonyms.values())


def _clean_name(word: object, where: str) -> str:
    if not isinstance(word, str):
        raise VocabularyError(f"{where}: got {word!r}; a name has to be a string")
    # NFC: "é" may be one character or two; duplicates and the text encoder should see one form.
    name = unicodedata.normalize("NFC", " ".join(word.split()))
    if not name:
        raise VocabularyError(
            f"{where}: an empty name; write one, or remove the comma or = next to it"
        )
    if "," in name:
        raise VocabularyError(f"{where}: the name {name!r} holds a comma; give synonyms one by one")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise VocabularyError(
            f"{where}: not text (control characters in {name[:40]!r}); "
            "give a text file with one class per line"
        )
    return name


def _build(drafts: Sequence[_Draft], source: str) -> Vocabulary:
    if not drafts:
        raise VocabularyError(f"{source}: no class in it; write at least one name")
    if len(drafts) > MAX_CLASSES:
        raise VocabularyError(
            f"{source}: {len(drafts)} classes; at most {MAX_CLASSES} are possible"
        )
    _refuse_duplicates(drafts, source)
    colours = assign_colours([draft.name for draft in drafts], [draft.colour for draft in drafts])
    entries = enumerate(zip(drafts, colours, strict=True))
    return Vocabulary(
        tuple(ClassEntry(i, draft.name, draft.synonyms, colour) for i, (draft, colour) in entries),
        source,
    )


def _refuse_duplicates(drafts: Sequence[_Draft], source: str) -> None:
    """Names must differ, and so must the synonyms as a whole; single synonyms may be shared.

    The published lists share some (in ADE20K-847 "machine" is a class and a synonym of "car").
    """
    names: dict[str, _Draft] = {}
    meanings: dict[frozenset[str], _Draft] = {}
    for draft in drafts:
        first = names.setdefault(draft.name.casefold(), draft)
        if first is not draft:
            raise VocabularyError(
                f"{source}, {draft.place}: the class {draft.name!r} is already there "
                f"({first.place}); remove one, or give it another name"
            )
        meaning = frozenset(synonym.casefold() for synonym in draft.synonyms)
        first = meanings.setdefault(meaning, draft)
        if first is not draft:
            raise VocabularyError(
                f"{source}, {draft.place}: {draft.name!r} has the same synonyms as {first.name!r} "
                f"({first.place}), so no model can tell them apart; change or remove one"
            )
