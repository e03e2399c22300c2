"""errseg: open-vocabulary semantic segmentation with ERR-Seg.

Public names are imported when they are first used: `import errseg` itself loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from errseg.config import PRESETS, ModelConfig
    from errseg.errors import ErrsegError
    from errseg.model.err_seg import ErrSeg
    from errseg.records import ClassArea, Segmentation
    from errseg.segmenter import Segmenter
    from errseg.vocabulary import Vocabulary, load_vocabulary

    __version__: str

__all__ = [
    "PRESETS",
    "ClassArea",
    "ErrSeg",
    "ErrsegError",
    "ModelConfig",
    "Segmentation",
    "Segmenter",
    "Vocabulary",
    "__version__",
    "load_vocabulary",
]

_HOMES = {
    "ClassArea": "errseg.records",
    "ErrSeg": "errseg.model.err_seg",
    "ErrsegError": "errseg.errors",
    "ModelConfig": "errseg.config",
    "PRESETS": "errseg.config",
    "Segmentation": "errseg.records",
    "Segmenter": "errseg.segmenter",
    "Vocabulary": "errseg.vocabulary",
    "load_vocabulary": "errseg.vocabulary",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        # On first use too: this import costs as much as the rest of `errseg --help`.
        from importlib import metadata

        return metadata.version("errseg")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'errseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
