from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

# Before torch is imported, here and in subprocesses: on tiny pictures several threads only wait for
# each other, a hundred times as long where another program keeps the cores busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests keep nothing in the user's own cache; those of the cache itself name a folder.
os.environ["ERRSEG_CACHE"] = "off"

# Nor do they use the network, or weights that the user has downloaded.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = str(Path(tempfile.gettempdir()) / "errseg-tests-without-a-cache")


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded model that answers in milliseconds, under the name of the embedded one."""
    import dataclasses

    import torch

    from errseg.config import PRESETS
    from errseg.model.err_seg import ErrSeg
    from errseg.weights import save_model

    torch.manual_seed(0)
    config = dataclasses.replace(PRESETS["tiny"], name="errseg-mini")
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(ErrSeg(config).eval(), path)
    return path
