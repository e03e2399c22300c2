"""Text embeddings on disk: a vocabulary is encoded once per model, whatever the process.

An entry is found by its content: the text tower's weights, the prompts and how they are averaged.
It holds numbers only, no names. `ERRSEG_CACHE` names another folder, or `off`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from errseg.errors import WriteError
from errseg.files import write_bytes_atomic
from errseg.model.text_encoder import Synonyms, TextEncoder, embed_classes

ENTRY_FORMAT = 1
"""Part of every key: a change of how names become embeddings makes a new one."""

LARGEST_CACHE_BYTES = 256 << 20
"""The entries that were read longest ago go first."""

_NAME = "embeddings"

_PIECE_BYTES = 1 << 20
"""Weights are hashed in pieces, by several threads."""


def cache_folder() -> Path | None:
    """Where embeddings are kept; None = nowhere."""
    chosen = os.environ.get("ERRSEG_CACHE")
    if chosen:
        return None if chosen == "off" else Path(chosen)
    with contextlib.suppress(RuntimeError):  # a process without a home
        home = Path.home()
        if sys.platform == "darwin":
            return home / "Library" / "Caches" / "errseg"
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "errseg"
        return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "errseg"
    return None


def cached_embeddings(
    encoder: TextEncoder,
    synonyms: Sequence[Sequence[str]],
    prompt: str,
    mode: Synonyms,
    folder: Path | None,
) -> Tensor:
    """`embed_classes`, or what it gave the last time for the same content.

    Damaged entries are computed anew; a folder that cannot be written is done without.

    Args:
        encoder: one that is no module has no weights to tell it by: nothing is kept.
        synonyms, prompt, mode: as for `embed_classes`.
        folder: from `cache_folder`; None = nothing is kept.

    Returns:
        (T, D) float32, L2-normalised.
    """
    if folder is None or not isinstance(encoder, nn.Module):
        return embed_classes(encoder, synonyms, prompt, mode)
    names = [list(group) for group in synonyms]
    content = json.dumps([ENTRY_FORMAT, fingerprint(encoder), names, prompt, mode])
    path = folder / f"text-{hashlib.sha256(content.encode()).hexdigest()}.safetensors"
    found = _read(path, len(synonyms))
    if found is not None:
        return found
    embeddings = embed_classes(encoder, synonyms, prompt, mode)
    from safetensors.torch import save

    with contextlib.suppress(WriteError):
        write_bytes_atomic(path, save({_NAME: embeddings.cpu().contiguous()}))
        _make_room(folder)
    return embeddings


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of all weights (of their pieces' SHA-256), names, shapes and types."""
    digest = hashlib.sha256()
    with ThreadPoolExecutor() as threads:
        for name, value in module.state_dict().items():
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            content = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            for piece in threads.map(_sha256, content.split(_PIECE_BYTES)):
                digest.update(piece)
    return digest.hexdigest()


def _sha256(content: Tensor) -> bytes:
    """Of uint8."""
    return hashlib.sha256(content.numpy()).digest()


def _read(path: Path, classes: int) -> Tensor | None:
    from safetensors.torch import load

    try:
        embeddings = load(path.read_bytes())[_NAME]
    except Exception:  # missing, damaged or not to be read: computed again
        return None
    if embeddings.ndim != 2 or len(embeddings) != classes or not embeddings.isfinite().all():
        return None
    with contextlib.suppress(OSError):
        path.touch()
    return embeddings


def _make_room(folder: Path) -> None:
    with contextlib.suppress(OSError):
        entries = [(path.stat(), path) for path in folder.glob("text-*.safetensors")]
        total = sum(facts.st_size for facts, _ in entries)
        for facts, path in sorted(entries, key=lambda entry: entry[0].st_mtime):
            if total <= LARGEST_CACHE_BYTES:
                break
            path.unlink(missing_ok=True)
            total -= facts.st_size
