"""Read tar archives sequentially, strictly and within limits.

Python's ``tarfile`` treats a truncated or corrupt header as the end of the archive, and reads as many bytes
as a header requests. Here the former raises, and the latter is bounded.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Self, cast

from ganlab.system.files import open_regular

MAX_PIECE = (1 << 28) + 1024  # bytes read at once: an image (images.MAX_FILE) and a header
TAIL = 1 << 26  # bytes read beyond the end mark, to let the compressor check its checksum


@contextmanager
def open_tar(path: Path, limit: int, part: tuple[int, int] | None = None) -> Iterator[tarfile.TarFile]:
    """Open a plain or compressed (gz, xz, bz2) tar of at most ``limit`` bytes unpacked, for ``headers``.

    part: start and size of a plain tar embedded in ``path``.
    """
    with cast(IO[bytes], Part(path, *part)) if part else decompressed(path) as raw:
        metered = cast(IO[bytes], _Metered(raw, limit))
        with tarfile.open(fileobj=metered, mode="r:", tarinfo=_StrictTarInfo) as archive:
            yield archive


def headers(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield every header in order, then read to the end so that the decompressor verifies its checksum."""
    while (info := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # it would keep every header for ever
        yield info
    raw = cast(_Metered, archive.fileobj).raw
    for _ in range(TAIL >> 20):
        if not raw.read(1 << 20):
            break


def is_tar_header(head: bytes) -> bool:
    """Whether 512 bytes are a tar header, or the end mark of an empty tar."""
    if len(head) < 512:
        return False
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return head == bytes(512)
    return True


class _Damaged(tarfile.ReadError):
    """Damage that ``tarfile`` would take for a regular end."""


class _StrictTarInfo(tarfile.TarInfo):
    """Raises on truncated, corrupt or missing headers instead of silently ending the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            info = super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":  # the end mark: a block of zeros
                raise
            raise _Damaged(f"{error}, expected a file or the end marker") from None
        if info.size < 0 or tarfile_.offset < info.offset_data:  # it would go round in a circle
            raise _Damaged(f"{info.name!r} has a negative size")
        return info


class _Metered:
    """A file that raises on reads beyond ``limit`` bytes, or of more than ``MAX_PIECE`` bytes at once."""

    def __init__(self, raw: IO[bytes], limit: int) -> None:
        self.raw, self.limit = raw, limit
        self.tell, self.close = raw.tell, raw.close

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > MAX_PIECE:
            raise _Damaged(f"a header requests {size} bytes at once")
        data = self.raw.read(size)
        if self.raw.tell() > self.limit:
            raise _Damaged(f"expands beyond {self.limit} bytes")
        return data

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        if position > self.limit:
            raise _Damaged(f"a header points beyond {self.limit} bytes")
        return self.raw.seek(position, whence)


class Part(io.RawIOBase):
    """File object over ``size`` bytes of a file from ``start`` on."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self._raw, self._start, self._size, self._at = open(path, "rb", opener=open_regular), start, size, 0  # noqa: SIM115

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        self._raw.seek(self._start + self._at)
        data = self._raw.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        self._at = position
        return position

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self._raw.close()
        super().close()


def decompressed(path: Path) -> IO[bytes]:
    """Open a file, decompressing gz, xz or bz2."""
    with open(path, "rb", opener=open_regular) as file:
        head = file.read(6)
    if head.startswith(b"\x1f\x8b"):
        return gzip.open(path)  # type: ignore[return-value]
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.open(path)
    if head.startswith(b"BZh"):
        return bz2.open(path)
    return open(path, "rb")
