"""Which files are found, and what they are called."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from errseg.errors import UsageError
from errseg.reading import read_frames
from errseg.records import Failure, Frame
from errseg.sources import (
    SourceFile,
    find_sources,
    parse_shard,
    shard,
    split_list,
)

TREE = [
    "pics/b.jpg",
    "pics/a.PNG",
    "pics/notes.txt",
    "pics/noext",
    "pics/.hidden.jpg",
    "pics/.cache/x.jpg",
    "pics/sub/c.tif",
    "pics/sub/deep/d.webp",
    "pics/also/a.PNG",
    "other/b.jpg",
    "other/e.dat",
]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty files: finding opens none of them. The working folder is theirs."""
    touch(tmp_path, TREE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(root: Path, names: Iterable[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(
    inputs: list[str], listed: Iterable[str] | None = None, exclude: Path | None = None
) -> list[str]:
    sources, failures = find_sources(inputs, listed=listed, exclude=exclude)
    assert failures == []
    return [source.source for source in sources]


ALL_IN_PICS = ["a.PNG", "b.jpg", "also/a.PNG", "sub/c.tif", "sub/deep/d.webp"]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["pics"], ALL_IN_PICS),
        (["pics/"], ALL_IN_PICS),
        (["./other/../pics"], ALL_IN_PICS),
        (["pics/sub"], ["c.tif", "deep/d.webp"]),
        (["pics/.cache"], ["x.jpg"]),
        (["pics", "other"], [*ALL_IN_PICS, "b.jpg"]),
        (["other", "pics"], ["b.jpg", *ALL_IN_PICS]),
        (["pics", "pics"], ALL_IN_PICS),
        (["pics/b.jpg"], ["b.jpg"]),
        (["pics/b.jpg", "pics/a.PNG"], ["b.jpg", "a.PNG"]),
        (["pics/b.jpg", "other/b.jpg"], ["pics/b.jpg", "other/b.jpg"]),
        (["pics/b.jpg", "pics/sub/c.tif"], ["b.jpg", "sub/c.tif"]),
        (["pics/b.jpg", "pics/../pics/b.jpg"], ["b.jpg"]),
        (["pics/notes.txt", "other/e.dat"], ["pics/notes.txt", "other/e.dat"]),
        (["pics/.hidden.jpg"], [".hidden.jpg"]),
        (["pics/b.jpg", "pics"], ["b.jpg", "a.PNG", *ALL_IN_PICS[2:]]),
        (["pics/*.jpg"], ["b.jpg"]),
        (["pics/*"], ALL_IN_PICS),
        (["pics/*/"], ALL_IN_PICS[2:]),
        (["pics/s*"], ["sub/c.tif", "sub/deep/d.webp"]),
        (["pics/*/*"], ALL_IN_PICS[2:]),
        (["pics/**/*.PNG"], ["a.PNG", "also/a.PNG"]),
        (["pics/**"], ALL_IN_PICS),
        (["pics/**/d*"], ["sub/deep/d.webp"]),
        (["**/deep/*"], ["pics/sub/deep/d.webp"]),
        (["*/b.jpg"], ["other/b.jpg", "pics/b.jpg"]),
        (["pics/[ab].*"], ["a.PNG", "b.jpg"]),
        (["pics/?.jpg", "other"], ["b.jpg", "b.jpg"]),
    ],
)
def test_what_is_found_and_what_it_is_called(
    tree: Path, inputs: list[str], expected: list[str]
) -> None:
    assert names(inputs) == expected


def test_absolute_and_relative_inputs_agree(tree: Path) -> None:
    for pattern in ("pics", "pics/*", "pics/b.jpg"):
        assert names([str(tree / pattern)]) == names([pattern])


def test_paths_lead_to_the_files(tree: Path) -> None:
    sources, _ = find_sources(["pics", "other/*.jpg", "pics/notes.txt"])
    assert [source.path.is_file() for source in sources] == [True] * 7
    assert sources[-1] == SourceFile(Path("pics/notes.txt"), "notes.txt")


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (["pics/b.jpg"], ["b.jpg"]),
        (["pics/b.jpg", "other/b.jpg"], ["pics/b.jpg", "other/b.jpg"]),
        (iter(["pics/sub/c.tif", "pics/b.jpg"]), ["sub/c.tif", "b.jpg"]),
        (["pics/notes.txt"], ["notes.txt"]),
    ],
)
def test_list_of_paths(tree: Path, listed: Iterable[str], expected: list[str]) -> None:
    assert names(["-"], listed) == expected


def test_named_and_listed_files_share_one_root_and_keep_their_order(tree: Path) -> None:
    found = names(["other/b.jpg", "-", "pics/sub", "pics/a.PNG"], ["pics/b.jpg"])
    assert found == ["other/b.jpg", "pics/b.jpg", "c.tif", "deep/d.webp", "pics/a.PNG"]


def test_listed_paths_that_are_no_files_fail_one_by_one(tree: Path) -> None:
    listed = ["gone.jpg", "pics/b.jpg", "pics", "nul\0", "x" * 5000, "pics/*.jpg"]
    sources, failures = find_sources(["-"], listed=listed)
    assert [source.source for source in sources] == ["b.jpg"]
    assert [failure.source for failure in failures] == [listed[i] for i in (0, 2, 3, 4, 5)]
    for failure, message in zip(
        failures, ["no such file", "a folder", "not a path", "too long", "no such"], strict=True
    ):
        assert message in failure.message
        assert "\n" not in failure.message


def test_failures_alone_are_returned(tree: Path) -> None:
    sources, failures = find_sources(["-"], listed=["gone.jpg"])
    assert sources == []
    assert len(failures) == 1


@pytest.mark.parametrize(
    ("inputs", "listed", "message"),
    [
        (["gone.jpg"], None, r"'gone\.jpg': no such file.*Expected a file, a folder"),
        (["pics", "gone"], None, "'gone': no such file"),
        (["pics/b.jpg/x"], None, "not a directory"),
        ([""], None, "'': an empty name"),
        (["x" * 5000], None, "too long"),
        (["pics/*.bmp"], None, r"'pics/\*\.bmp' matches no picture"),
        (["gone/*.jpg"], None, "matches no picture"),
        (["other/*.dat"], None, "matches no picture"),
        (["-"], None, "Input '-' needs a list of paths"),
        (["-"], [], "standard input is empty"),
        (["-", "empty"], [], "No picture or video in '-', 'empty'"),
        (
            ["empty"],
            None,
            r"No picture or video in 'empty'; looked for files ending in \.3gp, \.avi",
        ),
        ([], None, "No picture or video in no input"),
    ],
)
def test_wrong_usage(tree: Path, inputs: list[str], listed: list[str] | None, message: str) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(UsageError, match=message):
        find_sources(inputs, listed=listed)


def test_magic_characters_in_the_name_of_a_real_file_or_folder(tree: Path) -> None:
    touch(tree, ["set[1]/x.jpg", "set1/y.jpg", "what?.jpg", "whats.jpg"])
    assert names(["set[1]"]) == ["x.jpg"]
    assert names(["what?.jpg"]) == ["what?.jpg"]
    assert names(["set[12]"]) == ["set1/y.jpg"]


@pytest.mark.parametrize("inputs", [["pics"], ["pics/*"], ["pics/**/*"]])
def test_output_folder_is_never_entered(tree: Path, inputs: list[str]) -> None:
    touch(tree, ["pics/out/overlays/b.jpg"])
    assert "out/overlays/b.jpg" in names(inputs)
    assert names(inputs, exclude=Path("pics/out")) == ALL_IN_PICS
    assert names(inputs, exclude=tree / "other" / ".." / "pics" / "out") == ALL_IN_PICS
    (tree / "link").symlink_to(tree / "pics" / "out")
    assert names(inputs, exclude=tree / "link") == ALL_IN_PICS


def test_output_folder_as_input_is_refused(tree: Path) -> None:
    with pytest.raises(UsageError, match="'pics' is also the output folder"):
        find_sources(["pics"], exclude=tree / "pics")


def test_output_folder_that_does_not_exist_yet(tree: Path) -> None:
    assert names(["pics"], exclude=Path("pics/new")) == ALL_IN_PICS


def test_links_are_followed_and_loops_are_cut(tree: Path) -> None:
    (tree / "pics" / "loop").symlink_to(tree / "pics")
    (tree / "pics" / "sub" / "up").symlink_to("..")
    (tree / "pics" / "zlink").symlink_to(tree / "other")
    assert names(["pics"]) == [*ALL_IN_PICS, "zlink/b.jpg"]
    assert names(["pics/**/*.jpg"]) == ["b.jpg", "zlink/b.jpg"]


def test_folder_reached_by_two_ways_is_walked_twice(tree: Path) -> None:
    (tree / "other" / "again").symlink_to(tree / "pics" / "sub" / "deep")
    (tree / "other" / "more").symlink_to(tree / "pics" / "sub" / "deep")
    assert names(["other"]) == ["b.jpg", "again/d.webp", "more/d.webp"]


def test_broken_links_are_found_and_fail_when_read(tree: Path) -> None:
    (tree / "links").mkdir()
    (tree / "links" / "gone.jpg").symlink_to(tree / "nowhere.jpg")
    (tree / "links" / "self.jpg").symlink_to(tree / "links" / "self.jpg")
    sources, failures = find_sources(["links"])
    assert failures == []
    results = list(read_frames(sources))
    assert [(type(r), r.source) for r in results] == [
        (Failure, "gone.jpg"),
        (Failure, "self.jpg"),
    ]


def test_folder_that_cannot_be_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.scandir

    def refuse(folder: Path) -> object:
        # What the system does, unless the tests run as root, who may read anything.
        if Path(folder).name == "sub":
            raise PermissionError(13, "Permission denied", str(folder))
        return really(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    sources, failures = find_sources(["pics"])
    assert [source.source for source in sources] == ALL_IN_PICS[:3]
    assert [failure.source for failure in failures] == ["sub"]
    assert "Cannot read folder 'pics/sub': Permission denied" in failures[0].message


def test_glob_does_not_walk_what_cannot_match(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.scandir
    opened: list[str] = []

    def noted(folder: Path) -> object:
        opened.append(str(folder))
        return really(folder)

    monkeypatch.setattr(os, "scandir", noted)
    find_sources(["pics/*.jpg"])
    assert opened == ["pics"]


ODD_NAMES = [
    b"line\nbreak.png",
    b"not utf-8 \xff.png",
    "naïve 🦆.png".encode(),
    b" space .png",
    b"n" * 251 + b".png",
]


def test_odd_names_survive(tmp_path: Path) -> None:
    for name in ODD_NAMES:
        Image.new("RGB", (2, 1)).save(tmp_path / os.fsdecode(name))
    expected = sorted(os.fsdecode(name) for name in ODD_NAMES)
    assert names([str(tmp_path)]) == expected
    assert names(["-"], [str(tmp_path / name) for name in expected]) == expected
    sources, _ = find_sources([str(tmp_path)])
    assert [(type(r), r.source) for r in read_frames(sources)] == [(Frame, x) for x in expected]


@pytest.mark.parametrize(
    ("data", "nul", "expected"),
    [
        (b"", False, []),
        (b"a\nb c\r\n\n  \nd", False, ["a", "b c", "d"]),
        (b"a\0b\nc\0\0 \0", True, ["a", "b\nc", " "]),
        (b"\xff.jpg\n", False, ["\udcff.jpg"]),
    ],
)
def test_lists_are_split(data: bytes, nul: bool, expected: list[str]) -> None:
    assert list(split_list(io.BytesIO(data), nul)) == expected


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "1/0", "a/b", "-1/3", "1/3/5", "1.0/3"])
def test_shards_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="must be I/N"):
        parse_shard(text)


def test_shards_are_all_there_is_and_stay_what_they_are() -> None:
    sources = [SourceFile(Path(f"{i}.jpg"), f"{i}.jpg") for i in range(500)]
    parts = [shard(sources, *parse_shard(f"{i}/3")) for i in (1, 2, 3)]
    assert sorted(s.source for part in parts for s in part) == sorted(s.source for s in sources)
    assert all(130 <= len(part) <= 200 for part in parts)
    fewer = shard(sources[::2], 2, 3)
    assert fewer == [source for source in parts[1] if source in sources[::2]]
    assert shard([SourceFile(Path("a"), "not utf-8 \udcff")], 1, 1)


def test_a_pipe_beside_other_inputs_is_refused() -> None:
    with pytest.raises(UsageError, match="give no other input"):
        find_sources(["pipe:", "a.jpg"])


def test_results_of_another_run_are_no_inputs(tmp_path: Path) -> None:
    for name in ("a.png", "out/overlays/a.jpg", "out/labels/a.png", "deep/out2/labels/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1, 1)).save(tmp_path / name)
    for folder in ("out", "deep/out2"):
        for name in ("run.json", "classes.csv"):
            (tmp_path / folder / name).touch()
    assert [s.source for s in find_sources([str(tmp_path)])[0]] == ["a.png"]
    # asked for by name, they are
    assert [s.source for s in find_sources([str(tmp_path / "out")])[0]] == [
        "labels/a.png",
        "overlays/a.jpg",
    ]
