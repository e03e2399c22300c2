"""The models that errseg knows by name, and where their weights are. Imports no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from errseg.errors import ConfigError, WeightsError

EMBEDDED = "errseg-mini"
PUBLISHED_REPOSITORY = "lchen1019/ERR-Seg"


@dataclass(frozen=True)
class ModelEntry:
    """One model of the catalogue.

    Attributes:
        name: what the user calls it.
        parameters: how many numbers it has learnt, both towers included.
    """

    name: str
    parameters: int


CATALOGUE = (
    ModelEntry(EMBEDDED, 28_483_601),
    ModelEntry("errseg-base", 188_853_369),
    ModelEntry("errseg-large", 365_745_721),
)
MODEL_NAMES = tuple(entry.name for entry in CATALOGUE)
PUBLISHED_NAMES = tuple(name for name in MODEL_NAMES if name != EMBEDDED)
"""The models of ERR-Seg's authors."""


def embedded_path() -> Path:
    """The embedded model's weights, inside the package."""
    return Path(__file__).parent / "assets" / EMBEDDED / "model.safetensors"


def own_path(name: str) -> Path:
    """Where a model's own weights are: in the package, or where they are downloaded to."""
    if name == EMBEDDED:
        return embedded_path()
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE).expanduser() / "errseg" / f"{name}.pth"


def find_weights(name: str | None = None, weights: str | Path | None = None) -> Path | None:
    """The file that a model's weights are read from; None = it has to be downloaded first.

    Args:
        name: one of `MODEL_NAMES`; None takes what `weights` holds, or the embedded model.
        weights: a file chosen by the user; None takes the model's own.

    Raises:
        ConfigError: no model of this name.
        WeightsError: there is no such file.
    """
    if name is not None and name not in MODEL_NAMES:
        raise ConfigError(f"there is no model {name!r}; known are {', '.join(MODEL_NAMES)}.")
    path = own_path(name or EMBEDDED) if weights is None else Path(weights)
    if not path.is_file():
        if weights is None and name in PUBLISHED_NAMES:
            return None
        advice = "reinstall errseg" if weights is None else "check the path given to --weights"
        raise WeightsError(f"there is no checkpoint {str(path)!r}; {advice}.")
    return path


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}.") from error
