"""`errseg weights`, and `--weights` with checkpoints as published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import make_tiny, published_state, tiny_model, write
from runner import labels_of, picture
from typer.testing import CliRunner

from errseg.catalogue import own_path
from errseg.download import RemoteFile
from errseg.published import WIDTH_KEY
from errseg.weights import load_model
from errseg_cli.downloading import sparse_lines
from errseg_cli.main import app


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of a tiny errseg-large."""
    make_tiny(monkeypatch, "errseg-large")
    return write(tmp_path / "model_final.pth", {"model": published_state(tiny_model())})


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("command", ["fetch", "convert"])
def test_the_commands_explain_themselves(command: str) -> None:
    code, out, _ = invoke("weights", command, "--help")
    assert code == 0
    assert f"errseg weights {command} " in out
    assert command in invoke("weights", "--help")[1]


# --- convert --------------------------------------------------------------------------------


def test_convert_says_what_it_recognised(published: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "large.safetensors"
    code, out, err = invoke("weights", "convert", published, target)
    assert (code, err) == (0, "")
    tensors = len(tiny_model().state_dict())
    assert out == (
        f"model\ttensors\tbytes\tfile\nerrseg-large\t{tensors}\t{target.stat().st_size}\t{target}\n"
    )
    assert load_model(target).config.name == "errseg-large"


def test_convert_replaces_nothing_unless_asked(published: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine.safetensors"
    target.write_bytes(b"mine")
    code, out, err = invoke("weights", "convert", published, target)
    assert (code, out) == (2, "")
    assert "mine.safetensors is there already" in err and "--overwrite" in err
    assert target.read_bytes() == b"mine"
    assert invoke("weights", "convert", published, target, "--overwrite")[0] == 0
    assert load_model(target).config.name == "errseg-large"


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("model_final.pth", "large.pth", "must end in .safetensors"),
        ("absent.pth", "large.safetensors", "no checkpoint"),
        ("damaged.pth", "large.safetensors", "not a whole PyTorch checkpoint"),
        ("other.pth", "large.safetensors", "(7, 7); expected is errseg-base"),
        ("model_final.pth", "damaged.pth/large.safetensors", "cannot write"),
    ],
)
def test_what_cannot_be_converted_leaves_nothing(
    published: Path, tmp_path: Path, source: str, target: str, message: str
) -> None:
    (tmp_path / "damaged.pth").write_bytes(published.read_bytes()[:-100])
    write(tmp_path / "other.pth", {"model": {WIDTH_KEY: torch.zeros(7, 7)}})
    before = sorted(tmp_path.rglob("*"))
    code, out, err = invoke("weights", "convert", tmp_path / source, tmp_path / target)
    assert (code, out) == (1 if message == "cannot write" else 2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


# --- run ------------------------------------------------------------------------------------


def test_run_takes_what_the_file_holds_and_the_same_of_both_formats(
    published: Path, tmp_path: Path
) -> None:
    image = picture(tmp_path / "a.png")
    converted = tmp_path / "large.safetensors"
    invoke("weights", "convert", published, converted)
    line = ["run", image, "--classes", "sky, sea, sand", "--device", "cpu"]
    for name, weights in (("one", published), ("two", converted)):
        code, _, err = invoke(*line, "--weights", weights, "-o", tmp_path / name)
        assert code == 0, err
    first, second = (labels_of(tmp_path / name / "labels" / "a.png") for name in ("one", "two"))
    assert (first == second).all()
    areas = [(tmp_path / name / "areas.csv").read_bytes() for name in ("one", "two")]
    assert areas[0] == areas[1]
    assert '"name": "errseg-large"' in (tmp_path / "one" / "run.json").read_text()


@pytest.mark.parametrize("name", ["errseg-base", "errseg-mini"])
def test_run_refuses_the_weights_of_another_model(
    published: Path, tmp_path: Path, name: str
) -> None:
    line = ["run", picture(tmp_path / "a.png"), "--classes", "sky", "-o", tmp_path / "out"]
    code, out, err = invoke(*line, "--model", name, "--weights", published)
    assert (code, out) == (2, "")
    assert f"model_final.pth holds errseg-large, not {name}" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# --- fetch ----------------------------------------------------------------------------------


def test_fetch_of_what_is_there_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path))
    path = own_path("errseg-base")
    path.parent.mkdir()
    path.write_bytes(b"x")
    assert invoke("weights", "fetch", "errseg-base") == (0, f"{path}\n", "")
    rows = [line.split("\t") for line in invoke("models")[1].splitlines()]
    assert rows[2][2:] == ["yes", str(path)]
    assert rows[3][2:] == ["no", "lchen1019/ERR-Seg on Hugging Face"]


def test_fetch_of_what_is_not_published() -> None:
    code, out, err = invoke("weights", "fetch", "errseg-mini")
    assert (code, out) == (2, "")
    assert "'errseg-mini' is not published; there are errseg-base and errseg-large" in err


def test_a_log_file_gets_a_line_for_every_tenth() -> None:
    lines: list[str] = []
    on_received = sparse_lines(lines.append)
    remote = RemoteFile("a.pth", "https://hub/a.pth", 755_000_000, "", "")
    for received in range(100_000_000, 755_000_001, 5_000_000):
        on_received(remote, received)
    assert lines[0] == "errseg: downloading https://hub/a.pth (755 MB, licence: not given)"
    assert lines[1:3] == ["errseg: 155 of 755 MB", "errseg: 230 of 755 MB"]
    assert lines[-1] == "errseg: 755 of 755 MB"
    assert len(lines) == 10
