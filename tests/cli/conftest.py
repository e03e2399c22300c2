from __future__ import annotations

from pathlib import Path

import pytest
from runner import Runner


@pytest.fixture
def errseg_run(tiny_weights: Path) -> Runner:
    return Runner(tiny_weights)
