"""`errseg run --resume`: real kills, and what may not be continued."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clips import make_clip
from runner import Runner, files_in, picture, record_of

from errseg.journal import Journal

KILLING = Path(__file__).parents[1] / "killing.py"
SEGMENT_FRAMES = 6
VOLATILE = {"started", "finished", "seconds", "frames_per_second", "command", "options"}
"""What of run.json no two runs have in common, and what names the output folder."""


def tree_of(out: Path) -> dict[str, object]:
    """Everything in an output folder, byte for byte; of run.json what does not depend on time."""
    tree: dict[str, object] = {name: (out / name).read_bytes() for name in files_in(out)}
    record = {key: value for key, value in record_of(out).items() if key not in VOLATILE}
    return {**tree, "run.json": record}


def differing(one: dict[str, object], other: dict[str, object]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def run_killed(
    weights: Path, seed: int, kills: int, seconds: float, arguments: list[object]
) -> tuple[int, int]:
    """How many runs were killed, and the exit code of the one that was not."""
    line = [seed, kills, seconds, SEGMENT_FRAMES, "run", *arguments, "--classes", "sky, sea, sand"]
    line += ["--device", "cpu", "--weights", weights, "--resume"]
    done = subprocess.run(
        [sys.executable, KILLING, *map(str, line)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    killed, code = map(int, done.stdout.split())
    return killed, code


def mixed_input(folder: Path) -> Path:
    """Pictures, one of them damaged, and two videos."""
    for number in range(12):
        picture(folder / f"{number:02}.png", (40 + number, 60), seed=number)
    (folder / "05.png").write_bytes((folder / "05.png").read_bytes()[:200])
    make_clip(folder / "clip.mp4", frames=30)
    make_clip(folder / "deep" / "other.mp4", frames=9)
    return folder


@pytest.mark.parametrize(
    "more", [[], ["--batch-size", 3, "--steady", 0.7, "--video-labels", "ffv1"]]
)
def test_killed_runs_end_in_the_tree_of_an_undisturbed_one(
    tmp_path: Path, errseg_run: Runner, monkeypatch: pytest.MonkeyPatch, more: list[object]
) -> None:
    monkeypatch.setattr("errseg.videos_in_hand.SEGMENT_FRAMES", SEGMENT_FRAMES)
    folder = mixed_input(tmp_path / "in")
    start = time.perf_counter()
    assert errseg_run(folder, "-o", tmp_path / "whole", *more).exit_code == 1
    seconds = time.perf_counter() - start
    seed = random.randrange(10**6)
    arguments = [folder, "-o", tmp_path / "killed", *more]
    killed, code = run_killed(errseg_run.weights, seed, 12, seconds, arguments)
    assert code == 1
    assert killed >= 1
    found = differing(tree_of(tmp_path / "whole"), tree_of(tmp_path / "killed"))
    assert not found, f"seed {seed}: {found}"


def test_a_finished_run_is_left_alone(tmp_path: Path, errseg_run: Runner) -> None:
    folder, out = mixed_input(tmp_path / "in"), tmp_path / "out"
    assert errseg_run(folder, "-o", out, "--resume").exit_code == 1  # nothing there: a new run
    labels = out / "labels"
    times = {name: (labels / name).stat().st_mtime_ns for name in files_in(labels)}
    before = tree_of(out)
    again = errseg_run(folder, "-o", out, "--resume")
    assert again.exit_code == 1
    assert "were there already" in again.stderr
    assert differing(before, tree_of(out)) == []
    assert times == {name: (labels / name).stat().st_mtime_ns for name in files_in(labels)}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_only_what_is_missing_or_changed_is_done(
    tmp_path: Path, errseg_run: Runner, batch_size: int
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for number in range(8):
        picture(folder / f"{number}.png", seed=number)
    arguments = (folder, "-o", out, "--batch-size", batch_size)
    assert errseg_run(*arguments).exit_code == 0
    before = tree_of(out)
    (out / "labels/1.png").unlink()
    picture(folder / "6.png", (50, 70), seed=99)
    picture(folder / "new.png", seed=100)
    result = errseg_run(*arguments, "--resume")
    assert result.exit_code == 0
    assert f"{6 if batch_size == 1 else 0} pictures were there already" in result.stderr or (
        batch_size == 4
    )
    after = tree_of(out)
    changed = set(differing(before, after))
    assert changed == {
        ".errseg/journal.jsonl",
        "areas.csv",
        "labels/6.png",
        "labels/new.png",
        "overlays/6.jpg",
        "overlays/new.jpg",
        "run.json",
    }
    fresh = errseg_run(folder, "-o", tmp_path / "fresh", "--batch-size", batch_size)
    assert fresh.exit_code == 0
    assert differing(tree_of(tmp_path / "fresh"), after) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--threshold", 0.5], "--threshold was 0.0 and is now 0.5"),
        (["--outputs", "labels"], "--outputs was 'areas,labels,overlays' and is now 'labels'"),
        (["--keep", 2, "--steady", 0.3], "--keep was 'default' and is now '2', --steady was"),
        (["--overwrite"], "--overwrite starts anew and --resume goes on"),
    ],
)
def test_another_run_is_not_continued(
    tmp_path: Path, errseg_run: Runner, more: list[object], message: str
) -> None:
    source, out = picture(tmp_path / "a.png"), tmp_path / "out"
    assert errseg_run(source, "-o", out).exit_code == 0
    before = tree_of(out)
    refused = errseg_run(source, "-o", out, "--resume", *more)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert before == tree_of(out)


def test_a_run_with_other_classes_is_not_continued(tmp_path: Path, errseg_run: Runner) -> None:
    source, out = picture(tmp_path / "a.png"), tmp_path / "out"
    assert errseg_run(source, "-o", out).exit_code == 0
    refused = errseg_run(source, "-o", out, "--resume", classes="sky, sea, rock")
    assert refused.exit_code == 2
    assert "--classes was" in refused.stderr


@pytest.mark.parametrize("content", ["", "[]", '{"version": "0"}', "not json"])
def test_a_run_that_cannot_be_told_is_not_continued(
    tmp_path: Path, errseg_run: Runner, content: str
) -> None:
    source, out = picture(tmp_path / "a.png"), tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text(content)
    refused = errseg_run(source, "-o", out, "--resume")
    assert refused.exit_code == 2
    assert "cannot tell from" in refused.stderr


def test_a_second_run_into_the_same_folder_is_refused(tmp_path: Path, errseg_run: Runner) -> None:
    source, out = picture(tmp_path / "a.png"), tmp_path / "out"
    assert errseg_run(source, "-o", out).exit_code == 0
    journal = Journal(out)
    refused = errseg_run(source, "-o", out, "--resume")
    journal.close()
    assert refused.exit_code == 2
    assert "another run is writing" in refused.stderr


def test_half_written_files_of_a_killed_run_are_removed(tmp_path: Path, errseg_run: Runner) -> None:
    source, out = picture(tmp_path / "a.png"), tmp_path / "out"
    assert errseg_run(source, "-o", out).exit_code == 0
    before = tree_of(out)
    (out / "labels/.0123456789abcdef.part").write_text("half")
    (out / "labels/.mine.part").write_text("a file of the user's")
    assert errseg_run(source, "-o", out, "--resume").exit_code == 0
    assert differing(before, tree_of(out)) == ["labels/.mine.part"]


def test_overwriting_forgets_the_journal(tmp_path: Path, errseg_run: Runner) -> None:
    source, out = picture(tmp_path / "a.png"), tmp_path / "out"
    other = picture(tmp_path / "b.png", seed=1)
    assert errseg_run(other, "-o", out).exit_code == 0
    assert errseg_run(source, "-o", out, "--overwrite").exit_code == 0
    lines = (out / ".errseg/journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["source"] for line in lines] == ["a.png"]
    assert record_of(out)["counts"]["frames"] == 1  # type: ignore[index]


def test_overwriting_a_video_leaves_none_of_its_earlier_frames(
    tmp_path: Path, errseg_run: Runner
) -> None:
    clip, out = make_clip(tmp_path / "clip.mp4", frames=9), tmp_path / "out"
    assert errseg_run(clip, "-o", out).exit_code == 0
    (out / "labels/clip/mine.png").write_text("a file of the user's")
    assert errseg_run(clip, "-o", out, "--overwrite", "--every", 4).exit_code == 0
    names = [Path(name).name for name in files_in(out / "labels")]
    assert names == ["000000.png", "000004.png", "000008.png", "mine.png"]
