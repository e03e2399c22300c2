from __future__ import annotations

import colorsys
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from skimage.color import rgb2lab

from errseg.errors import VocabularyError
from errseg.palette import assign_colours
from errseg.vocabulary import (
    MAX_CLASSES,
    MAX_FILE_BYTES,
    Vocabulary,
    builtin_vocabularies,
    load_vocabulary,
    parse_vocabulary,
    vocabulary_from_names,
)

BUILTIN_SIZES = {
    "ade20k-150": 150,
    "ade20k-847": 847,
    "cityscapes-19": 19,
    "coco-stuff-171": 171,
    "pascal-context-459": 459,
    "pascal-context-59": 59,
    "voc-20": 20,
}


def rows(vocabulary: Vocabulary) -> list[tuple[str, tuple[str, ...]]]:
    return [(entry.name, entry.synonyms) for entry in vocabulary.classes]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sky", [("sky", ("sky",))]),
        ("sky\nroad\n", [("sky", ("sky",)), ("road", ("road",))]),
        ("sky\r\nroad\rcar", [("sky", ("sky",)), ("road", ("road",)), ("car", ("car",))]),
        ("sofa, couch ,settee", [("sofa", ("sofa", "couch", "settee"))]),
        ("Couch = sofa, settee", [("Couch", ("sofa", "settee"))]),
        ("Couch=sofa", [("Couch", ("sofa",))]),
        (
            "\ttraffic \t light\t,  stop   light ",
            [("traffic light", ("traffic light", "stop light"))],
        ),
        ("# all\n\n  #too\nsky # blue, mostly\n#", [("sky", ("sky",))]),
        ("sky #", [("sky", ("sky",))]),
        ("C#, F# language", [("C#", ("C#", "F# language"))]),
        ("Car, car, CAR, auto", [("Car", ("Car", "auto"))]),
        ("\ufeffsky", [("sky", ("sky",))]),
        ("Straße, e\u0301tage", [("Straße", ("Straße", "\u00e9tage"))]),
        ("a\u2028b", [("a b", ("a b",))]),
        ("car, machine\nmachine", [("car", ("car", "machine")), ("machine", ("machine",))]),
        ("bag\nbag (purse) = bag, purse", [("bag", ("bag",)), ("bag (purse)", ("bag", "purse"))]),
    ],
)
def test_parse_names_and_synonyms(text: str, expected: list[tuple[str, tuple[str, ...]]]) -> None:
    assert rows(parse_vocabulary(text, "list.txt")) == expected


@pytest.mark.parametrize(
    ("text", "colour"),
    [
        ("sky #4682b4", (70, 130, 180)),
        ("sky #4682B4 # official", (70, 130, 180)),
        ("sky#4682b4", (70, 130, 180)),
        ("Sky = heaven, air\t#000001", (0, 0, 1)),
        ("sky #ffffff", (255, 255, 255)),
    ],
)
def test_given_colours_are_kept(text: str, colour: tuple[int, int, int]) -> None:
    entry = parse_vocabulary(text, "list.txt").classes[0]
    assert entry.colour == colour
    assert "#" not in entry.name + "".join(entry.synonyms)


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("", ["list.txt: no class"]),
        ("# only a comment\n\n", ["list.txt: no class"]),
        ("sky\n# note\nroad\nSKY", ["list.txt, line 4", "'SKY'", "line 1"]),
        ("car = auto\ncar", ["line 2", "'car'", "line 1"]),
        ("Car = auto, van\nBus = Van, auto", ["line 2", "same synonyms", "'Car'", "line 1"]),
        ("sky\nroad,,street", ["list.txt, line 2", "empty name"]),
        ("sky,", ["line 1", "empty name"]),
        ("= sky", ["line 1", "empty name"]),
        ("Sky =", ["line 1", "empty name"]),
        ("a, b = sky", ["line 1", "'a, b'", "comma"]),
        ("sky, #4682b4", ["line 1", "empty name"]),
        ("road\nsky #ff00", ["list.txt, line 2", "'#ff00'", "six hex digits"]),
        ("sky #gggggg", ["'#gggggg'", "not a colour"]),
        ("sky #ff00ff00", ["'#ff00ff00'", "not a colour"]),
        ("sky #blue", ["'#blue'", "not a colour"]),
        ("sky #4682b4 , heaven", ["'#4682b4'", "last"]),
        ("sky #4682b4 #4682b5", ["'#4682b4'", "last"]),
        ("sky #000000", ["line 1", "#000000", "without a class"]),
        ("sky\nro\x00ad", ["list.txt, line 2", "not text"]),
        ("\x1b[31msky", ["line 1", "not text"]),
        ("sky \udcff", ["line 1", "not text"]),
    ],
)
def test_bad_text_names_source_and_line(text: str, fragments: list[str]) -> None:
    with pytest.raises(VocabularyError) as caught:
        parse_vocabulary(text, "list.txt")
    message = str(caught.value)
    assert all(fragment in message for fragment in ["list.txt", *fragments]), message
    assert "\n" not in message


def test_most_classes() -> None:
    lines = [f"c{number}" for number in range(MAX_CLASSES + 1)]
    with pytest.raises(VocabularyError, match=f"65535 classes; at most {MAX_CLASSES}"):
        parse_vocabulary("\n".join(lines), "list.txt")


@pytest.mark.parametrize(
    "data",
    [
        b"sky, air\nroad\n",
        b"\xef\xbb\xbfsky, air\r\nroad\r\n",
        "sky, air\nroad".encode("utf-16"),
        b"\xfe\xff" + "sky, air\nroad".encode("utf-16-be"),
    ],
    ids=["utf-8", "utf-8 with BOM", "utf-16 little-endian", "utf-16 big-endian"],
)
def test_load_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(data)
    vocabulary = load_vocabulary(str(path))
    assert rows(vocabulary) == [("sky", ("sky", "air")), ("road", ("road",))]
    assert vocabulary.source == str(path)


@pytest.mark.parametrize(
    ("data", "fragments"),
    [
        (b"sky\nStra\xdfe\n", ["list.txt, line 2", "UTF-8"]),
        (b"\x89PNG\r\n\x1a\n", ["list.txt, line 1", "UTF-8"]),
        (b"sky\nroad\x00\x00\n", ["list.txt, line 2", "not text"]),
        (b"\xff\xfes", ["list.txt, line 1", "not text"]),
        (b"sky\n" * (MAX_FILE_BYTES // 4 + 1), ["list.txt", "larger than 1 MB"]),
        (b"", ["list.txt", "no class"]),
        (b"sky\nroad\nsky", ["list.txt, line 3", "line 1"]),
    ],
    ids=["latin-1", "png", "nul", "half utf-16", "large", "empty", "duplicate"],
)
def test_bad_files(tmp_path: Path, data: bytes, fragments: list[str]) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(data)
    with pytest.raises(VocabularyError) as caught:
        load_vocabulary(str(path))
    assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)


def test_unreadable_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VocabularyError, match="is a folder"):
        load_vocabulary(f"{tmp_path}/")

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "list.txt"
    path.write_text("sky")
    # Mode bits would not stop a root user.
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(VocabularyError, match=r"list.txt' cannot be read \(Permission denied\)"):
        load_vocabulary(str(path))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("sky, road ,car", ["sky", "road", "car"]),
        ("a red car", ["a red car"]),
        ("car", ["car"]),
        ("tv/monitor, sky", ["tv/monitor", "sky"]),
        ("Sky = heaven #4682b4, road", ["Sky", "road"]),
        ("sky, air\nroad", ["sky", "road"]),
        ("folder", ["folder"]),
        ("x" * 5000, ["x" * 5000]),
    ],
)
def test_names_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, expected: list[str]
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    vocabulary = load_vocabulary(spec)
    assert list(vocabulary.names) == expected
    assert vocabulary.source == "command line"


@pytest.mark.parametrize(
    ("spec", "fragments"),
    [
        ("", ["command line: no class"]),
        ("  \n ", ["command line: no class"]),
        ("sky,,road", ["command line, name 2", "empty name"]),
        ("sky, road, Sky", ["command line, name 3", "name 1"]),
        ("sky #12, road", ["command line, name 1", "'#12'"]),
        ("missing.txt", ["'missing.txt'", "ade20k-150", "voc-20"]),
        ("missing.CSV", ["'missing.CSV'", "ade20k-150"]),
        ("lists/missing", ["'lists/missing'", "ade20k-150"]),
        ("lists\\missing", ["ade20k-150"]),
        ("ade20k", ["did you mean ade20k-150 or ade20k-847?"]),
        ("coco", ["did you mean coco-stuff-171?"]),
        ("VOC20", ["did you mean voc-20?"]),
        ("cityscape-19", ["did you mean cityscapes-19?"]),
    ],
)
def test_bad_words_on_the_command_line(spec: str, fragments: list[str]) -> None:
    with pytest.raises(VocabularyError) as caught:
        load_vocabulary(spec)
    assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)


@pytest.mark.parametrize("name", ["voc-20", "car", "sky, road"])
def test_an_existing_file_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).write_text("lake")
    monkeypatch.chdir(tmp_path)
    assert load_vocabulary(name).names == ("lake",)


def test_a_pipe_is_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen([sys.executable, "-c", f"open({str(pipe)!r}, 'w').write('sky')"]):
        assert load_vocabulary(str(pipe)).names == ("sky",)


def test_builtins_are_all_there() -> None:
    assert {name: len(load_vocabulary(name)) for name in builtin_vocabularies()} == BUILTIN_SIZES
    assert load_vocabulary("VOC-20").source == "built-in voc-20"


@pytest.mark.parametrize(
    ("name", "class_id", "expected"),
    [
        ("ade20k-150", 0, ("wall", ("wall",))),
        ("ade20k-150", 149, ("flag", ("flag",))),
        ("ade20k-847", 1, ("building", ("building", "edifice"))),
        ("ade20k-847", 252, ("bag (handbag)", ("bag", "handbag", "pocketbook", "purse"))),
        ("ade20k-847", 114, ("bag", ("bag",))),
        ("coco-stuff-171", 79, ("toothbrush", ("toothbrush",))),
        ("coco-stuff-171", 170, ("wood", ("wood",))),
        ("pascal-context-59", 58, ("wood", ("wood",))),
        ("pascal-context-459", 458, ("wool", ("wool",))),
        ("voc-20", 19, ("tvmonitor", ("tvmonitor",))),
        ("cityscapes-19", 18, ("bicycle", ("bicycle",))),
    ],
)
def test_builtin_classes(name: str, class_id: int, expected: tuple[str, tuple[str, ...]]) -> None:
    entry = load_vocabulary(name).classes[class_id]
    assert (entry.id, entry.name, entry.synonyms) == (class_id, *expected)


def test_cityscapes_has_its_official_colours() -> None:
    vocabulary = load_vocabulary("cityscapes-19")
    colours = dict(zip(vocabulary.names, vocabulary.colours.tolist(), strict=True))
    assert colours["road"] == [128, 64, 128]
    assert colours["car"] == [0, 0, 142]
    assert colours["bicycle"] == [119, 11, 32]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["sky", "red  car"], [("sky", ("sky",)), ("red car", ("red car",))]),
        ([("sofa", "couch", "Sofa"), "C#"], [("sofa", ("sofa", "couch")), ("C#", ("C#",))]),
        (("x = y", "#1"), [("x = y", ("x = y",)), ("#1", ("#1",))]),
    ],
)
def test_names_from_python(
    names: Sequence[str | Sequence[str]], expected: list[tuple[str, tuple[str, ...]]]
) -> None:
    vocabulary = vocabulary_from_names(names)
    assert rows(vocabulary) == expected
    assert vocabulary.source == "names"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "names: no class"),
        ("sky", "the string 'sky' instead of a sequence"),
        (["sky", ""], "names, name 2: an empty name"),
        (["sky", []], "names, name 2: no synonym"),
        (["sky", None], "names, name 2: got None"),
        (["sky", ["road", 3]], "names, name 2: got 3"),
        (["sofa, couch"], "'sofa, couch' holds a comma"),
        (["sky", "road", "Sky"], r"names, name 3: the class 'Sky' is already there \(name 1\)"),
    ],
)
def test_bad_names_from_python(names: Sequence[str], message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        vocabulary_from_names(names)


def test_arrays_and_tuples_agree() -> None:
    vocabulary = parse_vocabulary("Sky = heaven, air #4682b4\nroad", "list.txt")
    assert len(vocabulary) == 2
    assert vocabulary.names == ("Sky", "road")
    assert vocabulary.synonyms == (("heaven", "air"), ("road",))
    assert vocabulary.colours.dtype == np.uint8
    assert vocabulary.colours.tolist() == [list(entry.colour) for entry in vocabulary.classes]


BASE = "sky, air #4682b4\nroad #804080"


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (f"# a comment\n{BASE}\n\n", True),
        ("road #804080\nsky, air #4682b4", False),
        ("sky, air #4682b5\nroad #804080", False),
        ("sky, wind #4682b4\nroad #804080", False),
        ("sky #4682b4\nroad #804080", False),
        ("Sky = sky, air #4682b4\nroad #804080", False),
    ],
)
def test_hash_follows_what_matters(text: str, same: bool) -> None:
    assert (parse_vocabulary(text, "other").hash == parse_vocabulary(BASE, "list").hash) is same


def test_hash_and_colours_are_equal_in_another_process() -> None:
    code = (
        "from errseg.vocabulary import load_vocabulary as load;"
        "v = load('sky, road, car'); print(v.hash, v.colours.tolist())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    output = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    vocabulary = load_vocabulary("sky, road, car")
    assert output.strip() == f"{vocabulary.hash} {vocabulary.colours.tolist()}"


def test_derived_colours_are_pinned() -> None:
    # A change here changes everybody's overlays: make it on purpose and say so in the changelog.
    assert load_vocabulary("sky, road, car").colours.tolist() == [
        [115, 160, 79],
        [138, 82, 37],
        [102, 173, 231],
    ]


@pytest.mark.parametrize("name", sorted(BUILTIN_SIZES))
def test_colours_differ(name: str) -> None:
    colours = load_vocabulary(name).colours
    assert len(np.unique(colours, axis=0)) == len(colours)


@pytest.mark.parametrize("name", sorted(BUILTIN_SIZES.keys() - {"cityscapes-19"}))
def test_derived_colours_are_colourful_and_apart(name: str) -> None:
    rgb = load_vocabulary(name).colours
    for channels in rgb / 255:
        _, saturation, brightness = colorsys.rgb_to_hsv(*channels)
        assert saturation > 0.48
        assert brightness > 0.49
    # An independent judge: CIELAB, in which 2.3 is just noticeable. Neighbours get thrice that.
    lab = rgb2lab(rgb[None])[0]
    assert np.linalg.norm(np.diff(lab, axis=0), axis=1).min() > 7


def test_a_name_keeps_its_colour_and_makes_room_for_given_ones() -> None:
    (alone,) = assign_colours(["sky"], [None])
    assert assign_colours(["road", "SKY"], [(1, 2, 3), None])[1] == alone
    first, second = assign_colours(["sky", "road"], [None, alone])
    assert second == alone
    assert first != alone
