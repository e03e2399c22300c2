"""What happens to a run when the machine is against it: every file named, nothing lost."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from clips import make_clip
from names import AWKWARD_SOURCES
from PIL import Image
from runner import Runner, areas_of, files_in, labels_of, picture, record_of
from test_pipelines import COMMAND, lines_of

from errseg.pipeline import WRITE_FAILURES_IN_A_ROW


def limited_run(
    weights: Path, folder: Path, out: Path, most_bytes: int, *more: object
) -> subprocess.CompletedProcess[str]:
    """A run that cannot write files of more than so many bytes: a full disk, for large files."""
    line = [*COMMAND, str(folder), "-o", str(out), "--classes", "sky, sea", "--device", "cpu"]
    return subprocess.run(
        [*line, "--weights", str(weights), *map(str, more)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY)
        ),
    )


def test_files_that_do_not_fit_are_named_and_never_half_written(
    tmp_path: Path, tiny_weights: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    picture(folder / "large.png", (300, 400))
    picture(folder / "small.png", (20, 30))
    result = limited_run(tiny_weights, folder, out, 20_000)
    assert result.returncode == 1
    assert f"failed: large.png: cannot write '{out}/overlays/large.jpg'" in result.stderr
    assert "Traceback" not in result.stderr
    assert files_in(out / "overlays") == ["small.jpg"]
    assert list(areas_of(out)) == ["small.png"]
    again = limited_run(tiny_weights, folder, out, 10_000_000, "--resume")
    assert again.returncode == 0, again.stderr
    assert "1 pictures were there already" in again.stderr
    assert list(areas_of(out)) == ["large.png", "small.png"]


def test_a_run_that_can_write_nothing_ends_and_says_so(tmp_path: Path, tiny_weights: Path) -> None:
    first = picture(tmp_path / "in/000.png", (100, 100))
    for number in range(1, 80):
        (tmp_path / f"in/{number:03}.png").hardlink_to(first)
    result = limited_run(tiny_weights, tmp_path / "in", tmp_path / "out", 3000)
    assert result.returncode == 1
    assert "interrupted with" in result.stderr
    assert f"{WRITE_FAILURES_IN_A_ROW} results in a row could not be written" in result.stderr


def test_a_video_that_does_not_fit_is_named(tmp_path: Path, tiny_weights: Path) -> None:
    make_clip(tmp_path / "in/a.mp4", 40, (240, 320))
    picture(tmp_path / "in/b.png", (20, 30))
    result = limited_run(tiny_weights, tmp_path / "in", tmp_path / "out", 30_000)
    assert result.returncode == 1
    assert "failed: a.mp4: " in result.stderr
    assert "Traceback" not in result.stderr
    assert files_in(tmp_path / "out/overlays") == ["b.jpg"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_found_at_the_start(
    tmp_path: Path, errseg_run: Runner
) -> None:
    source, out = picture(tmp_path / "a.png"), tmp_path / "out"
    out.mkdir(mode=0o500)
    result = errseg_run(source, "-o", out)
    assert result.exit_code == 2
    assert "is read-only" in result.stderr


def png_claiming(width: int, height: int) -> bytes:
    """A small PNG that says it is large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes(100_000))
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_files_that_lie_are_named_one_by_one(tmp_path: Path, errseg_run: Runner) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    whole = picture(folder / "whole.jpg", (60, 80)).read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("dear diary")
    png = bytearray(picture(folder / "x.png", (40, 40)).read_bytes())
    (folder / "x.png").unlink()
    png[len(png) // 2] ^= 0xFF
    (folder / "checksum.png").write_bytes(png)
    (folder / "bomb.png").write_bytes(png_claiming(60_000, 60_000))
    (folder / "link.png").symlink_to("link.png")
    (folder / "folder.png").mkdir()
    picture(folder / "one.png", (1, 1))
    picture(folder / "line.png", (1, 5000))
    (folder / "no video.mp4").write_bytes(b"\0" * 5000)
    result = errseg_run(folder, "-o", out, "--jsonl")
    assert result.exit_code == 1
    lines = {str(line["source"]): line for line in lines_of(result.stdout)}
    failed = {name for name, line in lines.items() if "error" in line}
    bad = {"truncated.jpg", "empty.png", "text.jpg", "checksum.png", "bomb.png", "link.png"}
    assert failed == {*bad, "no video.mp4"}
    assert "--max-pixels" in str(lines["bomb.png"]["error"])
    assert sorted(areas_of(out)) == ["line.png", "one.png", "whole.jpg"]
    assert labels_of(out / "labels/line.png").shape == (1, 5000)


def test_awkward_names_keep_their_names(tmp_path: Path, errseg_run: Runner) -> None:
    names = [name for name in AWKWARD_SOURCES if "." in Path(name).name]
    for name in names:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((4, 5, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "x.png")
        (tmp_path / "x.png").rename(path)
    result = errseg_run(tmp_path / "in", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    found = {str(Path(name).with_suffix("")) for name in files_in(tmp_path / "out/labels")}
    assert found == {str(Path(name).with_suffix("")) for name in names}
    assert len((tmp_path / "out/areas.csv").read_bytes()) > 0


def test_a_loop_of_links_is_walked_once(tmp_path: Path, errseg_run: Runner) -> None:
    picture(tmp_path / "in/deep/a.png", (10, 10))
    (tmp_path / "in/deep/up").symlink_to(tmp_path / "in")
    assert errseg_run(tmp_path / "in", "-o", tmp_path / "out").exit_code == 0
    assert list(areas_of(tmp_path / "out")) == ["deep/a.png"]


def test_a_source_inside_the_output_folder_is_not_taken(tmp_path: Path, errseg_run: Runner) -> None:
    picture(tmp_path / "a.png", (10, 10))
    out = tmp_path / "out"
    assert errseg_run(tmp_path, "-o", out).exit_code == 0
    assert errseg_run(tmp_path, "-o", out, "--resume").exit_code == 0
    assert list(areas_of(out)) == ["a.png"]
    assert record_of(out)["counts"]["done"] == 1  # type: ignore[index]
