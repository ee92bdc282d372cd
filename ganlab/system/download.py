"""Download a file: resumable, one process at a time, and visible only once its checksum is verified.

The bytes go to ``NAME.part`` beside the target and stay there if the connection breaks; the next attempt, by
any process, resumes from them. The content must match a pinned checksum, so redirects may lead to any host,
but not from https to http. Imports no torch.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from ganlab.errors import EnvError
from ganlab.system.files import NO_FOLLOW, open_regular, sync_folder
from ganlab.system.lock import wait_for_lock

BLOCK = 1 << 20
TRIES = 3
TIMEOUT_S = 30.0  # without a byte from the server


class NotFetched(Exception):
    """A download failed. The message is the reason; the caller adds the fix."""


class _Broken(Exception):
    """The network failed; a retry may help."""


def sha256(path: Path) -> str:
    """Hex sha256 of a regular file. Raises OSError."""
    with open(path, "rb", opener=open_regular) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(
    url: str,
    target: Path,
    checksum: str,
    progress: Callable[[int, int], None] = lambda have, total: None,
    size: int = 0,
) -> None:
    """Download ``target``, whose sha256 is ``checksum`` (hex), unless it exists.

    Other processes that need the same file wait. ``progress(bytes, total)`` is called after each block, with
    total 0 if unknown. ``size``: expected bytes, 0 if unknown. Raises NotFetched if the network fails or the
    content is wrong, EnvError if it can't be written.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with wait_for_lock(target.with_name(target.name + ".lock")):
            if target.is_file():
                return
            resumed = part.is_file()
            digest = _download(url, part, size, progress)
            if digest != checksum and resumed:  # the old bytes belonged to another file
                part.unlink()
                digest = _download(url, part, size, progress)
            if digest != checksum:
                part.unlink()
                raise NotFetched(f"the content has sha256 {digest[:16]}..., expected {checksum[:16]}...")
            os.replace(part, target)
            sync_folder(target.parent)
    except OSError as e:
        fix = "free some space, or set GANLAB_CACHE to a writable folder"
        raise EnvError(str(e.filename or target), f"can't be written ({e.strerror or e})", fix) from e


def _download(url: str, part: Path, size: int, progress: Callable[[int, int], None]) -> str:
    """Complete ``part``, retrying if the connection breaks; returns its sha256."""
    for attempt in range(1, TRIES + 1):
        try:
            _append(url, part, size, progress)
            break
        except _Broken as broken:
            if attempt == TRIES:
                raise NotFetched(str(broken)) from None
            time.sleep(attempt)
    return sha256(part)


def _append(url: str, part: Path, size: int, progress: Callable[[int, int], None]) -> None:
    """Append the missing bytes to ``part``."""
    have = part.stat().st_size if part.is_file() else 0
    if size and have > size:
        part.unlink()
        have = 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with _network():
            response = urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # it is complete, or of another file: the checksum decides
        what = f"the server responded {error.code} {error.reason}".splitlines()[0]
        raise (NotFetched if error.code < HTTPStatus.INTERNAL_SERVER_ERROR else _Broken)(what) from None
    with response:
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            have = 0  # the server sends it from the start
        length = int(response.headers.get("Content-Length") or 0)
        total = have + length if length else 0
        if size and total not in (0, size):
            raise NotFetched(f"the server sends {total:,} bytes, {size:,} expected")
        with open(part, "ab" if have else "wb", opener=_open_no_follow) as file:
            while True:
                with _network():
                    block = response.read1(BLOCK)
                if not block:
                    break
                have += len(block)
                if size and have > size:
                    raise NotFetched(f"the server sends {have:,} bytes, {size:,} expected")
                file.write(block)
                progress(have, total)
            file.flush()
            os.fsync(file.fileno())
    if have < total:
        raise _Broken(f"the connection broke after {have:,} of {total:,} bytes")


@contextmanager
def _network() -> Iterator[None]:
    """Turn any network error into _Broken, except a response's."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as e:
        raise _Broken(str(getattr(e, "reason", None) or e) or type(e).__name__) from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to any host, since the checksum is verified, but not from https to http."""

    def redirect_request(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any,
                         newurl: str) -> urllib.request.Request | None:  # fmt: skip
        schemes = ("https",) if req.type == "https" else ("https", "http")
        if newurl.partition(":")[0].lower() not in schemes:
            raise NotFetched(f"the server redirects to {newurl:.100}, which is not {' or '.join(schemes)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open_no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | NO_FOLLOW, 0o666)
