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
from pathlib import Path

import numpy as np
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

_WORDS = 1024
"""64-bit words of the weights that are folded into one."""

_ROWS = 32
"""Rows of so many words that are folded at once: 256 KB, which stay in the nearest cache."""


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
    """Hash of all weights, with their names, shapes and types: 64 hex digits.

    SHA-256 of a CLIP tower's 360 MB takes longer than all the rest of finding an entry. So what it
    sees are sums of words, each times an odd random number, modulo 2**64 (Lemire and Kaser,
    "Strongly universal string hashing is fast", 2014). Upper halves are mixed into the lower ones
    first: of a product of round numbers the lower bits alone are left.
    """
    factors = np.frombuffer(hashlib.shake_256(b"errseg").digest(8 * _WORDS), np.uint64)
    factors = factors | np.uint64(1)
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        folded = len(content) - len(content) % factors.nbytes
        rows = content[:folded].view(np.uint64).reshape(-1, _WORDS)
        for start in range(0, len(rows), _ROWS):
            words = rows[start : start + _ROWS]
            digest.update(((words ^ (words >> np.uint64(32))) @ factors).tobytes())
        digest.update(content[folded:].tobytes())
    return digest.hexdigest()


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
