"""Memory over long runs, and runs that are killed: does anything grow, does anything get lost?

    python bench/soak.py pictures --count 20000     # small pictures
    python bench/soak.py large --count 6            # 50 megapixels each
    python bench/soak.py classes                    # T = 847
    python bench/soak.py video --minutes 120        # one long video
    python bench/soak.py kills --count 50           # kill -9 at random moments, then --resume

Each runs the command `errseg run` in a process of its own and prints its peak memory, and how much
memory it held after a tenth of the work and at its end. `--model tiny` takes a model with seeded
random weights that answers in milliseconds: what surrounds the model is the same, and a night's
work fits into minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
SAMPLE_EVERY_S = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("pictures", "large", "classes", "video", "kills"))
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--model", choices=("mini", "tiny"), default="tiny")
    parser.add_argument("--window", default="auto")
    parser.add_argument("--work", type=Path, help="folder for inputs and results")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        found = KINDS[options.what](options, work)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:32} {value}")


def pictures(options: argparse.Namespace, work: Path) -> dict[str, object]:
    """Many small pictures, hard links to a few hundred files."""
    count = options.count or 20_000
    folder = work / "pictures"
    originals = [_picture(folder / f"{i:06}.jpg", (120, 160), i) for i in range(200)]
    for number in range(200, count):
        target = folder / f"{number:06}.jpg"
        if not target.exists():
            target.hardlink_to(originals[number % 200])
    return _watched(_run(options, folder, work / "out", "sky, sea, road, person, tree"))


def large(options: argparse.Namespace, work: Path) -> dict[str, object]:
    """Pictures of 50 megapixels."""
    folder = work / "large"
    for number in range(options.count or 6):
        _picture(folder / f"{number}.jpg", (6144, 8192), number)
    return _watched(_run(options, folder, work / "out", "sky, sea, road, person, tree"))


def classes(options: argparse.Namespace, work: Path) -> dict[str, object]:
    """847 classes."""
    folder = work / "classes"
    for number in range(options.count or 50):
        _picture(folder / f"{number}.jpg", (480, 640), number)
    return _watched(_run(options, folder, work / "out", "ade20k-847"))


def video(options: argparse.Namespace, work: Path) -> dict[str, object]:
    """One long video, one frame a second of it segmented."""
    path = work / "video" / "long.mp4"
    if not path.exists():
        _video(path, options.minutes * 60)
    line = _run(options, path, work / "out", "sky, sea, road, person, tree")
    return _watched([*line, "--fps", "1"])


def kills(options: argparse.Namespace, work: Path) -> dict[str, object]:
    """Pictures and a video, killed over and over, against the same work undisturbed."""
    folder = work / "mixed"
    for number in range(60):
        _picture(folder / f"{number:03}.jpg", (240, 320), number)
    _video(folder / "clip.mp4", 30)
    whole = _run(options, folder, work / "whole", "sky, sea, road")
    start = time.perf_counter()
    subprocess.run(whole, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    line = [*_run(options, folder, work / "killed", "sky, sea, road"), "--resume"]
    moments = random.Random(0)
    killed = attempts = 0
    while killed < (options.count or 30):
        attempts += 1
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(moments.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
        else:
            # finished before it was killed: throw a part away and go on
            labels = sorted((work / "killed/labels").glob("*.png"))
            for path in moments.sample(labels, len(labels) // 2):
                path.unlink()
    subprocess.run(line, check=True, capture_output=True)
    return {
        "kills survived": killed,
        "runs that ended by themselves": attempts - killed,
        "files that differ": _differing(work / "whole", work / "killed"),
    }


KINDS = {
    "pictures": pictures,
    "large": large,
    "classes": classes,
    "video": video,
    "kills": kills,
}


def _run(options: argparse.Namespace, source: Path, out: Path, vocabulary: str) -> list[str]:
    line = [sys.executable, "-c", "from errseg_cli.main import main; main()", "run", str(source)]
    line += ["--classes", vocabulary, "-o", str(out), "--window", options.window]
    return line if options.model == "mini" else [*line, "--weights", str(_tiny(out.parent))]


def _tiny(work: Path) -> Path:
    path = work / "tiny.safetensors"
    if not path.exists():
        import dataclasses

        import torch

        from errseg.config import PRESETS
        from errseg.model.err_seg import ErrSeg
        from errseg.weights import save_model

        torch.manual_seed(0)
        config = dataclasses.replace(PRESETS["tiny"], name="errseg-mini")
        save_model(ErrSeg(config).eval(), path)
    return path


def _watched(line: list[str]) -> dict[str, object]:
    """Run a command and watch its memory."""
    sizes: list[float] = []
    ended = threading.Event()
    start = time.perf_counter()
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def watch() -> None:
        while not ended.wait(SAMPLE_EVERY_S):
            sizes.append(_resident_mb(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, stderr = process.communicate()
    ended.set()
    watcher.join()
    tenth = sizes[len(sizes) // 10 :] or [0.0]
    third = max(1, len(tenth) // 3)
    return {
        "exit code": process.returncode,
        "summary": stderr.strip().splitlines()[-2:] if process.returncode else _summary(stderr),
        "seconds": round(time.perf_counter() - start, 1),
        "peak, MB": round(_children_peak_mb()),
        "mean of the first third, MB": round(float(np.mean(tenth[:third]))),
        "mean of the last third, MB": round(float(np.mean(tenth[-third:]))),
    }


def _summary(stderr: str) -> str:
    return next((line for line in stderr.splitlines() if " done" in line), "")


def _resident_mb(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/statm").read_text()
    except OSError:
        return 0.0
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _children_peak_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3


def _differing(one: Path, other: Path) -> list[str]:
    names = {
        path.relative_to(folder).as_posix()
        for folder in (one, other)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.json"
    }

    def content(path: Path) -> bytes | None:
        return path.read_bytes() if path.exists() else None

    return sorted(name for name in names if content(one / name) != content(other / name))


def _picture(path: Path, size: tuple[int, int], seed: int) -> Path:
    """A blotchy picture of (H, W) `size`."""
    import cv2

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3)).astype(np.uint8)
        cv2.imwrite(str(path), cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC))
    return path


def _video(path: Path, seconds: float, rate: int = 10, size: tuple[int, int] = (240, 320)) -> None:
    """A moving pattern, `rate` frames a second."""
    import av
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    scene = cv2.resize(coarse, (2 * size[1], 2 * size[0]), interpolation=cv2.INTER_CUBIC)
    part = path.with_name(f".{path.name}.part.mp4")
    with av.open(str(part), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], "yuv420p"
        for number in range(int(seconds * rate)):
            y, x = number % size[0], (number // 2) % size[1]
            window = np.ascontiguousarray(scene[y : y + size[0], x : x + size[1]])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(window, "bgr24")))
        container.mux(stream.encode(None))
    part.replace(path)


if __name__ == "__main__":
    main()
