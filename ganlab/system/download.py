"""Fetching one file: resumable, once per machine, and under its name only when its checksum is right.

The bytes go to ``NAME.part`` beside the target and stay there when the connection breaks; the next attempt,
also of another process, continues from them. A pinned checksum decides what is kept, whichever host a
redirection leads to; from https it may lead to https alone. No torch.
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
TIMEOUT_S = 30.0  # without a byte; until the server has answered
OUT_OF_RANGE = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
SLOW_BYTES, SLOW_S = 1 << 16, 60.0  # fewer bytes than this in so many seconds are no download


class NotFetched(Exception):
    """Why there is no file. The caller knows what to advise."""


class _Broken(Exception):
    """The network failed: worth another try, unless ``final``."""

    def __init__(self, why: str, final: bool = False) -> None:
        super().__init__(why)
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
    """Download ``target``, whose sha256 is ``checksum`` (hex), unless a file of this name is there.

    Processes that want the same file wait for the one that fetches it. ``progress(bytes, of)`` hears of each
    block, 0 standing for an unknown size; ``poll`` is called between blocks and may raise to abort. ``size``:
    the bytes that it must have, where they are known. Raises NotFetched if the network fails or the content
    is wrong, EnvError if it can't be written.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _turn(target.with_name(target.name + ".lock"), poll):
            if target.is_file():
                return
            one = _Fetch(url, part, progress, poll, size)
            resumed = part.is_file()
            found = one.whole()
            if found != checksum and resumed:  # the old bytes were of something else
                part.unlink()
                found = one.whole()
            if found != checksum:
                part.unlink()
                raise NotFetched(f"what came has sha256 {found[:16]}..., expected {checksum[:16]}...")
            os.replace(part, target)
            sync_folder(target.parent)
    except OSError as e:
        fix = "free some space, or set GANLAB_CACHE to a folder that can be written"
        raise EnvError(str(e.filename or target), f"can't be written ({e.strerror or e})", fix) from e


class _Fetch:
    """The way of one file into ``part``."""

    def __init__(
        self,
        url: str,
        part: Path,
        progress: Callable[[int, int], None] | None,
        poll: Callable[[], None] | None,
        size: int,
    ) -> None:
        self.url, self.part, self.size = url, part, size
        self.progress = progress or (lambda have, of: None)
        self.poll = poll or (lambda: None)

    def whole(self) -> str:
        """Fill ``part``, trying again when the connection breaks; returns its sha256."""
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
        """Add to ``part`` what it lacks."""
        have = self.part.stat().st_size if self.part.is_file() else 0
        if self.size and have > self.size:
            self.part.unlink()
            have = 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        with _Line(urllib.request.Request(self.url, headers=headers)) as line:
            if line.status == OUT_OF_RANGE and not have:
                raise _Broken(f"the server answers {line.status}", final=True)
            if line.status == OUT_OF_RANGE:
                return  # nothing lacks, or it is another file: the checksum tells
            if line.status != HTTPStatus.PARTIAL_CONTENT:
                have = 0  # the server sends it from the start
            of = have + line.length if line.length else 0
            self._fits(have, of)
            with open(self.part, "ab" if have else "wb", opener=_own) as file:
                try:
                    while block := line.read():
                        self.poll()
                        self._fits(have + len(block), of)
                        file.write(block)
                        have += len(block)
                        self.progress(have, of)
                finally:
                    file.flush()
                    os.fsync(file.fileno())
        if have < of:
            raise _Broken(f"the connection broke after {have:,} of {of:,} bytes")

    def _fits(self, have: int, of: int) -> None:
        """End at once what is not the wanted file."""
        if self.size and (of not in (0, self.size) or have > self.size):
            raise NotFetched(f"{max(of, have):,} bytes are offered, {self.size:,} expected")


class _Line:
    """A request under way. Raises _Broken for whatever happens to the connection, a dripping one included."""

    def __init__(self, request: urllib.request.Request) -> None:
        self._sockets: list[socket.socket] = []
        self._since, self._got = time.monotonic(), 0
        late = threading.Timer(TIMEOUT_S, self._cut)  # a socket's own timeout begins anew with every byte
        late.daemon = True
        late.start()
        try:
            self._answer = _opener(self._sockets).open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as e:
            self._answer = e  # an answer too
        except (OSError, http.client.HTTPException) as e:
            slow = time.monotonic() - self._since >= TIMEOUT_S
            raise _Broken(f"no answer in {TIMEOUT_S:g} seconds" if slow else _reason(e)) from None
        finally:
            late.cancel()
        self.status = int(self._answer.status or 0)
        self.length = int(self._answer.headers.get("Content-Length") or 0)
        if self.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, OUT_OF_RANGE):
            self._answer.close()
            why = f"the server answers {self.status} {self._answer.reason}"
            raise _Broken(why, final=self.status < 500)
        self._since = time.monotonic()

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._answer.close()

    def read(self) -> bytes:
        """What has come, at least a byte; nothing at the end."""
        try:
            block: bytes = self._answer.read1(BLOCK)
        except (OSError, http.client.HTTPException) as e:
            raise _Broken(_reason(e)) from None
        self._got += len(block)
        now = time.monotonic()
        if now - self._since > SLOW_S:
            if self._got < SLOW_BYTES:
                raise _Broken(f"only {self._got:,} bytes came in {now - self._since:.0f} seconds")
            self._since, self._got = now, 0
        return block

    def _cut(self) -> None:
        for one in self._sockets:
            with suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)  # whoever reads from it sees its end


class _Redirects(urllib.request.HTTPRedirectHandler):
    """To any host, whose bytes the checksum will judge; but not out of https."""

    def redirect_request(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any,
                         newurl: str) -> urllib.request.Request | None:  # fmt: skip
        schemes = ("https",) if req.type == "https" else ("https", "http")
        if newurl.partition(":")[0].lower() not in schemes:
            raise NotFetched(f"the server sends on to {newurl:.100}, which is not {' or '.join(schemes)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(sockets: list[socket.socket]) -> urllib.request.OpenerDirector:
    """http and https alone, through the proxies of the environment; its sockets are noted in ``sockets``."""

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


def _own(path: str, flags: int) -> int:
    return os.open(path, flags | NO_FOLLOW, 0o666)


def _turn(path: Path, poll: Callable[[], None] | None) -> Lock:
    """The lock, once nobody else holds it."""
    while True:
        try:
            return Lock(path)
        except RunInUse:
            if poll:
                poll()
            time.sleep(0.2)


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", None) or error) or type(error).__name__
