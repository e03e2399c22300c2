"""A server on this machine that answers as Hugging Face does, or worse."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from errseg.catalogue import PUBLISHED_REPOSITORY

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LIST = f"/api/models/{PUBLISHED_REPOSITORY}"
RESOLVE = f"/{PUBLISHED_REPOSITORY}/resolve/{COMMIT}/"
STORE = "/store/"
"""Where large files really are: the first address redirects there."""


class Hub:
    """One repository.

    Attributes:
        files: what it holds, by name.
        sent: the bytes that come for a file where they are others than the listed ones.
        announced: a Content-Length that is not that of the body.
        breaks: after how many bytes the next connections for a file break off.
        refusals: HTTP statuses with which the next requests for a file are answered.
        status: with which everything is answered; 0 = as it should be.
        listing: the body of the list, where it is no list.
        ranges: whether it knows the header Range.
        asked: (path, Range) of every request so far.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.sent: dict[str, bytes] = {}
        self.announced: int | None = None
        self.breaks: list[int] = []
        self.refusals: list[int] = []
        self.status = 0
        self.listing: bytes | None = None
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def asked_for_weights(self) -> list[tuple[str, str | None]]:
        """All but what huggingface_hub asks about its own users."""
        return [request for request in self.asked if request[0] != "/api/agent-harnesses"]

    @property
    def ranges_asked(self) -> list[str | None]:
        """Of the requests for the contents of a file."""
        return [ranges for path, ranges in self.asked if path.startswith(STORE)]

    def listed(self) -> bytes:
        """What the interface says of the repository and its files."""
        siblings: list[dict[str, Any]] = [{"rfilename": "README.md", "size": 9, "blobId": "0" * 40}]
        for name, content in self.files.items():
            lfs = {"size": len(content), "pointerSize": 134}
            lfs["sha256"] = hashlib.sha256(content).hexdigest()  # type: ignore[assignment]
            siblings.append(
                {"rfilename": name, "size": len(content), "blobId": "1" * 40, "lfs": lfs}
            )
        facts = {"_id": "0", "id": PUBLISHED_REPOSITORY, "modelId": PUBLISHED_REPOSITORY}
        return json.dumps(
            {**facts, "sha": COMMIT, "tags": ["license:mit"], "siblings": siblings}
        ).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: ClassVar[Hub]

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.asked.append((path, self.headers.get("Range")))
        if hub.status:
            self._refuse(hub.status)
        elif path == LIST:
            self._answer(200, hub.listed() if hub.listing is None else hub.listing)
        elif path.startswith(RESOLVE):
            self.send_response(302)
            self.send_header("Location", STORE + path.removeprefix(RESOLVE))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path.startswith(STORE) and hub.refusals:
            self._refuse(hub.refusals.pop(0))
        elif path.startswith(STORE):
            name = path.removeprefix(STORE)
            self._send_file(hub.sent.get(name, hub.files[name]))
        else:
            self._refuse(404)

    def _send_file(self, content: bytes) -> None:
        hub = self.hub
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and hub.ranges:
            start = int(wanted[1])
            total = len(content) if hub.announced is None else hub.announced
            self._answer(206, content[start:], {"Content-Range": f"bytes {start}-/{total}"})
        else:
            self._answer(200, content, length=hub.announced)

    def _answer(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.hub.breaks and urlsplit(self.path).path.startswith(STORE):
            body = body[: self.hub.breaks.pop(0)]
            self.close_connection = True
        self.wfile.write(body)

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nobody reads it."""
