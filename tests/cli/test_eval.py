"""`errseg eval`: tables, JSON, files, failures, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from labelled import write_folder
from typer.testing import CliRunner, Result

from errseg_cli.main import app


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "stripes", 4, 0)


@pytest.fixture
def weights(tiny_weights: Path) -> list[str]:
    return ["--weights", str(tiny_weights), "--device", "cpu"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def test_a_table_of_the_set_and_one_of_its_classes(folder: Path, weights: list[str]) -> None:
    result = invoke(folder, *weights)
    assert result.exit_code == 0, result.stderr
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert lines[0] == ["set", "pictures", "mIoU", "fwIoU", "pixel acc.", "mean acc."]
    assert lines[1][:2] == ["stripes", "4"]
    assert lines[3][0] == "stripes" and {line[0] for line in lines[4:]} == {"brick", "lawn", "lake"}
    assert "stripes 1/4, mIoU" in result.stderr


def test_json_agrees_with_the_csv_file(folder: Path, weights: list[str], tmp_path: Path) -> None:
    table = tmp_path / "classes.csv"
    result = invoke(folder, *weights, "--json", "--csv", table, "--quiet")
    assert result.stderr == ""
    [report] = json.loads(result.stdout)["sets"]
    assert report["set"] == "stripes" and report["pictures"] == 4 and report["failed"] == []
    assert report["class_count"] == 3 and report["keep"] == 3
    ious = [row["iou"] for row in report["classes"]]
    assert report["mean_iou"] == pytest.approx(sum(ious) / 3, abs=1e-5)
    assert sum(row["pixels"] for row in report["classes"]) == 4 * (67 * 71 - 81)
    assert sum(row["pixels"] for row in report["calibration"]) == 4 * (67 * 71 - 81)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["iou"]) for row in rows] == ious
    assert {row["set"] for row in rows} == {"stripes"}


def test_plots_one_per_set(folder: Path, weights: list[str], tmp_path: Path) -> None:
    other = write_folder(tmp_path / "more", 2, 1)
    plots = ["--plot", tmp_path / "c.png", "--reliability", tmp_path / "r.png"]
    assert invoke(folder, other, *weights, *plots).exit_code == 0
    for name in ("c-stripes.png", "c-more.png", "r.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    again = invoke(folder, other, *weights, *plots)
    assert again.exit_code == 2 and "--overwrite" in again.stderr
    assert invoke(folder, other, *weights, *plots, "--overwrite").exit_code == 0


def test_a_damaged_pair_is_named_and_makes_the_exit_code_1(
    folder: Path, weights: list[str]
) -> None:
    (folder / "labels" / "002.png").write_bytes(b"half")
    result = invoke(folder, *weights, "--json")
    assert result.exit_code == 1
    assert "002.jpg" in result.stderr and "label map" in result.stderr
    [report] = json.loads(result.stdout)["sets"]
    assert report["pictures"] == 3
    assert [failure["source"] for failure in report["failed"]] == [str(folder / "images/002.jpg")]


def test_a_finished_state_is_not_measured_again(
    folder: Path, weights: list[str], tmp_path: Path
) -> None:
    first = invoke(folder, *weights, "--state", tmp_path / "state")
    second = invoke(folder, *weights, "--state", tmp_path / "state")
    assert second.stdout == first.stdout
    assert "1/4" in first.stderr and "1/4" not in second.stderr
    other = invoke(folder, *weights, "--state", tmp_path / "state", "--keep", 2)
    assert other.exit_code == 2 and "another model" in other.stderr


def test_other_names_for_the_classes(folder: Path, weights: list[str]) -> None:
    named = invoke(folder, *weights, "--classes", "wall, grass, water")
    assert named.exit_code == 0 and "brick" in named.stdout
    few = invoke(folder, *weights, "--classes", "wall, grass")
    assert few.exit_code == 2 and "2 classes" in few.stderr


def test_sets_of_one_name_are_told_apart(folder: Path, weights: list[str], tmp_path: Path) -> None:
    other = write_folder(tmp_path / "b" / "stripes", 2, 1)
    result = invoke(folder, other, *weights, "--json")
    assert [report["set"] for report in json.loads(result.stdout)["sets"]] == [
        "stripes",
        "b-stripes",
    ]
    twice = invoke(folder, folder, *weights)
    assert twice.exit_code == 2 and "twice" in twice.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "nowhere"),
        (["--benchmark", "voc-21"], "voc-21"),
        (["--window", "many"], "many"),
        (["--plot", "c.jpg"], "c.jpg"),
        (["--model", "errseg-base"], "errseg-base"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, arguments: list[str], named: str) -> None:
    given = arguments if arguments == ["nowhere"] else [str(folder), *arguments]
    result = invoke(*given)
    assert result.exit_code == 2 and named in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
