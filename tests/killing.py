"""Runs `errseg run` over and over, killed at random moments, until one run comes to its end.

    python killing.py SEED KILLS SECONDS FRAMES ARGUMENT...

Everything heavy is imported once; each run is a fork. SECONDS is about what an undisturbed run
takes; the moments are spread over it, but the first comes early: on a busy machine the undisturbed
run may have taken many times its time, and what is done once cannot be killed. FRAMES are in one
segment of a video. Prints how many runs were killed, and the last exit code.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time


def child(arguments: list[str]) -> int:
    """Fork; the child runs the command."""
    process = os.fork()
    if process:
        return process
    from errseg_cli.main import app

    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    code = 70
    try:
        app(arguments, standalone_mode=True)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def main() -> None:
    seed, kills, seconds, frames, *arguments = sys.argv[1:]
    import errseg.segmenter
    import errseg.videos_in_hand
    import errseg_cli.main  # noqa: F401 - before the first fork

    errseg.videos_in_hand.SEGMENT_FRAMES = int(frames)
    moments = random.Random(int(seed))
    killed = 0
    for _ in range(int(kills)):
        process = child(arguments)
        longest = float(seconds) if killed else float(seconds) / 20
        time.sleep(moments.uniform(0, longest))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if not os.WIFSIGNALED(status):
            break
        killed += 1
    _, status = os.waitpid(child(arguments), 0)
    sys.stdout.write(f"{killed} {os.waitstatus_to_exitcode(status)}\n")


if __name__ == "__main__":
    main()
