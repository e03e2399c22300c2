"""Corrupted files for as long as you like: what tests/test_fuzz.py checks, with ever new seeds.

python bench/fuzz.py --seconds 180
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_fuzz import (
    PICTURES,
    VIDEOS,
    check_picture,
    check_video,
    corrupted,
    picture_bytes,
    supported,
    video_bytes,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1_000_000)
    options = parser.parse_args()
    kinds = [kind for kind in PICTURES if supported(kind)]
    end = time.monotonic() + options.seconds
    counts: Counter[str] = Counter()
    found = 0
    slowest = (0.0, "")
    seed = options.seed
    while time.monotonic() < end:
        seed += 1
        for kind in (*kinds, *VIDEOS):
            start = time.monotonic()
            try:
                if kind in VIDEOS:
                    check_video(corrupted(video_bytes(kind), seed))
                else:
                    check_picture(corrupted(picture_bytes(kind), seed))
            except Exception:
                found += 1
                print(f"{kind}, seed {seed}:", traceback.format_exc(), sep="\n")
            counts[kind] += 1
            slowest = max(slowest, (time.monotonic() - start, f"{kind}, seed {seed}"))
    print(f"{counts.total()} inputs, {found} findings, slowest {slowest[0]:.2f} s ({slowest[1]})")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
