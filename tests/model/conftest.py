from __future__ import annotations

import pytest
import torch
from seeded import build_model

from errseg.model.err_seg import ErrSeg


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def models() -> dict[str, ErrSeg]:
    """Built once: timm and open_clip take seconds to import. Tests must not change them."""
    return {name: build_model(name) for name in ("tiny", "tiny-convnext")}


@pytest.fixture(params=["tiny", "tiny-convnext"])
def model(request: pytest.FixtureRequest, models: dict[str, ErrSeg]) -> ErrSeg:
    return models[request.param]
