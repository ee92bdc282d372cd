"""Lines of text files as rows of symbols, in blocks of numpy arrays: 100 MB take seconds, memory is bounded.

Symbols are ids of code points in the order in which they are met (``Symbols``); ``text.py`` makes the
vocabulary of them.
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
from ganlab.errors import DataError, printable

Long = Literal["cut", "split", "fail"]
Rows = npt.NDArray[np.uint16]
Ints = npt.NDArray[np.int64]
PAD = "`"  # as in WGAN-GP's code (language_helpers.py)
BLOCK = 1 << 24  # bytes read at a time
LONGEST = 1 << 28  # bytes of a line, with what stands before it in its block
PIECE = 1 << 22  # symbols that are handled at a time
UNKNOWN = 0xFFFD  # Unicode's replacement character: what on_bad=replace makes of bytes that are no UTF-8
NEWLINE, RETURN = 10, 13
LONE_RETURN = re.compile(rb"\r(?!\n)")


class Symbols:
    """Ids 1, 2, ... of code points in the order in which they are met; 0 for what is unknown.

    The padding is the first. After 65,535 of them every new one is unknown too: no language has as many.
    """

    most = (1 << 16) - 1

    def __init__(self) -> None:
        self.codes = [ord(PAD)]  # code point of id 1, 2, ...
        self._ids = np.zeros(0x110000, np.uint16)
        self._ids[ord(PAD)] = 1

    def ids(self, codes: npt.NDArray[np.uint32]) -> Rows:
        """Of code points (n,)."""
        found = self._ids[codes]
        new = np.unique(codes[found == 0])
        new = new[new != UNKNOWN][: self.most - len(self.codes)]
        if not len(new):
            return found
        self._ids[new] = np.arange(len(self.codes), len(self.codes) + len(new)) + 1
        self.codes += new.tolist()
        return self._ids[codes]


class Counts(NamedTuple):
    """What was met on the way: lines cut (or split), empty lines, symbols put for bytes that are no UTF-8."""

    long: int = 0
    empty: int = 0
    replaced: int = 0

    def plus(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


def read(
    files: list[Path], length: int, most: int, long_lines: Long, replace: bool, symbols: Symbols
) -> tuple[Rows, Counts]:
    """Up to ``most`` rows (n, ``length``) of the files' lines, in order, padded; empty lines are left out.

    Raises DataError naming the file for what is missing, damaged or no text, and with ``long_lines=fail``
    for a line that is longer.
    """
    parts, left, counts = [np.empty((0, length), np.uint16)], most, Counts()
    for file in files:
        for rows, block in _lines(file, length, long_lines, replace, symbols):
            parts.append(rows[:left])
            left, counts = left - len(parts[-1]), counts.plus(block)
            if not left:
                return np.concatenate(parts), counts
    return np.concatenate(parts), counts


def _lines(
    file: Path, length: int, long_lines: Long, replace: bool, symbols: Symbols
) -> Iterator[tuple[Rows, Counts]]:
    """Rows of one file, block by block."""
    number = 1  # of a block's first line
    for codes in _blocks(file, replace):
        starts, lengths = _places(codes)
        too_long = lengths > length
        if long_lines == "fail" and too_long.any():
            first = int(np.argmax(too_long))
            what = f"line {number + first} has {lengths[first]} symbols, more than dataset.length={length}"
            raise DataError(
                printable_name(file), what, "set dataset.long_lines=cut or split, or raise dataset.length"
            )
        number += len(starts)
        counts = Counts(int(too_long.sum()), int((lengths == 0).sum()), int((codes == UNKNOWN).sum()))
        starts, lengths = _windows(starts, lengths, length, long_lines)
        at = max(1, PIECE // length)
        for i in range(0, len(starts), at):
            yield _rows(codes, starts[i : i + at], lengths[i : i + at], length, symbols), counts
            counts = Counts()
        if not len(starts):
            yield np.empty((0, length), np.uint16), counts


def _places(codes: npt.NDArray[np.uint32]) -> tuple[Ints, Ints]:
    """Where each line of a block starts, and its length without its end, which may be of Windows."""
    ends = np.flatnonzero(codes == NEWLINE)
    if codes[-1] != NEWLINE:
        ends = np.append(ends, codes.size)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts
    return starts, lengths - ((lengths > 0) & (codes[ends - 1] == RETURN))


def _windows(starts: Ints, lengths: Ints, length: int, long_lines: Long) -> tuple[Ints, Ints]:
    """What becomes a row: of a line its beginning, or with ``split`` all of it; of an empty one nothing."""
    if long_lines != "split":
        there = lengths > 0
        return starts[there], np.minimum(lengths[there], length)
    pieces = -(-lengths // length)
    which = np.repeat(np.arange(len(starts)), pieces)
    skip = length * (np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
    return starts[which] + skip, np.minimum(lengths[which] - skip, length)


def _rows(codes: npt.NDArray[np.uint32], starts: Ints, lengths: Ints, length: int, symbols: Symbols) -> Rows:
    rows = np.full((len(starts), length), symbols.ids(np.array([ord(PAD)], np.uint32))[0])
    inside = np.arange(length) < lengths[:, None]
    rows[inside] = symbols.ids(codes[(starts[:, None] + np.arange(length))[inside]])
    return rows


def _blocks(file: Path, replace: bool) -> Iterator[npt.NDArray[np.uint32]]:
    """Code points of some whole lines at a time."""
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
                    raise DataError(printable_name(file), what, "give UTF-8 text, plain or .gz")
                end = chunk.rfind(b"\n") + 1
                if end or not chunk:
                    data = b"".join([*rest, chunk[:end]])
                    if data:
                        yield _decoded(file, data, at, replace)
                    at, rest = at + len(data), []
                rest.append(chunk[end:])
                if sum(map(len, rest)) > LONGEST:
                    what = f"has a line longer than {megabytes(LONGEST)}"
                    raise DataError(printable_name(file), what, "break it into lines")
                if not chunk:
                    return
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(printable_name(file), f"is damaged ({error})", "download it again") from None
    except OSError as error:
        raise DataError(
            printable_name(file), f"can't be read ({error.strerror})", "see dataset.path"
        ) from None


def _decoded(file: Path, data: bytes, at: int, replace: bool) -> npt.NDArray[np.uint32]:
    try:
        text = data.decode("utf-8", "replace" if replace else "strict")
    except UnicodeDecodeError as error:
        what = f"byte {at + error.start} (0x{data[error.start]:02x}) is not UTF-8"
        fix = "convert it, or set dataset.on_bad=replace: such bytes become the unknown symbol"
        raise DataError(printable_name(file), what, fix) from None
    if not at:
        text = text.removeprefix("\ufeff") or "\n"  # a byte-order mark is no text
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _opened(file: Path) -> IO[bytes]:
    with open_file(file) as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(file, "rb")) if packed else open_file(file)


def printable_name(file: Path) -> str:
    """A file's name as a message has it."""
    return printable(str(file)).replace("\n", "?")
