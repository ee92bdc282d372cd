"""Download a file: resumable, one process at a time, and visible only once its checksum is verified.

The bytes go to ``NAME.part`` beside the target and stay there if the connection breaks; the next attempt, by
any process, resumes from them. The content must match a pinned checksum, so redirects may lead to any host,
but not from https to http. Imports no torch.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

from ganlab.errors import EnvError, RunInUse
from ganlab.system.files import NO_FOLLOW, open_regular, sync_folder
from ganlab.system.lock import Lock

BLOCK = 1 << 20
TRIES = 3
TIMEOUT_S = 30.0  # for the response headers, and without a byte of the body
OUT_OF_RANGE = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
SLOW_BYTES, SLOW_S = 1 << 16, 60.0  # minimum bytes in so many seconds


class NotFetched(Exception):
    """A download failed. The message is the reason; the caller adds the fix."""


class _Broken(Exception):
    """The network failed. ``final``: a retry would not help."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def sha256(path: Path) -> str:
    """Hex sha256 of a regular file. Raises OSError."""
    with open(path, "rb", opener=open_regular) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(
    url: str,
    target: Path,
    checksum: str,
    progress: Callable[[int, int], None] | None = None,
    poll: Callable[[], None] | None = None,
    size: int = 0,
) -> None:
    """Download ``target``, whose sha256 is ``checksum`` (hex), unless it exists.

    Other processes that need the same file wait. ``progress(bytes, total)`` is called after each block, with
    total 0 if unknown; ``poll`` is called between blocks and may raise to abort. ``size``: expected bytes,
    0 if unknown. Raises NotFetched if the network fails or the content is wrong, EnvError if it can't be
    written.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _wait_for_lock(target.with_name(target.name + ".lock"), poll):
            if target.is_file():
                return
            transfer = _Fetch(url, part, progress, poll, size)
            resumed = part.is_file()
            digest = transfer.run()
            if digest != checksum and resumed:  # the old bytes belonged to another file
                part.unlink()
                digest = transfer.run()
            if digest != checksum:
                part.unlink()
                raise NotFetched(f"the content has sha256 {digest[:16]}..., expected {checksum[:16]}...")
            os.replace(part, target)
            sync_folder(target.parent)
    except OSError as e:
        fix = "free some space, or set GANLAB_CACHE to a writable folder"
        raise EnvError(str(e.filename or target), f"can't be written ({e.strerror or e})", fix) from e


class _Fetch:
    """The transfer of one file to ``part``."""

    def __init__(
        self,
        url: str,
        part: Path,
        progress: Callable[[int, int], None] | None,
        poll: Callable[[], None] | None,
        size: int,
    ) -> None:
        self.url, self.part, self.size = url, part, size
        self.progress = progress or (lambda have, total: None)
        self.poll = poll or (lambda: None)

    def run(self) -> str:
        """Complete ``part``, retrying if the connection breaks; returns its sha256."""
        for attempt in range(1, TRIES + 1):
            try:
                self._append()
                break
            except _Broken as broken:
                if attempt == TRIES or broken.final:
                    raise NotFetched(str(broken)) from None
                time.sleep(attempt)
        return sha256(self.part)

    def _append(self) -> None:
        """Append the missing bytes to ``part``."""
        have = self.part.stat().st_size if self.part.is_file() else 0
        if self.size and have > self.size:
            self.part.unlink()
            have = 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        with _Response(urllib.request.Request(self.url, headers=headers)) as response:
            if response.status == OUT_OF_RANGE and not have:
                raise _Broken(f"the server responded {response.status}", final=True)
            if response.status == OUT_OF_RANGE:
                return  # it is complete, or of another file: the checksum decides
            if response.status != HTTPStatus.PARTIAL_CONTENT:
                have = 0  # the server sends it from the start
            total = have + response.length if response.length else 0
            self._check_size(have, total)
            with open(self.part, "ab" if have else "wb", opener=_open_no_follow) as file:
                try:
                    while block := response.read():
                        self.poll()
                        self._check_size(have + len(block), total)
                        file.write(block)
                        have += len(block)
                        self.progress(have, total)
                finally:
                    file.flush()
                    os.fsync(file.fileno())
        if have < total:
            raise _Broken(f"the connection broke after {have:,} of {total:,} bytes")

    def _check_size(self, have: int, total: int) -> None:
        """Raise NotFetched as soon as the size shows that it is another file."""
        if self.size and (total not in (0, self.size) or have > self.size):
            raise NotFetched(f"the server sends {max(total, have):,} bytes, {self.size:,} expected")


class _Response:
    """A request and its response. Raises _Broken for any network error, or if bytes arrive too slowly."""

    def __init__(self, request: urllib.request.Request) -> None:
        self._sockets: list[socket.socket] = []
        self._since, self._num_bytes = time.monotonic(), 0
        timer = threading.Timer(TIMEOUT_S, self._cut)  # a socket's own timeout restarts with every byte
        timer.daemon = True
        timer.start()
        try:
            self._response = _opener(self._sockets).open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as e:
            self._response = e
        except (OSError, http.client.HTTPException) as e:
            slow = time.monotonic() - self._since >= TIMEOUT_S
            raise _Broken(f"no response in {TIMEOUT_S:g} seconds" if slow else _reason(e)) from None
        finally:
            timer.cancel()
        self.status = int(self._response.status or 0)
        self.length = int(self._response.headers.get("Content-Length") or 0)
        if self.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, OUT_OF_RANGE):
            self._response.close()
            reason = f"the server responded {self.status} {self._response.reason}"
            raise _Broken(reason, final=self.status < 500)
        self._since = time.monotonic()

    def __enter__(self) -> _Response:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._response.close()

    def read(self) -> bytes:
        """The next block, of at least a byte; empty at the end."""
        try:
            block: bytes = self._response.read1(BLOCK)
        except (OSError, http.client.HTTPException) as e:
            raise _Broken(_reason(e)) from None
        self._num_bytes += len(block)
        now = time.monotonic()
        if now - self._since > SLOW_S:
            if self._num_bytes < SLOW_BYTES:
                raise _Broken(f"only {self._num_bytes:,} bytes in {now - self._since:.0f} seconds")
            self._since, self._num_bytes = now, 0
        return block

    def _cut(self) -> None:
        for connection in self._sockets:
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # readers see the end of the stream


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to any host, since the checksum is verified, but not from https to http."""

    def redirect_request(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any,
                         newurl: str) -> urllib.request.Request | None:  # fmt: skip
        schemes = ("https",) if req.type == "https" else ("https", "http")
        if newurl.partition(":")[0].lower() not in schemes:
            raise NotFetched(f"the server redirects to {newurl:.100}, which is not {' or '.join(schemes)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(sockets: list[socket.socket]) -> urllib.request.OpenerDirector:
    """Opens http and https only, with the environment's proxies; appends its sockets to ``sockets``."""

    class Http(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            sockets.append(self.sock)

    class Https(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            sockets.append(self.sock)

    class HttpHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Http, req)

    class HttpsHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Https, req, context=ssl.create_default_context())

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), HttpHandler(), HttpsHandler(), _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):  # fmt: skip
        opener.add_handler(handler)
    return opener


def _open_no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | NO_FOLLOW, 0o666)


def _wait_for_lock(path: Path, poll: Callable[[], None] | None) -> Lock:
    """Take the lock, once it is free."""
    while True:
        try:
            return Lock(path)
        except RunInUse:
            if poll:
                poll()
            time.sleep(0.2)


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", None) or error) or type(error).__name__
