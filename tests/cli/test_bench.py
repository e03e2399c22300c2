from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from errseg.stages import STAGES
from errseg_cli.main import app


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_figures_as_json(tiny_weights: Path) -> None:
    line = ["--weights", tiny_weights, "--classes", "30", "--size", "40x60", "--size", "70x50"]
    code, out, err = invoke(*line, "--repeats", 1, "--device", "cpu", "--batch-size", 2, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["device"], report["classes"], report["batch_size"]) == ("cpu", 30, 2)
    assert list(report["sizes"]) == ["40x60", "70x50"]
    for found in report["sizes"].values():
        stages = [found[name] for name in STAGES]
        assert min(stages) > 0
        assert found["whole"] * 0.5 < sum(stages) <= found["whole"]
        assert found["pictures_per_second"] == pytest.approx(2 / found["whole"])
        assert found["peak_gb"] > 0.1
    assert set(report["saved"]) == {"CRM", "ESCF"}
    for found in report["saved"].values():
        whole = report["sizes"]["40x60"]["whole"]
        assert found["share"] == pytest.approx(1 - whole / found["whole"])


def test_a_table_with_a_line_per_size(tiny_weights: Path) -> None:
    line = ["--weights", tiny_weights, "--classes", "sky, sea", "--repeats", 1, "--size", "9x7"]
    code, out, err = invoke(*line, "--device", "cpu")
    assert code == 0
    header, row = (text.split("\t") for text in out.splitlines())
    assert len(header) == len(row) and row[0] == "9x7"
    assert "2 classes, 2 kept, 1 at once" in err
    assert "CRM saves" in err and "ESCF saves" in err


def test_a_shape_without_weights() -> None:
    line = ["--random-weights", "--model", "errseg-mini", "--classes", "3", "--size", "20x20"]
    code, out, _ = invoke(*line, "--repeats", 1, "--device", "cpu", "--json")
    assert code == 0
    assert json.loads(out)["model"] == "errseg-mini"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "480"], "--size is '480'; it must be HEIGHTxWIDTH"),
        (["--size", "0x9"], "--size is '0x9'"),
        (["--size", "20001x9"], "--size is '20001x9'"),
        (["--classes", "848"], "--classes is 848; ade20k-847 has 847 names"),
        (["--classes", "0"], "--classes is '0'"),
        (["--keep", "few"], "--keep is 'few'; it must be auto, published or a whole number"),
        (["--random-weights", "--weights", "x"], "exclude each other"),
        (["--random-weights", "--model", "x"], "there is no model 'x'"),
        (["--device", "abacus"], "device is 'abacus'"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    code, out, err = invoke(*arguments)
    assert (code, out) == (2, "")
    assert message in err
