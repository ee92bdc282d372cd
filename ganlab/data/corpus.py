"""Lines of text files as rows of code points, in blocks of numpy arrays: 100 MB take seconds.

``text.py`` makes the vocabulary of them.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from ganlab.data.formats.files import kind_of, megabytes, open_file
from ganlab.errors import DataError

Long = Literal["cut", "split", "fail"]
Rows = npt.NDArray[np.uint32]
PAD = "`"  # as in WGAN-GP's code (language_helpers.py)
BLOCK = 1 << 24  # bytes read at a time
LONGEST = 1 << 28  # bytes of a line, with what stands before it in its block
PIECE = 1 << 22  # symbols that are handled at a time
UNKNOWN = "\ufffd"  # Unicode's replacement character: what on_bad=replace makes of bytes that are no UTF-8
LONE_RETURN = re.compile(rb"\r(?!\n)")


class Counts(NamedTuple):
    """What was met on the way: lines cut (or split), empty lines, symbols put for bytes that are no UTF-8."""

    long: int = 0
    empty: int = 0
    replaced: int = 0

    def plus(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


def read(files: list[Path], length: int, most: int, long_lines: Long, replace: bool) -> tuple[Rows, Counts]:
    """Up to ``most`` rows (n, ``length``) of the files' lines, in order, padded; empty lines are left out.

    Raises DataError naming the file for what is missing, damaged or no text, and with ``long_lines=fail``
    for a line that is longer.
    """
    parts, left, counts = [np.empty((0, length), np.uint32)], most, Counts()
    for file in files:
        number = 1  # of a block's first line
        for lines in _blocks(file, replace):
            long = [i for i, line in enumerate(lines) if len(line) > length]
            if long and long_lines == "fail":
                size = len(lines[long[0]])
                what = f"line {number + long[0]} has {size} symbols, more than dataset.length={length}"
                raise DataError(file, what, "set dataset.long_lines=cut or split, or raise dataset.length")
            number += len(lines)
            replaced = sum(line.count(UNKNOWN) for line in lines) if replace else 0
            counts = counts.plus(Counts(len(long), lines.count(""), replaced))
            if long_lines == "split":
                lines = [line[i : i + length] for line in lines for i in range(0, len(line), length)]
            lines = [line[:length].ljust(length, PAD) for line in lines if line][:left]
            at = max(1, PIECE // length)
            for i in range(0, len(lines), at):
                codes = np.frombuffer("".join(lines[i : i + at]).encode("utf-32-le"), "<u4")
                parts.append(codes.reshape(-1, length))
            left -= len(lines)
            if not left:
                return np.concatenate(parts), counts
    return np.concatenate(parts), counts


def _blocks(file: Path, replace: bool) -> Iterator[list[str]]:
    """Some lines at a time, without their ends."""
    at, rest = 0, list[bytes]()  # bytes before the block; what of it was read already
    try:
        with _opened(file) as stream:
            while True:
                chunk = stream.read(BLOCK)
                if chunk.endswith(b"\r"):
                    chunk += stream.read(1)
                if chunk.count(b"\r") > chunk.count(b"\r\n"):  # lines of the old Mac's end with it alone
                    chunk = LONE_RETURN.sub(b"\n", chunk)
                if (nul := chunk.find(b"\0")) >= 0:
                    place = at + sum(map(len, rest)) + nul
                    what = f"byte {place} is NUL: it is {kind_of(chunk[:64])}, no text"
                    raise DataError(file, what, "give UTF-8 text, plain or .gz")
                end = chunk.rfind(b"\n") + 1
                if end or not chunk:
                    data = b"".join([*rest, chunk[:end]])
                    if data:
                        yield _decoded(file, data, at, replace)
                    at, rest = at + len(data), []
                rest.append(chunk[end:])
                if sum(map(len, rest)) > LONGEST:
                    what = f"has a line longer than {megabytes(LONGEST)}"
                    raise DataError(file, what, "break it into lines")
                if not chunk:
                    return
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(file, f"is damaged ({error})", "download it again") from None
    except OSError as error:
        raise DataError(file, f"can't be read ({error.strerror})", "see dataset.path") from None


def _decoded(file: Path, data: bytes, at: int, replace: bool) -> list[str]:
    try:
        text = data.decode("utf-8", "replace" if replace else "strict")
    except UnicodeDecodeError as error:
        what = f"byte {at + error.start} (0x{data[error.start]:02x}) is not UTF-8"
        fix = "convert it, or set dataset.on_bad=replace: such bytes become the unknown symbol"
        raise DataError(file, what, fix) from None
    if not at:
        text = text.removeprefix("\ufeff") or "\n"  # a byte-order mark is no text
    return text.removesuffix("\n").replace("\r\n", "\n").removesuffix("\r").split("\n")


def _opened(file: Path) -> IO[bytes]:
    with open_file(file) as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(file, "rb")) if packed else open_file(file)
