from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import errseg
from errseg.catalogue import CATALOGUE, EMBEDDED, embedded_path
from errseg.training.recipe import Recipe
from errseg.vocabulary import builtin_vocabularies, load_vocabulary
from errseg_cli import samples
from errseg_cli.main import app

COMMAND = [sys.executable, "-c", "from errseg_cli.main import main; main()"]


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


# help and version


@pytest.mark.parametrize(
    "command", ["run", "classes", "models", "samples", "train", "eval", "bench"]
)
def test_every_command_explains_itself(command: str) -> None:
    code, out, _ = invoke(command, "--help")
    assert code == 0
    assert f"Usage: errseg {command}" in out or f"Usage: root {command}" in out
    assert "--debug" in out
    assert command in invoke("--help")[1]


def test_help_of_run_holds_an_example_on_a_line_of_its_own() -> None:
    lines = [line.strip() for line in invoke("run", "--help")[1].splitlines()]
    assert 'errseg run holiday/ --classes "sky, sea, beach, person" -o result' in lines


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"]])
def test_help_and_version_answer_at_once(arguments: list[str]) -> None:
    code = (
        "import sys; from errseg_cli.main import main\n"
        "try: main()\n"
        "finally: print(*{m.split('.')[0] for m in sys.modules}, file=sys.stderr)"
    )
    line = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(line, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "cv2", "PIL", "rich", "av"} & set(result.stderr.split())


def test_version() -> None:
    assert invoke("--version") == (0, f"errseg {errseg.__version__}\n", "")


@pytest.mark.parametrize(
    "arguments", [["fly"], ["run", "--colour"], ["classes", "a", "b"], ["train", "x.toml"]]
)
def test_unknown_commands_and_options_give_exit_2(arguments: list[str]) -> None:
    code, out, err = invoke(*arguments)
    assert (code, out) == (2, "")
    assert "Error" in err


# classes


def test_classes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("sky #4682b4\nsofa, couch\nRoad users = person, rider #010203\n")
    code, out, err = invoke("classes", str(path))
    assert (code, err) == (0, "")
    sofa = bytes(load_vocabulary(str(path)).classes[1].colour).hex()
    assert out == (
        "id\tname\tcolour\tsynonyms\n"
        "0\tsky\t#4682b4\tsky\n"
        f"1\tsofa\t#{sofa}\tsofa, couch\n"
        "2\tRoad users\t#010203\tperson, rider\n"
    )


def test_classes_as_json() -> None:
    code, out, _ = invoke("classes", "voc-20", "--json")
    record = json.loads(out)
    vocabulary = load_vocabulary("voc-20")
    assert code == 0
    assert record["source"] == "built-in voc-20"
    assert record["sha256"] == vocabulary.hash
    assert [entry["name"] for entry in record["classes"]] == list(vocabulary.names)
    assert record["classes"][3]["id"] == 3


def test_builtin_vocabularies_are_listed_with_their_sizes() -> None:
    _, out, _ = invoke("classes")
    rows = dict(line.split("\t") for line in out.splitlines()[1:])
    assert rows == {name: str(len(load_vocabulary(name))) for name in builtin_vocabularies()}
    assert rows["ade20k-150"] == "150"
    entries = json.loads(invoke("classes", "--json")[1])
    assert {entry["vocabulary"]: str(entry["classes"]) for entry in entries} == rows


def test_classes_that_cannot_be_read_give_exit_2(tmp_path: Path) -> None:
    code, out, err = invoke("classes", str(tmp_path / "gone.txt"))
    assert (code, out) == (2, "")
    assert "gone.txt" in err
    assert len(err.splitlines()) == 1


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [*COMMAND, "classes", "ade20k-847"], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_full_disk_behind_standard_output_is_one_message() -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*COMMAND, "classes"], stdout=full, stderr=subprocess.PIPE, check=False, text=True
        )
    assert result.returncode == 1
    assert result.stderr == ("errseg: cannot write to standard output (No space left on device).\n")


# models


def test_models_are_listed_with_their_weights() -> None:
    code, out, _ = invoke("models")
    header, *rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0
    assert header == ["model", "parameters", "present", "weights"]
    assert [row[0] for row in rows] == ["errseg-mini", "errseg-base", "errseg-large"]
    present = "yes" if embedded_path().is_file() else "no"
    assert rows[0][2:] == [present, str(embedded_path())]
    assert rows[1][2:] == ["no", "lchen1019/ERR-Seg on Hugging Face"]
    entries = json.loads(invoke("models", "--json")[1])
    assert [str(entry["parameters"]) for entry in entries] == [row[1] for row in rows]


def test_the_catalogue_is_that_of_the_weights() -> None:
    from errseg import weights
    from errseg.config import PRESETS

    model = weights.build_empty(PRESETS[EMBEDDED])
    assert sum(p.numel() for p in model.parameters()) == CATALOGUE[0].parameters


# samples


def test_samples_are_photographs_and_a_class_list_and_replace_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "pictures"
    folder.mkdir(parents=True)
    (folder / "coffee.png").write_bytes(b"mine")
    code, out, err = invoke("samples", str(folder))
    assert code == 0, err
    assert (folder / "coffee.png").read_bytes() == b"mine"
    assert f"kept as it is: {folder / 'coffee.png'}" in err
    written = [Path(line) for line in out.splitlines()]
    assert {path.name for path in written} == {
        *("astronaut.png", "chelsea.png", "motorcycle_left.png", "rocket.jpg"),
        *("china.jpg", "flower.jpg", "classes.txt"),
    }
    for path in written:
        if path.suffix != ".txt":
            with Image.open(path) as image:
                image.load()
    assert "cat" in load_vocabulary(str(folder / "classes.txt")).names
    assert invoke("samples", str(folder))[:2] == (0, "")


def test_samples_without_their_package_name_the_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs = (("some-photographs", "some_photographs", "a.jpg"),)
    monkeypatch.setattr(samples, "PHOTOGRAPHS", photographs)
    code, out, err = invoke("samples", str(tmp_path / "new"))
    assert (code, out) == (2, "")
    assert "pip install 'errseg[samples]'" in err
    assert not (tmp_path / "new").exists()


# train


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-recipe"], "there is no recipe 'no-such-recipe'; give a TOML file, or one of"),
        (["errseg-mini"], "needs --data DIR"),
        (["{folder}/bad.toml"], "bad.toml is not a TOML file"),
        (["{folder}/unknown.toml"], "'speed'"),
    ],
)
def test_recipes_that_make_no_sense_give_exit_2(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "bad.toml").write_text("= nothing")
    (tmp_path / "unknown.toml").write_text(
        'speed = 1\n[model]\npreset = "tiny"\n[[data]]\nfolder = "x"\n'
    )
    line = [argument.format(folder=tmp_path) for argument in arguments]
    code, out, err = invoke("train", *line, "-o", str(tmp_path / "run"))
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_recipe_becomes_weights_that_run_takes(tmp_path: Path) -> None:
    for folder, mode, suffix in (("images", "RGB", "jpg"), ("labels", "L", "png")):
        (tmp_path / "data" / "set" / folder).mkdir(parents=True)
        for number in range(2):
            path = tmp_path / "data" / "set" / folder / f"{number}.{suffix}"
            Image.new(mode, (64, 64)).save(path)
    (tmp_path / "data" / "set" / "classes.txt").write_text("sky\nsea\n")
    (tmp_path / "tiny.toml").write_text(
        "steps = 99\ncrop = [64, 64]\nbatch_size = 2\nkeep = 2\nwarmup = 1\n"
        'validation = ["set"]\n[model]\npreset = "tiny"\nname = "errseg-mini"\n'
        '[[data]]\nfolder = "set"\n'
    )
    line = ["train", str(tmp_path / "tiny.toml"), "--data", str(tmp_path / "data")]
    line += ["-o", str(tmp_path / "run"), "--steps", "2", "--workers", "0", "--device", "cpu"]
    code, out, err = invoke(*line)
    assert code == 0, err
    weights = tmp_path / "run" / "model.safetensors"
    assert out == f"{weights}\n"
    lines = [line for line in err.splitlines() if "matplotlib" not in line]
    assert lines[0].startswith("errseg: step 1/2: ")
    assert "loss" in lines[0]
    assert "miou_set" in lines[-1]
    assert (tmp_path / "run" / "samples" / "step-2.jpg").is_file()
    picture = str(tmp_path / "data" / "set" / "images" / "0.jpg")
    line = ["run", picture, "--classes", "sky, sea", "-o", str(tmp_path / "out")]
    assert invoke(*line, "--weights", str(weights), "--device", "cpu")[0] == 0


def test_without_matplotlib_training_says_once_how_to_get_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from errseg import figures
    from errseg.training import loop

    monkeypatch.setattr(figures, "can_plot", lambda: False)
    monkeypatch.setattr(loop, "train", lambda *_, **__: tmp_path / "model.safetensors")
    path = tmp_path / "tiny.toml"
    path.write_text('[model]\npreset = "tiny"\n[[data]]\nfolder = "set"\n')
    code, _, err = invoke("train", str(path), "-o", str(tmp_path / "run"))
    assert code == 0
    assert err.count("pip install 'errseg[plots]'") == 1


def test_init_names_the_clip_of_a_recipe_that_starts_from_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from errseg.training import loop

    seen: list[Recipe] = []
    monkeypatch.setattr(loop, "train", lambda plan, *_, **__: seen.append(plan))
    line = ["train", "errseg-base", "--data", str(tmp_path), "-o", str(tmp_path / "run")]
    assert invoke(*line, "--init", "clip.safetensors")[0] == 0
    assert (seen[0].init, seen[0].clip_file) == ("clip", Path("clip.safetensors"))
    path = tmp_path / "tiny.toml"
    path.write_text('[model]\npreset = "tiny"\n[[data]]\nfolder = "set"\n')
    assert (
        invoke("train", str(path), "-o", str(tmp_path / "run"), "--init", "w.safetensors")[0] == 0
    )
    assert (seen[1].init, seen[1].clip_file) == ("w.safetensors", None)


def test_of_torchruns_processes_one_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from errseg.training import loop

    def train(plan: Recipe, out: Path, *, report: Callable[..., None], **_: object) -> Path:
        report({"step": 1, "loss": 0.5})
        return out

    monkeypatch.setattr(loop, "train", train)
    path = tmp_path / "tiny.toml"
    path.write_text('[model]\npreset = "tiny"\n[[data]]\nfolder = "set"\n')
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert invoke("train", str(path), "-o", str(tmp_path / "run")) == (0, "", "")
    monkeypatch.setenv("RANK", "0")
    code, out, err = invoke("train", str(path), "-o", str(tmp_path / "run"))
    assert (code, out) == (0, f"{tmp_path / 'run'}\n")
    assert "loss 0.5" in err
