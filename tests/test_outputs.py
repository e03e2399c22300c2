from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest
from names import AWKWARD_SOURCES

from errseg.errors import OutputError, UsageError
from errseg.outputs import (
    OUTPUT_KINDS,
    RUN_FILE,
    Medium,
    check_kinds,
    frame_path,
    output_paths,
    plan_outputs,
    refuse_leftovers,
)

NFD_E = unicodedata.normalize("NFD", "é")


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
        plan_outputs(tmp_path / "out", sources, OUTPUT_KINDS, replace=True)
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
    plan_outputs(tmp_path / "out", sources, kinds, replace=False)
    assert not (tmp_path / "out").exists()


def test_duplicates_are_refused_even_for_areas_only(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"2 pictures are all called 'a\.jpg'"):
        plan_outputs(tmp_path, ["a.jpg", "a.jpg"], ["areas"], replace=False)


def test_names_that_grow_too_long_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="at most 255 bytes"):
        plan_outputs(tmp_path, ["é" * 126], ["labels"], replace=False)


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
        plan_outputs(tmp_path, ["x/a.png"], kinds, replace=False)
    plan_outputs(tmp_path, ["x/a.png"], kinds, replace=True)
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
    plan_outputs(tmp_path, ["x/a.png"], kinds, replace=False)


@pytest.mark.parametrize("replace", [False, True])
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
    tmp_path: Path, file: str | None, folder: str | None, message: str, replace: bool
) -> None:
    if file is not None:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("mine")
    if folder is not None:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(OutputError, match=message):
        plan_outputs(tmp_path / "out", ["x/a.jpg"], OUTPUT_KINDS, replace=replace)


@pytest.mark.parametrize("kinds", [[], ["label"], ["labels", "Areas"]])
def test_unknown_kinds_are_refused(tmp_path: Path, kinds: list[str]) -> None:
    with pytest.raises(UsageError, match="overlays, labels, areas"):
        plan_outputs(tmp_path, ["a.jpg"], kinds, replace=False)
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
        plan_outputs(tmp_path / "file" / "out", ["a.jpg"], OUTPUT_KINDS, replace=False)


def videos(source: str) -> Sequence[Medium]:
    """What ends in .mp4 is a video; what has no suffix may be either."""
    if source.endswith(".mp4"):
        return ("video",)
    return ("picture",) if "." in source else ("picture", "video")


@pytest.mark.parametrize(
    ("medium", "overlay", "labels"),
    [
        ("picture", "overlays/a/b.c.jpg", "labels/a/b.c.png"),
        ("video", "overlays/a/b.c.mp4", "labels/a/b.c"),
        ("ffv1", "overlays/a/b.c.mp4", "labels/a/b.c.mkv"),
    ],
)
def test_paths_of_each_medium(medium: Medium, overlay: str, labels: str) -> None:
    paths = output_paths("a/b.c.xyz", OUTPUT_KINDS, medium)
    assert {kind: str(path) for kind, path in paths.items()} == {
        "overlays": overlay,
        "labels": labels,
    }
    assert str(frame_path(paths["labels"], 123)) == f"{labels}/000123.png"


@pytest.mark.parametrize(
    "sources", [["a.mp4", "a/000001.png"], ["x/a.mp4", "x/A.mp4"], ["stdin", "stdin.mp4"]]
)
def test_outputs_of_videos_collide_too(tmp_path: Path, sources: list[str]) -> None:
    with pytest.raises(OutputError, match="rename"):
        plan_outputs(tmp_path / "out", sources, OUTPUT_KINDS, replace=True, mediums=videos)


@pytest.mark.parametrize("sources", [["a.mp4", "a.jpg"], ["a.mp4", "a.b.mp4"], ["stdin"]])
def test_outputs_of_a_video_and_a_picture_of_one_name_do_not(
    tmp_path: Path, sources: list[str]
) -> None:
    plan_outputs(tmp_path / "out", sources, OUTPUT_KINDS, replace=False, mediums=videos)


def test_label_maps_of_a_video_are_not_mixed_into_a_folder(tmp_path: Path) -> None:
    (tmp_path / "labels/a").mkdir(parents=True)
    with pytest.raises(OutputError, match="exists already"):
        plan_outputs(tmp_path, ["a.mp4"], ["labels"], replace=False, mediums=videos)
    plan_outputs(tmp_path, ["a.mp4"], ["labels"], replace=True, mediums=videos)
    (tmp_path / "labels/a").rmdir()
    (tmp_path / "labels/a").write_text("mine")
    with pytest.raises(OutputError, match="is a file, but a folder"):
        plan_outputs(tmp_path, ["a.mp4"], ["labels"], replace=True, mediums=videos)
