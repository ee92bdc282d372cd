"""Journal of a pack being written, from which an interrupted preparation resumes.

    journal.jsonl   a header, then a line per block: images so far, sha256 of their bytes, labels, counts,
    position

A line is written after its pixels. On resuming, the pixels are compared with the checksums of the lines, and
whatever a power failure tore is truncated and redone, so the finished pack is identical byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ganlab.data.fingerprint import HASH_BLOCK

NAME = "journal.jsonl"


@dataclass(frozen=True)
class Entry:
    """One block. labels, examples: the block's own; counts: of everything so far. position: any JSON."""

    images: int
    sha256: str
    labels: list[int]
    counts: dict[str, int]
    examples: list[str]
    position: Any


class Journal:
    """Journal of the pack in ``folder``; ``made_with``: versions that its pixels depend on."""

    def __init__(self, folder: Path, made_with: dict[str, Any]) -> None:
        self.path = folder / NAME
        head = json.dumps({"journal": 1, **made_with}, sort_keys=True)
        self._head = f"{head}\n".encode()
        self._file: int | None = None

    def recover(self, images: Path, image_bytes: int) -> tuple[list[Entry], Any]:
        """Return the entries with intact pixels and their running sha256; truncate the rest.

        Empty if there is no journal, or it is from other versions of ganlab or its decoders.
        """
        entries: list[Entry] = []
        digest, end = hashlib.sha256(), len(self._head)
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            lines = []
        if lines and lines[0] == self._head and images.is_file():
            with open(images, "rb") as file:
                for entry, size in _parsed(lines[1:]):
                    before = entries[-1].images if entries else 0
                    ahead = digest.copy()
                    if not _feed(ahead, file, (entry.images - before) * image_bytes):
                        break
                    if ahead.hexdigest() != entry.sha256:
                        break
                    digest, end = ahead, end + size
                    entries.append(entry)
        if entries:
            os.truncate(images, entries[-1].images * image_bytes)
            os.truncate(self.path, end)
        return entries, digest

    def append(self, entry: Entry) -> None:
        if self._file is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
            self._file = os.open(self.path, flags, 0o666)
            if not os.fstat(self._file).st_size:
                os.write(self._file, self._head)
        os.write(self._file, (json.dumps(vars(entry)) + "\n").encode())

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _parsed(lines: list[bytes]) -> Iterator[tuple[Entry, int]]:
    """Yield entries and the lengths of their lines, up to the first torn line."""
    images = 0
    for line in lines:
        try:
            entry = Entry(**json.loads(line))
            torn = not line.endswith(b"\n") or entry.images < images
        except (TypeError, ValueError, RecursionError):
            return
        if torn:
            return
        images = entry.images
        yield entry, len(line)


def _feed(digest: Any, file: Any, size: int) -> bool:
    """Hash the next ``size`` bytes; return whether all of them exist."""
    while size:
        block = file.read(min(size, HASH_BLOCK))
        if not block:
            return False
        digest.update(block)
        size -= len(block)
    return True
