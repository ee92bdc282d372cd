"""Fetching one file: resumable, once per machine, and under its name only when its checksum is right.

The bytes go to ``NAME.part`` beside the target and stay there when the connection breaks; the next attempt,
also of another process, continues from them. No torch.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

from ganlab.disk import sync_folder
from ganlab.errors import EnvError, RunInUse
from ganlab.lock import Lock

BLOCK = 1 << 20
TRIES = 3
TIMEOUT_S = 30.0
NETWORK = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)


class NotFetched(Exception):
    """Why there is no file. The caller knows what to advise."""


def sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(
    url: str,
    target: Path,
    checksum: str,
    progress: Callable[[int, int], None] | None = None,
    poll: Callable[[], None] | None = None,
) -> None:
    """Download ``target``, whose sha256 begins with ``checksum`` (hex), unless a file of this name is there.

    Processes that want the same file wait for the one that fetches it. ``progress(bytes, of)`` hears of each
    block, 0 standing for an unknown size; ``poll`` is called between blocks and may raise to abort. Raises
    NotFetched if the network fails or the content is wrong, EnvError if it can't be written.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _turn(target.with_name(target.name + ".lock"), poll):
            if target.is_file():
                return
            resumed = part.is_file()
            found = _whole(url, part, progress, poll)
            if not found.startswith(checksum) and resumed:  # the old bytes were of something else
                part.unlink()
                found = _whole(url, part, progress, poll)
            if not found.startswith(checksum):
                part.unlink()
                raise NotFetched(f"what came has sha256 {found[:8]}..., not {checksum[:8]}...")
            os.replace(part, target)
            sync_folder(target.parent)
    except NETWORK as e:  # before OSError, which some of these are
        raise NotFetched(_reason(e)) from e
    except OSError as e:
        fix = "free some space, or set GANLAB_CACHE to a folder that can be written"
        raise EnvError(str(e.filename or target), f"can't be written ({e.strerror or e})", fix) from e


def _whole(
    url: str, part: Path, progress: Callable[[int, int], None] | None, poll: Callable[[], None] | None
) -> str:
    """Fill ``part``, trying again when the connection breaks; returns its sha256."""
    for attempt in range(1, TRIES + 1):
        try:
            _append(url, part, progress, poll)
            break
        except NETWORK as e:
            if attempt == TRIES or (isinstance(e, urllib.error.HTTPError) and e.code < 500):
                raise
            time.sleep(attempt)
    return sha256(part)


def _append(
    url: str, part: Path, progress: Callable[[int, int], None] | None, poll: Callable[[], None] | None
) -> None:
    """Add to ``part`` what it lacks."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as e:
        if have and e.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing lacks, or it is another file: the checksum tells
        raise
    with response:
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            have = 0  # the server sends it from the start
        length = int(response.headers.get("Content-Length") or 0)
        of = have + length if length else 0
        with part.open("ab" if have else "wb") as file:
            while block := response.read(BLOCK):
                if poll:
                    poll()
                file.write(block)
                have += len(block)
                if progress:
                    progress(have, of)
            file.flush()
            os.fsync(file.fileno())
    if have < of:
        raise ConnectionError(f"the connection broke after {have:,} of {of:,} bytes")


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
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    return str(getattr(error, "reason", None) or error) or type(error).__name__
