"""How many pictures at once are fastest on this machine: tried out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from errseg.halving import Segment, is_out_of_memory

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
WORTH_IT = 0.95
"""A larger batch must bring the time per picture below this share of the best so far."""

SAMPLE_SIZE = (480, 640)


def best_batch_size(
    segment: Segment,
    sizes: Sequence[int] = BATCH_SIZES,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Try batches of growing size, until one is no faster per picture or does not fit.

    Args:
        segment: the model.
        sizes: ascending.
        clock: seconds.

    Returns:
        The smallest size that is about as fast as the fastest.
    """
    sample = np.random.default_rng(0).integers(0, 256, (*SAMPLE_SIZE, 3), np.uint8)
    best, best_seconds = sizes[0], float("inf")
    for size in sizes:
        try:
            segment([sample] * size)  # warm-up: kernels are chosen, memory is taken
            start = clock()
            segment([sample] * size)
            seconds = (clock() - start) / size
        except Exception as error:
            if size == sizes[0] or not is_out_of_memory(error):
                raise
            return best
        if seconds > WORTH_IT * best_seconds:
            return best
        best, best_seconds = size, seconds
    return best
