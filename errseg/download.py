"""The published checkpoints from Hugging Face, for a user who named such a model and has no file.

What is received lies under the file's SHA-256 until its size, hash and content are right; only
then it gets its name. A broken download, of this process or an earlier one, goes on where it broke;
`hf_hub_download` would begin anew. Endpoint, folder, proxies, token and offline mode are those of
huggingface_hub: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from errseg.catalogue import (
    CATALOGUE,
    EMBEDDED,
    PUBLISHED_NAMES,
    PUBLISHED_REPOSITORY,
    file_hash,
    own_path,
)
from errseg.errors import WeightsError
from errseg.files import write_error

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

SUFFIXES = (".pth", ".pt", ".bin")
"""Of files that may be checkpoints."""
BYTES_PER_PARAMETER = 4
SIZE_TOLERANCE = 0.02
"""Of a file of nothing but float32 weights, for names and padding."""
LARGEST_SIZE = 3 * (1 + SIZE_TOLERANCE)
"""Of a checkpoint, in sizes of its weights: AdamW keeps two numbers more for each."""

TRIES = 5
"""Connections in a row that bring not one byte."""
WAIT_S = 1.0
PASSING_STATUS = {408, 429, 500, 502, 503, 504}
"""HTTP answers after which the same question may be asked again."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that is to be downloaded.

    Attributes:
        name: its path in the repository.
        url: where it is, at one commit.
        size: in bytes.
        sha256: in hex.
        licence: of the repository, as it is given there; "" where there is none.
    """

    name: str
    url: str
    size: int
    sha256: str
    licence: str


OnReceived = Callable[[RemoteFile, int], None]
"""Told how many bytes of the file are here, first before anything is received."""


def download(name: str, on_received: OnReceived | None = None) -> Path:
    """The checkpoint of a published model: the one that is here, or else downloaded now.

    Args:
        name: "errseg-base" or "errseg-large".
        on_received: told of the progress.

    Raises:
        WeightsError: it is not to be had; the message says how to do without.
        WriteError: the cache cannot be written.
    """
    path = own_path(name)
    if path.is_file():
        return path
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    remote = choose(name, _listed(name))
    part = path.with_name(f"{name}-{remote.sha256}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.exists() else 0
        if on_received is not None:
            on_received(remote, have)
        with WeakFileLock(path.with_suffix(".lock")):  # of several jobs, one downloads
            if not path.is_file():
                _receive(name, remote, part, on_received)
                _verify(name, remote, part)
                part.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    return path


def choose(name: str, files: Sequence[RemoteFile]) -> RemoteFile:
    """The file that holds a model's checkpoint, by its name and size.

    A file that is named like the model goes before one that is not, and bare float32 weights before
    a file with more in it.

    Raises:
        WeightsError: no file fits, or several do equally.
    """
    parameters = next(entry.parameters for entry in CATALOGUE if entry.name == name)
    whole = parameters * BYTES_PER_PARAMETER
    others = {*PUBLISHED_NAMES} - {name}
    fitting = [
        file
        for file in files
        if file.name.endswith(SUFFIXES)
        and whole / 2 <= file.size <= whole * LARGEST_SIZE
        and not any(_is_named(file.name, other) for other in others)
    ]
    if not fitting:
        names = ", ".join(f"{file.name} ({file.size} bytes)" for file in files) or "nothing"
        raise _unobtainable(name, f"of what {PUBLISHED_REPOSITORY} holds nothing fits: {names}")

    def rank(file: RemoteFile) -> tuple[bool, bool]:
        return _is_named(file.name, name), abs(file.size / whole - 1) <= SIZE_TOLERANCE

    best = max(map(rank, fitting))
    found = [file for file in fitting if rank(file) == best]
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise _unobtainable(name, f"{PUBLISHED_REPOSITORY} holds several that fit: {names}")
    return found[0]


def _is_named(file: str, name: str) -> bool:
    """Whether a path speaks of a model: of "base" or "large", or of that initial alone."""
    size = name.removeprefix("errseg-")
    initial = size[0]
    words = re.split(r"[^a-z0-9]+", file.lower())
    return not {size, initial, f"convnext{initial}"}.isdisjoint(words)


def _listed(name: str) -> list[RemoteFile]:
    """The repository's large files; only of these the hash is known."""
    from huggingface_hub import HfApi, hf_hub_url

    api = HfApi(library_name="errseg")
    try:
        info = api.model_info(PUBLISHED_REPOSITORY, files_metadata=True, timeout=_timeout())
        return [
            RemoteFile(
                name=file.rfilename,
                url=hf_hub_url(
                    PUBLISHED_REPOSITORY, file.rfilename, revision=info.sha, endpoint=api.endpoint
                ),
                size=file.lfs.size,
                sha256=file.lfs.sha256,
                licence=_licence(info),
            )
            for file in info.siblings or ()
            if file.lfs is not None
        ]
    except Exception as error:  # a mirror or a proxy may answer whatever it likes
        raise _unobtainable(name, _reason(error)) from error


def _licence(info: ModelInfo) -> str:
    tags = (tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:"))
    return next(tags, "")


def _receive(name: str, remote: RemoteFile, part: Path, on_received: OnReceived | None) -> None:
    """Append to `part` what it lacks."""
    with part.open("ab") as file:
        for chunk in _chunks(name, remote, file.tell()):
            file.write(chunk)
            if on_received is not None:
                on_received(remote, file.tell())


def _chunks(name: str, remote: RemoteFile, position: int) -> Iterator[bytes]:
    """The file's bytes from a position on; a connection that breaks is made anew from there."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its HTTP library

    tries = 0
    while position < remote.size:
        tries, problem = tries + 1, "no error, but no more bytes either"
        try:
            for chunk in _answer(name, remote, position):
                yield chunk
                tries, position = 0, position + len(chunk)
                if position >= remote.size:
                    return
        except HTTPError as error:
            problem = _reason(error)
            if _status(error) not in {None, *PASSING_STATUS}:
                raise _unobtainable(name, problem) from error
        if tries == TRIES:
            raise _unobtainable(
                name,
                f"{remote.name} broke off after {position} of {remote.size} bytes ({problem}); "
                "the same again goes on from there",
            )
        time.sleep(WAIT_S)


def _answer(name: str, remote: RemoteFile, position: int) -> Iterator[bytes]:
    """What one connection brings of the bytes from a position on."""
    from huggingface_hub import get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers = {
        **build_hf_headers(library_name="errseg"),
        "Accept-Encoding": "identity",
        "Range": f"bytes={position}-",
    }
    session = get_session()
    with session.stream("GET", remote.url, headers=headers, timeout=_timeout()) as response:
        hf_raise_for_status(response)
        sent = response.headers.get("Content-Range", "").rpartition("/")[2]
        sent = sent or response.headers.get("Content-Length", "")
        if sent.isdigit() and int(sent) != remote.size:
            raise _unobtainable(
                name, f"{remote.name} has {remote.size} bytes as listed and {sent} as sent"
            )
        # a server that knows no ranges begins at the beginning
        known = 0 if response.status_code == 206 else position
        for chunk in response.iter_bytes():
            if fresh := chunk[known:]:
                yield fresh
            known = max(0, known - len(chunk))


def _verify(name: str, remote: RemoteFile, part: Path) -> None:
    """Remove what was received if it is not the model that was asked for."""
    from errseg.published import read_published, recognise

    size = part.stat().st_size
    reason = ""
    if size != remote.size:
        reason = f"{remote.name} came with {size} bytes instead of {remote.size}"
    elif file_hash(part) != remote.sha256:
        reason = f"{remote.name} came damaged (its SHA-256 is another); the same again may help"
    else:
        try:
            held = recognise(read_published(part), remote.name).name
            reason = "" if held == name else f"{remote.name} is {held}"
        except WeightsError as error:
            reason = f"{remote.name} is no checkpoint of tensors as published ({error})"
    if reason:
        part.unlink()
        raise _unobtainable(name, reason)


def _timeout() -> float:
    from huggingface_hub import constants

    return constants.HF_HUB_DOWNLOAD_TIMEOUT


def _status(error: Exception) -> int | None:
    """The HTTP status of an answer that was a refusal; None where no answer came."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


def _reason(error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids it"
    status = _status(error)
    if status is None:
        words = " ".join(str(error).split()) or type(error).__name__
        return f"no proper answer from {constants.ENDPOINT} ({words})"
    advice = ", as it does without a valid HF_TOKEN" if status in (401, 403) else ""
    return f"{constants.ENDPOINT} answers {status}{advice}"


def _unobtainable(name: str, reason: str) -> WeightsError:
    return WeightsError(
        f"{name} is not here and cannot be downloaded: {reason}. Download its checkpoint by hand, "
        f"from https://huggingface.co/{PUBLISHED_REPOSITORY}, and give --weights FILE; or use "
        f"{EMBEDDED}, which needs no network."
    )
