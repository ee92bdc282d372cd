"""Journal of a pack being written, from which an interrupted preparation resumes.

    journal.jsonl   a header, then a line per block: images so far, sha256 of their bytes, labels, counts,
    position

A line is written after its pixels. On resuming, the pixels are compared with the checksums of the lines, and
whatever a power failure tore is truncated and redone, so the finished pack is identical byte for byte.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
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
        self._file: io.FileIO | None = None

    def recover(self, images: Path, image_bytes: int) -> tuple[list[Entry], Any]:
        """Return the entries with intact pixels and their running sha256; truncate the rest.

        Empty if there is no journal, or it is from other versions of ganlab or its decoders.
        """
        entries: list[Entry] = []
        digest, end = hashlib.sha256(), len(self._head)
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        if lines[:1] != [self._head] or not images.is_file():
            return entries, digest
        with open(images, "rb") as file:
            for line in lines[1:]:
                before = entries[-1].images if entries else 0
                try:
                    entry, ahead = Entry(**json.loads(line)), digest.copy()
                    size = (entry.images - before) * image_bytes
                    while size > 0 and (block := file.read(min(size, HASH_BLOCK))):
                        ahead.update(block)
                        size -= len(block)
                except (TypeError, ValueError, RecursionError):
                    break
                if size or not line.endswith(b"\n") or ahead.hexdigest() != entry.sha256:
                    break
                digest, end = ahead, end + len(line)
                entries.append(entry)
        if entries:
            os.truncate(images, entries[-1].images * image_bytes)
            os.truncate(self.path, end)
        return entries, digest

    def append(self, entry: Entry) -> None:
        if self._file is None:
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  # closed by ``close``
            if not self._file.tell():
                self._file.write(self._head)
        self._file.write((json.dumps(vars(entry)) + "\n").encode())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
