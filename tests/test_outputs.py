from __future__ import annotations

import json
import unicodedata
from pathlib import Path, PurePosixPath

import pytest

from errseg.errors import OutputError, UsageError
from errseg.outputs import (
    OUTPUT_KINDS,
    RUN_FILE,
    check_kinds,
    output_paths,
    plan_outputs,
    refuse_leftovers,
)

NFD_E = unicodedata.normalize("NFD", "é")

AWKWARD_SOURCES = [
    "plain.jpg",
    "a/b.c/two words.tif",
    "dog \N{DOG FACE}.png",
    "new\nline.png",
    "return\rhere, and a comma.png",
    'quote".png',
    "not utf-8 \udcff.png",
    "no suffix",
    "n" * 246 + ".png",
]


@pytest.mark.parametrize(
    ("source", "label_path"),
    [
        ("a.jpg", "labels/a.png"),
        ("a/b/c.tiff", "labels/a/b/c.png"),
        ("2024.05.01.jpg", "labels/2024.05.01.png"),
        ("a.b/c", "labels/a.b/c.png"),
        ("two words \N{DOG FACE}.png", "labels/two words \N{DOG FACE}.png"),
    ],
)
def test_output_paths_keep_the_folders(source: str, label_path: str) -> None:
    paths = output_paths(source, OUTPUT_KINDS)
    assert paths["labels"] == PurePosixPath(label_path)
    assert paths["overlays"] == PurePosixPath(
        label_path.replace("labels", "overlays", 1).removesuffix(".png") + ".jpg"
    )
    assert set(paths) == {"labels", "overlays"}


@pytest.mark.parametrize("source", ["", "/etc/a.jpg", "../a.jpg", "a/../../b.jpg"])
def test_sources_that_lead_out_of_the_folder_are_refused(source: str) -> None:
    with pytest.raises(OutputError, match="below the input root"):
        output_paths(source, OUTPUT_KINDS)


@pytest.mark.parametrize(
    ("sources", "named"),
    [
        (["a.jpg", "b.jpg", "a.png"], ("'a.jpg'", "'a.png'")),
        (["x/a.jpg", "x/A.jpg"], ("'x/a.jpg'", "'x/A.jpg'")),
        (["X/a.jpg", "x/a.jpg"], ("'X/a.jpg'", "'x/a.jpg'")),
        (["é.jpg", NFD_E + ".png"], ("é.jpg", NFD_E + ".png")),
        (["a.png", "a.jpg/b.png"], ("'a.png'", "'a.jpg/b.png'")),
        (["A.JPG/x/b.png", "a.png"], ("'a.png'", "'A.JPG/x/b.png'")),
        (["a.jpg", "a.jpg"], ("2 pictures", "'a.jpg'")),
    ],
)
def test_collisions_are_refused_and_both_sources_named(
    tmp_path: Path, sources: list[str], named: tuple[str, str]
) -> None:
    with pytest.raises(OutputError, match="rename") as caught:
        plan_outputs(tmp_path / "out", sources, OUTPUT_KINDS, overwrite=True)
    for name in named:
        assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sources", "kinds"),
    [
        (["a.jpg", "x/a.jpg", "a.b.jpg", "ab.jpg"], OUTPUT_KINDS),
        (["a.jpg", "a/b.jpg"], OUTPUT_KINDS),
        (["a.jpg", "a.png", "A.jpg"], ("areas",)),
        (["a.png", "a.jpg/b.png"], ("labels",)),
        (AWKWARD_SOURCES, OUTPUT_KINDS),
        ([], OUTPUT_KINDS),
    ],
)
def test_plans_without_collision_pass_and_touch_nothing(
    tmp_path: Path, sources: list[str], kinds: tuple[str, ...]
) -> None:
    plan_outputs(tmp_path / "out", sources, kinds, overwrite=False)
    assert not (tmp_path / "out").exists()


def test_duplicates_are_refused_even_for_areas_only(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"2 pictures are all called 'a\.jpg'"):
        plan_outputs(tmp_path, ["a.jpg", "a.jpg"], ["areas"], overwrite=False)


def test_names_that_grow_too_long_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="at most 255 bytes"):
        plan_outputs(tmp_path, ["é" * 126], ["labels"], overwrite=False)


@pytest.mark.parametrize(
    ("existing", "kinds"),
    [
        ("run.json", OUTPUT_KINDS),
        ("areas.csv", OUTPUT_KINDS),
        ("classes.csv", ("labels",)),
        ("labels/x/a.png", ("labels",)),
        ("overlays/x/a.jpg", ("overlays", "areas")),
    ],
)
def test_files_are_replaced_only_when_told(
    tmp_path: Path, existing: str, kinds: tuple[str, ...]
) -> None:
    path = tmp_path / existing
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        plan_outputs(tmp_path, ["x/a.png"], kinds, overwrite=False)
    plan_outputs(tmp_path, ["x/a.png"], kinds, overwrite=True)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("existing", "kinds"),
    [
        ("labels/x/other.png", OUTPUT_KINDS),
        ("notes.txt", OUTPUT_KINDS),
        ("areas.csv", ("labels",)),
        ("overlays/x/a.jpg", ("labels",)),
    ],
)
def test_files_that_are_not_in_the_way_are_no_obstacle(
    tmp_path: Path, existing: str, kinds: tuple[str, ...]
) -> None:
    (tmp_path / existing).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / existing).write_text("mine")
    plan_outputs(tmp_path, ["x/a.png"], kinds, overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("file", "folder", "message"),
    [
        ("out", None, "is a file: choose a folder"),
        ("out/labels", None, "is a file, but a folder"),
        ("out/labels/x", None, "is a file, but a folder"),
        (None, "out/labels/x/a.png", "is a folder, but a file"),
        (None, "out/areas.csv", "is a folder, but a file"),
        (None, "out/run.json", "is a folder, but a file"),
    ],
)
def test_files_and_folders_in_each_others_place_are_refused(
    tmp_path: Path, file: str | None, folder: str | None, message: str, overwrite: bool
) -> None:
    if file is not None:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("mine")
    if folder is not None:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(OutputError, match=message):
        plan_outputs(tmp_path / "out", ["x/a.jpg"], OUTPUT_KINDS, overwrite=overwrite)


@pytest.mark.parametrize("kinds", [[], ["label"], ["labels", "Areas"]])
def test_unknown_kinds_are_refused(tmp_path: Path, kinds: list[str]) -> None:
    with pytest.raises(UsageError, match="overlays, labels, areas"):
        plan_outputs(tmp_path, ["a.jpg"], kinds, overwrite=False)
    with pytest.raises(UsageError, match="overlays, labels, areas"):
        check_kinds(kinds)


# --- leftovers of a run with other classes --------------------------------------------------


def earlier_run(out: Path, vocabulary_hash: str) -> None:
    for name in ("labels/a.png", "overlays/a.jpg", "areas.csv"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"x")
    (out / RUN_FILE).write_text(json.dumps({"vocabulary": {"sha256": vocabulary_hash}}))


@pytest.mark.parametrize(
    ("sources", "kinds", "vocabulary_hash", "stays"),
    [
        (["a.jpg"], OUTPUT_KINDS, "new", None),
        (["a.jpg", "b.jpg"], OUTPUT_KINDS, "new", None),
        (["b.jpg"], OUTPUT_KINDS, "new", "labels/a.png"),
        (["a.jpg"], ("labels", "overlays"), "new", "areas.csv"),
        (["b.jpg"], ("labels",), "old", None),
    ],
)
def test_no_file_with_other_class_ids_stays(
    tmp_path: Path,
    sources: list[str],
    kinds: tuple[str, ...],
    vocabulary_hash: str,
    stays: str | None,
) -> None:
    earlier_run(tmp_path, "old")
    if stays is None:
        refuse_leftovers(tmp_path, sources, kinds, vocabulary_hash)
        return
    with pytest.raises(OutputError, match="other classes") as caught:
        refuse_leftovers(tmp_path, sources, kinds, vocabulary_hash)
    assert stays in str(caught.value)


def test_a_damaged_run_record_counts_as_other_classes(tmp_path: Path) -> None:
    earlier_run(tmp_path, "old")
    (tmp_path / RUN_FILE).write_text("{")
    with pytest.raises(OutputError, match="other classes"):
        refuse_leftovers(tmp_path, ["b.jpg"], OUTPUT_KINDS, "old")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OutputError, match="cannot be made"):
        plan_outputs(tmp_path / "file" / "out", ["a.jpg"], OUTPUT_KINDS, overwrite=False)
