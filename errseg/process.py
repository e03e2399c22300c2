"""Settings of a process that computes on a CPU; to be made before torch is imported.

`errseg` makes them when it starts. A program of yours that uses the library may call
`prepare_process()` first thing: it changes how fast things are, and nothing else.
"""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD = 2**31 - 1
"""Bytes that may lie free at the end of the heap; mallopt takes no more."""

# mallopt(3)
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def prepare_process() -> None:
    """Let threads wait in peace, and let memory that was freed serve again.

    What the user has set in the environment stays as it is.
    """
    # With two runs at once on one machine, threads that spin while they wait slow both down many
    # times. libgomp reads this when torch is imported; a run alone loses a few per cent.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    # Each layer's results are as large as those of the layer before. Memory that comes anew from
    # the system costs a page fault every 4 KB, as long as some layers take to compute: so it comes
    # in huge pages (torch reads this), and is kept on the heap, which large pieces come from too.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform == "linux" and not _allocator_is_set():
        # only glibc has it
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD)


def _allocator_is_set() -> bool:
    return any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
