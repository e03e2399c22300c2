"""`errseg run` among other programs: lists, pipes, JSON lines, signals, shards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import av
import pytest
from clips import make_clip
from runner import Runner, areas_of, files_in, labels_of, picture, record_of

COMMAND = [sys.executable, "-c", "from errseg_cli.main import main; main()", "run"]


def started(weights: Path, *arguments: object, **options: object) -> subprocess.Popen[bytes]:
    """The command in a process of its own."""
    line = [*COMMAND, *map(str, arguments), "--classes", "sky, sea, sand", "--device", "cpu"]
    return subprocess.Popen(
        [*line, "--weights", str(weights)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Started in the background by a shell, this test would hand down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
        **options,  # type: ignore[call-overload]
    )


def many_pictures(folder: Path, count: int) -> Path:
    first = picture(folder / "000.png", (50, 50))
    for number in range(1, count):
        (folder / f"{number:03}.png").hardlink_to(first)
    return folder


def lines_of(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


# JSON lines


def test_a_json_object_per_picture_as_it_is_done(tmp_path: Path, errseg_run: Runner) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    picture(folder / "a b.png", (40, 60))
    (folder / "bad.png").write_text("no picture")
    make_clip(folder / "clip.mp4", frames=3)
    result = errseg_run(folder, "-o", out, "--jsonl", "--threshold", 0.5)
    assert result.exit_code == 1
    first, *rest = sorted(lines_of(result.stdout), key=lambda line: str(line["source"]))
    assert first["source"] == "a b.png"
    assert (first["width"], first["height"], first["frame"], first["time_s"]) == (60, 40, 0, 0)
    areas = first["areas"]
    assert isinstance(areas, list)
    assert {area["class_id"]: area["pixels"] for area in areas} == areas_of(out)["a b.png"]
    assert set(areas[0]) == {"class_id", "class", "pixels", "fraction", "mean_score"}
    outputs = {"overlays": f"{out}/overlays/a b.jpg", "labels": f"{out}/labels/a b.png"}
    assert first["outputs"] == outputs
    assert rest[0]["source"] == "bad.png"
    assert "not a picture" in str(rest[0]["error"])
    frames, end = rest[1:-1], rest[-1]
    assert [(line["frame"], line["time_s"]) for line in frames] == [(0, 0), (1, 0.1), (2, 0.2)]
    assert end["end"] is True
    assert end["outputs"] == {
        "overlays": f"{out}/overlays/clip.mp4",
        "labels": f"{out}/labels/clip",
    }


def test_no_outputs_write_nothing(tmp_path: Path, errseg_run: Runner) -> None:
    picture(tmp_path / "in/a.png")
    make_clip(tmp_path / "in/clip.mp4", frames=3)
    before = files_in(tmp_path)
    out = tmp_path / "out"
    result = errseg_run(tmp_path / "in", "-o", out, "--outputs", "none", "--jsonl")
    assert result.exit_code == 0
    assert [line["outputs"] for line in lines_of(result.stdout)] == [{}] * 5
    assert files_in(tmp_path) == before
    assert not out.exists()


def test_lines_come_while_the_run_goes_on(tmp_path: Path, tiny_weights: Path) -> None:
    """The first frames are out before the rest of the video is in."""
    process = started(tiny_weights, "pipe:", "-o", tmp_path / "o", "--jsonl", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    clip = make_clip(tmp_path / "c.mkv", frames=60, size=(240, 320)).read_bytes()
    with process:
        process.stdin.write(clip[: len(clip) * 2 // 3])
        process.stdin.flush()
        early = json.loads(process.stdout.readline())
        process.stdin.write(clip[len(clip) * 2 // 3 :])
        process.stdin.close()
        rest = process.stdout.read()
    assert early["frame"] == 0
    assert len(rest.splitlines()) == 60


@pytest.mark.parametrize("read", [0, 3])
def test_a_reader_that_goes_away_ends_the_run_quietly(
    tmp_path: Path, tiny_weights: Path, read: int
) -> None:
    folder, out = many_pictures(tmp_path / "in", 200), tmp_path / "out"
    process = started(tiny_weights, folder, "-o", out, "--jsonl", "--quiet")
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        for _ in range(read):
            process.stdout.readline()
        process.stdout.close()
        stderr = process.stderr.read().decode()
    assert process.returncode == 128 + signal.SIGPIPE
    assert "Traceback" not in stderr
    assert "Broken" not in stderr
    record = record_of(out)
    assert record["state"] == "interrupted"
    done = record["counts"]["done"]  # type: ignore[index]
    assert read <= done < 200
    assert len(areas_of(out)) == done


# Signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_batch_in_hand(
    tmp_path: Path, tiny_weights: Path, number: signal.Signals, code: int
) -> None:
    folder, out = many_pictures(tmp_path / "in", 300), tmp_path / "out"
    process = started(tiny_weights, folder, "-o", out, "--jsonl")
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        for _ in range(5):
            process.stdout.readline()
        process.send_signal(number)
        process.stdout.read()
        stderr = process.stderr.read().decode()
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert "interrupted with" in stderr
    assert stderr.splitlines()[-1].startswith("to go on: errseg ")
    assert stderr.splitlines()[-1].endswith(" --resume")
    labels = sorted(path.name for path in (out / "labels").iterdir())
    assert list(areas_of(out)) == labels
    assert record_of(out)["counts"]["done"] == len(labels)  # type: ignore[index]


def test_a_second_signal_ends_at_once(tmp_path: Path, tiny_weights: Path) -> None:
    """Between the two, a pipe that nobody feeds keeps the run waiting."""
    process = started(tiny_weights, "pipe:", "-o", tmp_path / "out", stdin=subprocess.PIPE)
    assert process.stderr is not None
    clip = make_clip(tmp_path / "c.mkv", frames=60, size=(240, 320)).read_bytes()
    with process:
        assert process.stdin is not None
        process.stdin.write(clip[: len(clip) // 2])
        process.stdin.flush()
        for line in process.stderr:
            if b"frames" in line:
                break
        process.send_signal(signal.SIGTERM)
        for line in process.stderr:
            if b"finishing the batch" in line:
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143


# Lists and pipes


def run_with_input(weights: Path, arguments: Sequence[object], data: bytes) -> tuple[int, str, str]:
    process = started(weights, *arguments, stdin=subprocess.PIPE)
    out, error = process.communicate(data)
    return process.returncode, out.decode(), error.decode()


def test_a_list_with_nul_holds_any_name(tmp_path: Path, tiny_weights: Path) -> None:
    names = ["new\nline.png", "two words.png", "\N{DOG FACE}.png", "not utf-8 \udcff.png"]
    for name in names:
        picture(tmp_path / "in" / "x.png").rename(tmp_path / "in" / name)
    data = b"\0".join(os.fsencode(tmp_path / "in" / name) for name in names)
    code, out, error = run_with_input(
        tiny_weights, ["-0", "-", "-o", tmp_path / "out", "--jsonl"], data + b"\0"
    )
    assert code == 0, error
    assert [line["source"] for line in lines_of(out)] == names
    assert sorted(path.name for path in (tmp_path / "out/labels").iterdir()) == sorted(names)


def test_a_picture_and_a_video_from_standard_input(tmp_path: Path, tiny_weights: Path) -> None:
    data = picture(tmp_path / "a.jpg", (30, 50)).read_bytes()
    code, _, error = run_with_input(tiny_weights, ["pipe:", "-o", tmp_path / "one"], data)
    assert code == 0, error
    assert labels_of(tmp_path / "one/labels/stdin.png").shape == (30, 50)

    data = make_clip(tmp_path / "c.mkv", frames=7).read_bytes()
    code, _, error = run_with_input(tiny_weights, ["pipe:", "-o", tmp_path / "two"], data)
    assert code == 0, error
    assert len(list((tmp_path / "two/labels/stdin").iterdir())) == 7
    with av.open(str(tmp_path / "two/overlays/stdin.mp4")) as container:
        assert len(list(container.decode(video=0))) == 7

    code, _, error = run_with_input(tiny_weights, ["pipe:", "-o", tmp_path / "none"], b"")
    assert code == 1
    assert "it is empty" in error


def test_shards_together_are_the_whole(tmp_path: Path, errseg_run: Runner) -> None:
    for number in range(9):
        picture(tmp_path / "in" / f"{number}.png", (10, 12), seed=number)
    sources: list[str] = []
    for part in (1, 2, 3):
        out = tmp_path / f"out{part}"
        assert errseg_run(tmp_path / "in", "-o", out, "--shard", f"{part}/3").exit_code == 0
        sources += areas_of(out)
    assert sorted(sources) == [f"{number}.png" for number in range(9)]


# Videos


def test_a_video_and_its_sound(tmp_path: Path, errseg_run: Runner) -> None:
    times = [0, 0.1, 0.15, 0.4, 0.5, 0.9]
    clip = make_clip(tmp_path / "clip.mp4", 6, times=times, sound="aac")
    out = tmp_path / "out"
    result = errseg_run(clip, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert "1 input done, 6 frames" in result.stderr
    with av.open(str(out / "overlays/clip.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        found = [frame.time for frame in container.decode(video=0)]
    assert found == pytest.approx(times, abs=0.002)
    rows = (out / "areas.csv").read_text().splitlines()[1:]
    stamps = sorted({tuple(row.split(",")[1:3]) for row in rows})
    assert stamps == [(str(i), f"{time:.3f}") for i, time in enumerate(times)]


def test_a_video_cut_short_gives_what_it_holds(tmp_path: Path, errseg_run: Runner) -> None:
    clip = make_clip(tmp_path / "clip.mp4", 60, (96, 128), options={"movflags": "faststart"})
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) * 2 // 3])
    result = errseg_run(clip, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "cut short after" in result.stderr
    count = record_of(tmp_path / "out")["counts"]["frames"]  # type: ignore[index]
    assert 5 < count < 60
    with av.open(str(tmp_path / "out/overlays/clip.mp4")) as container:
        assert len(list(container.decode(video=0))) == count
    again = errseg_run(clip, "-o", tmp_path / "out", "--resume")
    assert again.exit_code == 1
    assert "cut short after" in again.stderr
    assert f"{count} frames were there already" in again.stderr


def test_sampled_frames_keep_their_numbers(tmp_path: Path, errseg_run: Runner) -> None:
    clip = make_clip(tmp_path / "clip.mkv", 20)
    arguments = ("--every", 3, "--start", 0.5, "--end", 1.6, "--outputs", "labels")
    assert errseg_run(clip, "-o", tmp_path / "out", *arguments).exit_code == 0
    names = sorted(path.name for path in (tmp_path / "out/labels/clip").iterdir())
    assert names == [f"{i:06}.png" for i in (6, 9, 12, 15)]
