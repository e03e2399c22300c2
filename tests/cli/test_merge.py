"""`errseg merge`: parts of a job joined, and what cannot be joined."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from clips import make_clip
from names import AWKWARD_SOURCES
from runner import Runner, files_in, picture, record_of
from typer.testing import CliRunner, Result

from errseg_cli.main import app


def merge(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["merge", *map(str, arguments)])


@pytest.fixture(scope="module")
def parts(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same inputs as one run, "whole", and as three parts."""
    work = tmp_path_factory.mktemp("parts")
    run = Runner(tiny_weights)
    for number, name in enumerate(AWKWARD_SOURCES[1:6]):
        picture(work / "x.png", (20, 30), seed=number)
        (work / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (work / "x.png").rename(work / "in" / name)
    make_clip(work / "in/clip.mp4", frames=4)
    (work / "in/bad.jpg").write_text("no picture")
    assert run(work / "in", "-o", work / "whole", "--threshold", 0.4).exit_code == 1
    for part in (1, 2, 3):
        shard = ("--shard", f"{part}/3", "--threshold", 0.4, "--outputs", "areas")
        assert run(work / "in", "-o", work / f"part{part}", *shard).exit_code in (0, 1)
    return work


@pytest.fixture
def copied(parts: Path, tmp_path: Path) -> Path:
    """The parts, to be changed."""
    shutil.copytree(parts, tmp_path / "copy")
    return tmp_path / "copy"


def test_parts_joined_are_the_whole(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "all"
    result = merge(*(parts / f"part{i}" for i in (1, 2, 3)), "-o", out)
    assert result.exit_code == 0, result.stderr
    assert files_in(out) == ["areas.csv", "classes.csv", "run.json"]
    one, all_of_them = record_of(parts / "whole"), record_of(out)
    for key in ("areas", "counts", "state", "vocabulary"):
        assert one[key] == all_of_them[key], key
    assert (out / "classes.csv").read_bytes() == (parts / "whole/classes.csv").read_bytes()
    rows = [(folder / "areas.csv").read_bytes().split(b"\n") for folder in (parts / "whole", out)]
    assert rows[0][0] == rows[1][0]
    assert sorted(rows[0]) == sorted(rows[1])
    assert "3 runs joined, 9 pictures" in result.stderr
    assert result.stdout.startswith("class_id\tclass\tpixels")
    assert [failure["source"] for failure in all_of_them["failures"]] == ["bad.jpg"]  # type: ignore[attr-defined]


def test_merged_runs_can_be_merged(parts: Path, tmp_path: Path) -> None:
    assert merge(parts / "part1", parts / "part2", "-o", tmp_path / "two").exit_code == 0
    result = merge(tmp_path / "two", parts / "part3", "-o", tmp_path / "all", "--json")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert record == record_of(tmp_path / "all")
    assert record["areas"] == record_of(parts / "whole")["areas"]


def test_a_picture_in_two_runs_is_taken_once(parts: Path, tmp_path: Path) -> None:
    result = merge(parts / "whole", parts / "part1", "-o", tmp_path / "all")
    assert result.exit_code == 0
    assert "pictures stand in several runs; taken once" in result.stderr
    record = record_of(tmp_path / "all")
    assert record["areas"] == record_of(parts / "whole")["areas"]


def set_record(folder: Path, **values: object) -> None:
    record = {**record_of(folder), **values}
    (folder / "run.json").write_text(json.dumps(record))


def change_identity(folder: Path, key: str, value: object) -> None:
    set_record(folder, identity={**record_of(folder)["identity"], key: value})  # type: ignore[dict-item]


def change_bytes(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def append(path: Path, data: bytes) -> None:
    path.write_bytes(path.read_bytes() + data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: change_identity(p, "--threshold", 0.3), "differ in --threshold"),
        (lambda p: change_identity(p, "the weights", "0"), "differ in the weights"),
        (lambda p: change_bytes(p / "classes.csv", b"sky", b"air"), "differ in --classes"),
        (lambda p: set_record(p, state="interrupted"), "is not complete: finish it with"),
        (lambda p: set_record(p, identity=None), "not written by this version"),
        (lambda p: (p / "run.json").write_text("{"), "not written by this version"),
        (lambda p: (p / "run.json").unlink(), "holds no run"),
        (lambda p: (p / "areas.csv").unlink(), "has no areas.csv"),
        (lambda p: change_bytes(p / "areas.csv", b"source,", b"name,"), "does not begin as"),
        (lambda p: change_bytes(p / "areas.csv", b",sky,", b",sky,many"), "is damaged at"),
        (lambda p: append(p / "areas.csv", b"half,a"), "is damaged at 'half,a'"),
    ],
)
def test_what_cannot_be_joined(
    copied: Path, change: Callable[[Path], object], message: str
) -> None:
    change(copied / "part2")
    result = merge(copied / "part1", copied / "part2", "-o", copied / "all")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(copied.glob("all/*"))


def test_a_picture_with_two_results_is_named(copied: Path) -> None:
    shutil.copytree(copied / "part1", copied / "again")
    rows = (copied / "again/areas.csv").read_bytes().split(b"\n")
    name = rows[1].split(b",")[0]
    change_bytes(copied / "again/areas.csv", rows[1], rows[1][:-1] + b"7")
    result = merge(copied / "part1", copied / "again", "-o", copied / "all")
    assert result.exit_code == 2
    assert name.decode() in result.stderr
    assert "has different areas in" in result.stderr


def test_what_does_not_change_areas_may_differ(copied: Path) -> None:
    change_identity(copied / "part1", "--opacity", 0.9)
    assert merge(copied / "part1", copied / "part2", "-o", copied / "all").exit_code == 0


def test_unfinished_runs_are_taken_when_told(copied: Path) -> None:
    set_record(copied / "part1", state="running")
    result = merge(copied / "part1", copied / "part2", "-o", copied / "all", "--partial")
    assert result.exit_code == 0
    assert "taken although it is not complete" in result.stderr
    assert record_of(copied / "all")["state"] == "interrupted"


def test_nothing_is_overwritten_unless_told(copied: Path) -> None:
    runs = (copied / "part1", copied / "part2")
    assert merge(*runs, "-o", copied / "part1").exit_code == 2
    assert merge(copied / "part1", copied / "part1", "-o", copied / "all").exit_code == 2
    assert merge(*runs, "-o", copied / "in/bad.jpg").exit_code == 2
    assert merge(*runs, "-o", copied / "all").exit_code == 0
    again = merge(*runs, "-o", copied / "all")
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    assert merge(*runs, "-o", copied / "all", "--overwrite").exit_code == 0
