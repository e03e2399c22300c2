from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runner import Runner, areas_of, files_in, histograms_of, labels_of, picture, record_of
from typer.testing import CliRunner

import errseg
from errseg.images import DEFAULT_MAX_PIXELS
from errseg.outputs import OUTPUT_KINDS
from errseg.render import DEFAULT_OPACITY
from errseg.vocabulary import load_vocabulary
from errseg_cli.main import app
from errseg_cli.run import run

ORIENTATION_TAG = 0x0112
ROTATE_90 = 6


def test_a_folder_becomes_a_tree_of_results(tmp_path: Path, errseg_run: Runner) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    picture(folder / "a.jpg")
    picture(folder / "deep" / "b [x].png", (33, 17), seed=1)
    picture(folder / ".hidden" / "c.png")
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = ROTATE_90
    picture(folder / "turned.jpg", (40, 60), exif=exif)

    result = errseg_run(folder, "-o", out, "--threshold", 0.55)
    assert result.exit_code == 0, result.stderr
    assert files_in(out) == [
        ".errseg/journal.jsonl",
        "areas.csv",
        "classes.csv",
        "labels/a.png",
        "labels/deep/b [x].png",
        "labels/turned.png",
        "overlays/a.jpg",
        "overlays/deep/b [x].jpg",
        "overlays/turned.jpg",
        "run.json",
    ]
    assert labels_of(out / "labels/a.png").shape == (40, 60)
    assert labels_of(out / "labels/turned.png").shape == (60, 40)
    assert labels_of(out / "overlays/turned.jpg").shape == (60, 40, 3)
    sources = ["a.jpg", "turned.jpg", "deep/b [x].png"]
    assert areas_of(out) == histograms_of(out, sources)

    record = record_of(out)
    assert record["version"] == errseg.__version__
    assert record["counts"] == {"done": 3, "failed": 0, "skipped": 0, "frames": 3}
    assert record["state"] == "complete"
    assert (record["device"], record["precision"], record["keep"]) == ("cpu", "fp32", 3)
    vocabulary = load_vocabulary("sky, sea, sand")
    expected = {"source": "command line", "sha256": vocabulary.hash, "classes": 3}
    assert record["vocabulary"] == expected
    assert set(record["seconds"]) == {"load", "read", "model", "write", "total"}  # type: ignore[call-overload]
    assert record["options"]["threshold"] == 0.55  # type: ignore[index]
    assert record["batch_size"] == 1

    header, *rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert header == ["class_id", "class", "pixels", "fraction", "pictures"]
    counted: dict[int, int] = {}
    for histogram in histograms_of(out, sources).values():
        for class_id, count in histogram.items():
            counted[class_id] = counted.get(class_id, 0) + count
    assert {int(row[0]): int(row[2]) for row in rows} == counted
    assert sum(float(row[3]) for row in rows) == pytest.approx(1, abs=1e-5)
    assert "3 pictures done" in result.stderr
    assert str(out) in result.stderr


def test_one_picture_into_the_default_folder(
    tmp_path: Path, errseg_run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    result = errseg_run("a.png", "--quiet")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert (tmp_path / "errseg_out/overlays/a.jpg").is_file()


def test_batches_give_what_single_pictures_give(tmp_path: Path, errseg_run: Runner) -> None:
    for seed, size in enumerate([(40, 60), (31, 47), (64, 64)]):
        picture(tmp_path / "in" / f"{seed}.png", size, seed)
    for name, batch_size in (("one", 1), ("three", 3)):
        result = errseg_run(tmp_path / "in", "-o", tmp_path / name, "--batch-size", batch_size)
        assert result.exit_code == 0
    for number in range(3):
        one, three = (labels_of(tmp_path / f / f"labels/{number}.png") for f in ("one", "three"))
        assert np.mean(one == three) > 0.99


def test_a_damaged_file_gives_exit_1_and_the_rest_is_done(
    tmp_path: Path, errseg_run: Runner
) -> None:
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a photograph")
    picture(tmp_path / "in" / "z.png")
    result = errseg_run(tmp_path / "in", "-o", tmp_path / "out", "--quiet")
    assert result.exit_code == 1
    assert list(areas_of(tmp_path / "out")) == ["a.png", "z.png"]
    assert result.stderr.startswith("failed: bad.jpg: ")
    assert len(result.stderr.splitlines()) == 1
    record = record_of(tmp_path / "out")
    assert record["counts"] == {"done": 2, "failed": 1, "skipped": 0, "frames": 2}
    assert [failure["source"] for failure in record["failures"]] == ["bad.jpg"]  # type: ignore[attr-defined]


def test_many_failures_are_named_in_part(tmp_path: Path, errseg_run: Runner) -> None:
    (tmp_path / "in").mkdir()
    for number in range(25):
        (tmp_path / "in" / f"{number:02}.jpg").touch()
    result = errseg_run(tmp_path / "in", "-o", tmp_path / "out", "--quiet")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 21
    assert lines[-1] == f"failed: and 5 more, named in {tmp_path / 'out' / 'run.json'}"
    assert len(record_of(tmp_path / "out")["failures"]) == 25  # type: ignore[arg-type]


def test_paths_from_standard_input(tmp_path: Path, errseg_run: Runner) -> None:
    first = picture(tmp_path / "x" / "a.png")
    second = picture(tmp_path / "y" / "a.png", seed=1)
    listed = f"{first}\n\n{second}\r\n{tmp_path / 'gone.png'}\n"
    result = errseg_run("-", "-o", tmp_path / "out", "--outputs", "labels", stdin=listed)
    assert result.exit_code == 1
    assert files_in(tmp_path / "out") == [
        ".errseg/journal.jsonl",
        "classes.csv",
        "labels/x/a.png",
        "labels/y/a.png",
        "run.json",
    ]
    assert "gone.png" in result.stderr


def test_json_on_standard_output_is_run_json(tmp_path: Path, errseg_run: Runner) -> None:
    picture(tmp_path / "é.png")
    arguments = (tmp_path / "é.png", "-o", tmp_path / "out", "--json", "--outputs", "areas")
    result = errseg_run(*arguments, classes="ciel bleu, mer")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == record_of(tmp_path / "out")
    assert files_in(tmp_path / "out") == [
        ".errseg/journal.jsonl",
        "areas.csv",
        "classes.csv",
        "run.json",
    ]


def test_threshold_1_leaves_everything_unlabelled(tmp_path: Path, errseg_run: Runner) -> None:
    picture(tmp_path / "a.png")
    out = tmp_path / "out"
    assert errseg_run(tmp_path / "a.png", "-o", out, "--threshold", "1.0").exit_code == 0
    assert areas_of(out) == {"a.png": {-1: 2400}}
    assert (labels_of(out / "labels/a.png") == 255).all()


def test_300_classes_give_16_bit_label_maps(tmp_path: Path, errseg_run: Runner) -> None:
    picture(tmp_path / "a.png")
    vocabulary, out = tmp_path / "many.txt", tmp_path / "out"
    vocabulary.write_text("".join(f"class {number}\n" for number in range(300)))
    result = errseg_run(tmp_path / "a.png", "-o", out, "--keep", 5, classes=str(vocabulary))
    assert result.exit_code == 0
    assert labels_of(out / "labels/a.png").dtype == np.uint16
    assert areas_of(out) == histograms_of(out, ["a.png"])
    assert len(areas_of(out)["a.png"]) <= 5
    assert record_of(out)["keep"] == 5


def test_a_run_is_overwritten_only_when_told(tmp_path: Path, errseg_run: Runner) -> None:
    picture(tmp_path / "a.png")
    out = tmp_path / "out"
    assert errseg_run(tmp_path / "a.png", "-o", out).exit_code == 0
    before = (out / "run.json").read_bytes()
    refused = errseg_run(tmp_path / "a.png", "-o", out, classes="cat, dog")
    assert refused.exit_code == 2
    assert "already holds a run" in refused.stderr
    assert (out / "run.json").read_bytes() == before
    replaced = errseg_run(tmp_path / "a.png", "-o", out, "--overwrite", classes="cat, dog")
    assert replaced.exit_code == 0
    assert record_of(out)["options"]["classes"] == "cat, dog"  # type: ignore[index]


def test_what_was_assumed_is_said_once_per_kind(tmp_path: Path, errseg_run: Runner) -> None:
    for name in ("a", "b"):
        Image.new("RGBA", (20, 30), (9, 9, 9, 9)).save(tmp_path / f"{name}.png")
    result = errseg_run(tmp_path / "a.png", tmp_path / "b.png", "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert "note: transparent pixels shown on white (a.png and 1 more)\n" in result.stderr
    assert len(record_of(tmp_path / "out")["warnings"]) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{gone}"], "gone"),
        (["{empty}"], "No picture or video in"),
        (["{a}", "--classes", "{gone}.txt"], "gone.txt"),
        (["{a}", "--classes", "{twice}"], "line 3: the class 'sky' is already there"),
        (["{a}", "--classes", ""], "no class in it"),
        (["{a}", "--outputs", "label"], "choose one or more of overlays, labels, areas"),
        (["{a}", "--outputs", ""], "choose one or more of"),
        (["{a}", "--keep", "few"], "--keep is 'few'"),
        (["{a}", "--keep", "0"], "--keep is '0'"),
        (["{a}", "--threshold", "1.5"], "--threshold is 1.5"),
        (["{a}", "--threshold", "nan"], "--threshold is nan"),
        (["{a}", "--opacity", "-1"], "--opacity is -1.0"),
        (["{a}", "--batch-size", "0"], "--batch-size is '0'"),
        (["{a}", "--window", "10"], "--window is '10'; it must be auto, off or"),
        (["{a}", "--steady", "2"], "--steady is 2.0"),
        (["{a}", "--every", "0"], "--every is 0"),
        (["{a}", "--fps", "0"], "--fps is 0.0"),
        (["{a}", "--fps", "2", "--every", "3"], "--every and --fps"),
        (["{a}", "--start", "-1"], "--start is -1.0"),
        (["{a}", "--start", "5", "--end", "5"], "--end is 5.0"),
        (["{a}", "--shard", "3/2"], "The shard is '3/2'"),
        (["{a}", "-0"], "-0 is for a list"),
        (["{a}", "pipe:"], "pipe: stands for all of standard input"),
        (["{a}", "--json", "--jsonl"], "both want standard output"),
        (["{a}", "--max-pixels", "0"], "--max-pixels is 0"),
        (["{a}", "--device", "gpu"], "--device is 'gpu'"),
        (["{a}", "--precision", "int8"], "int8"),
        (["{a}", "--synonyms", "last"], "last"),
        (["{a}", "--model", "errseg-huge"], "no model 'errseg-huge'"),
        (["{a}", "--weights", "{gone}"], "no checkpoint"),
        (["{a}", "{a}x.jpg", "-o", "{a}"], "a.png"),
        (["{x}/a.png", "{y}", "--outputs", "areas"], "are all called 'a.png'"),
        ([], "INPUT"),
    ],
)
def test_wrong_usage_gives_exit_2_before_anything_is_done(
    tmp_path: Path, tiny_weights: Path, arguments: list[str], message: str
) -> None:
    places = {name: tmp_path / name for name in ("gone", "empty", "x", "y")}
    places |= {"a": picture(tmp_path / "a.png"), "twice": tmp_path / "twice.txt"}
    places["empty"].mkdir()
    places["twice"].write_text("sky\n# a comment\nsky\n")
    picture(tmp_path / "a.pngx.jpg")
    picture(tmp_path / "x" / "a.png")
    picture(tmp_path / "y" / "a.png")
    line = ["--classes", "sky, sea", "--weights", str(tiny_weights), "-o", str(tmp_path / "out")]
    line = ["run", *line, *(argument.format(**places) for argument in arguments)]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_collisions_are_found_before_torch_is_imported(tmp_path: Path, tiny_weights: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "a.jpg")
    line = [str(tmp_path / "in"), "--classes", "sky", "-o", str(tmp_path / "out")]
    code = (
        "import sys; from errseg_cli.main import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "run", *line, "--weights", str(tiny_weights)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "False\n")
    assert "'a.jpg' and 'a.png' would both be written" in result.stderr


@pytest.mark.parametrize("arguments", [["--weights", "damaged"], ["--model", "errseg-base"]])
def test_weights_that_do_not_serve_give_exit_2(tmp_path: Path, arguments: list[str]) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "damaged").write_bytes(b"x" * 100)
    arguments = [a.replace("damaged", str(tmp_path / "damaged")) for a in arguments]
    line = ["run", str(tmp_path / "a.png"), "--classes", "sky", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*line, *arguments])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    line = ["run", str(tmp_path / "gone"), "--classes", "sky", "--debug"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback")


def test_an_interruption_leaves_areas_and_labels_in_step(
    tmp_path: Path, tiny_weights: Path
) -> None:
    first = picture(tmp_path / "in" / "000.png", (50, 50))
    for number in range(1, 300):
        (tmp_path / "in" / f"{number:03}.png").hardlink_to(first)
    out = tmp_path / "out"
    line = [sys.executable, "-c", "from errseg_cli.main import main; main()", "run"]
    line += [str(tmp_path / "in"), "-o", str(out), "--classes", "sky, sea", "--device", "cpu"]
    process = subprocess.Popen(
        [*line, "--weights", str(tiny_weights)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Started in the background by a shell, this test would hand down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    assert process.stderr is not None
    with process:
        seen = next(line for line in process.stderr if line.startswith("errseg: 5/300"))
        os.kill(process.pid, signal.SIGINT)
        stderr = seen + process.stderr.read()
    assert process.returncode == 130, stderr
    assert "interrupted with" in stderr
    assert "Traceback" not in stderr
    record = record_of(out)
    labels = sorted(path.name for path in (out / "labels").iterdir())
    assert record["state"] == "interrupted"
    assert record["counts"]["done"] == len(labels) < 300  # type: ignore[index]
    assert list(areas_of(out)) == labels
    assert areas_of(out) == histograms_of(out, labels)


def test_defaults_are_those_of_the_library() -> None:
    defaults = {name: p.default for name, p in inspect.signature(run).parameters.items()}
    assert defaults["opacity"] == DEFAULT_OPACITY
    assert defaults["max_pixels"] == DEFAULT_MAX_PIXELS
    assert defaults["outputs"] == ",".join(OUTPUT_KINDS)
