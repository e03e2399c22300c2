"""Settings of a process, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import ctypes, os, sys
calls = []
class Library:
    def mallopt(self, kind, value):
        calls.append((kind, value))
ctypes.CDLL = lambda name: Library()
from errseg.process import prepare_process
assert "torch" not in sys.modules
prepare_process()
print(os.environ["GOMP_SPINCOUNT"], os.environ["THP_MEM_ALLOC_ENABLE"], len(calls))
"""


def prepared(**environment: str) -> list[str]:
    own = ("GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES")
    rest = {
        name: value
        for name, value in os.environ.items()
        if name not in own and not name.startswith("MALLOC_")
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**rest, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_a_process_keeps_memory_and_lets_threads_wait() -> None:
    assert prepared() == ["5000", "1", "2"]


def test_what_the_user_set_stays() -> None:
    assert prepared(
        GOMP_SPINCOUNT="7", THP_MEM_ALLOC_ENABLE="0", MALLOC_TRIM_THRESHOLD_="1000000"
    ) == ["7", "0", "0"]
    assert prepared(GLIBC_TUNABLES="glibc.malloc.tcache_count=0")[2] == "0"
