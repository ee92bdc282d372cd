"""Count a zip's central directory before reading it: Python's ``zipfile`` keeps 700 bytes per entry."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from typing import IO

from ganlab.data.formats.files import open_file
from ganlab.data.formats.images import BadImageError, printable_name

END, END_64, LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
ENTRY = b"PK\x01\x02"
PIECE = 1 << 20
MARKED_UTF8 = 1 << 11  # of an entry's flags


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip. Raises zipfile.BadZipFile, also for an undecodable name."""
    try:
        return zipfile.ZipFile(path)
    except UnicodeDecodeError as error:
        name = error.object.decode("utf-8", "replace")
        raise zipfile.BadZipFile(
            f"an entry name is marked as UTF-8 but is not: {printable_name(name)}"
        ) from None


def decode_name(info: zipfile.ZipInfo) -> str:
    """Name of an entry. macOS and some tools write UTF-8 without setting its flag."""
    try:
        return info.filename if info.flag_bits & MARKED_UTF8 else info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def open_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """Open an entry's content. Raises BadImageError if it is encrypted."""
    if info.flag_bits & 1:
        raise BadImageError("encrypted")
    return archive.open(info)


def count_entries(path: Path, limit: int) -> int:
    """Count the directory's entries, stopping beyond ``limit``; reads only the directory.

    Raises zipfile.BadZipFile if the directory is missing or truncated, OSError.
    """
    with open_file(path) as file:
        length = os.fstat(file.fileno()).st_size
        file.seek(max(0, length - 22 - (1 << 16)))  # a comment of up to 64 kB follows the end record
        tail = file.read()
        at = tail.rfind(END)
        if at < 0 or len(tail) - at < 22:
            raise zipfile.BadZipFile("it has no central directory")
        end, (size,) = length - len(tail) + at, struct.unpack_from("<I", tail, at + 12)
        if at >= 76 and tail[at - 20 : at - 16] == LOCATOR and tail[at - 76 : at - 72] == END_64:
            end, (size,) = end - 76, struct.unpack_from("<Q", tail, at - 76 + 40)
        if size > end:
            raise zipfile.BadZipFile("its central directory is truncated")
        file.seek(end - size)
        count, rest = 0, b""
        while size > 0 and count <= limit and (block := file.read(min(size, PIECE))):
            size -= len(block)
            count += (rest + block).count(ENTRY)
            rest = block[-3:]  # less than a signature: none is counted twice
    return count
