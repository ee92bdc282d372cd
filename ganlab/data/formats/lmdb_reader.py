"""Read LMDB databases sequentially in a worker process.

LMDB maps its file into memory without checks: a truncated or corrupt one kills the reader with SIGBUS or
SIGSEGV, which becomes a DataError here. The number of entries comes from the file's header, without a scan.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ganlab.data.formats.files import log
from ganlab.data.formats.images import MAX_FILE, BadImageError, printable_name
from ganlab.data.packing.worker import ChildCrashed, ChildLost, Worker
from ganlab.errors import DataError, EnvError
from ganlab.system.files import open_regular

MAGIC = 0xBEEFC0DE
VERSIONS = {16: 1, 24: 3}  # of the data, by the bytes of a page's header: LMDB 0.9 and 1.0
META = 160  # bytes of a meta page that are read
PIECE_BYTES, PIECE_ENTRIES = 1 << 22, 512  # what the process sends at once
FIX = "download it again and unpack the whole archive"
Entry = tuple[bytes, bytes | BadImageError]


class Head(NamedTuple):
    """The newer of the two meta pages: number of entries, and bytes that the file must have."""

    transaction: int
    entries: int
    bytes: int


def data_file(path: Path) -> Path:
    """Path of the data file: ``data.mdb`` in a folder, or the database file itself."""
    return path / "data.mdb" if path.is_dir() else path


def read_head(path: Path) -> Head:
    """Check the header without LMDB. Raises DataError if the file is no LMDB database or truncated."""
    file = data_file(path)
    where = printable_name(str(file))
    try:
        with open(file, "rb", opener=open_regular) as opened:
            first = opened.read(4096)
            page = struct.unpack_from("<I", first, _header(first) + 24)[0] if len(first) >= META else 0
            opened.seek(page)
            second = opened.read(META)
            size = opened.seek(0, 2)
    except OSError as error:
        raise DataError(where, f"cannot be read ({error.strerror})", FIX) from None
    if not size:
        raise DataError(where, "is empty", FIX)
    heads = [head for head in (_meta(first, page, where), _meta(second, page, where)) if head is not None]
    if not heads:
        raise DataError(where, "is not an LMDB database", FIX)
    head = max(heads)
    if size < head.bytes:
        raise DataError(where, f"is truncated: {size:,} bytes, expected {head.bytes:,}", FIX)
    if not head.entries:
        raise DataError(where, "has no entries", FIX)
    return head


def read_entries(path: Path, after: bytes | None = None) -> Iterator[Entry]:
    """Yield (key, value) in key order, starting after the key ``after``; oversized values are errors.

    Raises DataError if the database is damaged, EnvError if the reading process hangs or dies twice.
    """
    where = printable_name(str(path))
    try:
        import lmdb  # noqa: F401  # the child would only say that it ended
    except ImportError:
        raise EnvError("lmdb", "is not installed", "pip install lmdb") from None
    child, key, lost = Worker(), after, False
    try:
        child.start(_read, str(path), key)
        while True:
            try:
                piece = child.result()
            except ChildLost as error:
                if lost:
                    raise
                log.warning("%s: %s; restarting it", error.mistakes[0].where, error.mistakes[0].what)
                lost = True
                child.close()
                child = Worker()
                child.start(_read, str(path), key)
                continue
            if not piece:
                return
            lost, key = False, piece[-1][0]
            child.start(_read, str(path), key)  # it reads on while these are worked on
            yield from piece
    except ChildCrashed as crash:
        at = f"after key {printable_name(key.decode('latin1'))}" if key else "at its first entry"
        raise DataError(where, f"damaged LMDB database (reading ended with {crash} {at})", FIX) from None
    except (RuntimeError, OSError) as error:
        raise DataError(where, f"damaged LMDB database ({error})", FIX) from None
    finally:
        child.close()


def _header(data: bytes) -> int:
    """Bytes of a page's header, by the place of the number that marks a meta page."""
    return next((n for n in VERSIONS if data[n : n + 4] == MAGIC.to_bytes(4, "little")), 16)


def _meta(data: bytes, page: int, where: str) -> Head | None:
    """One meta page: its header, then ``MDB_meta`` (lmdb's mdb.c), little-endian, 64 bits."""
    if len(data) < META or page < 256 or page > 1 << 16 or page & (page - 1):
        return None
    at = _header(data)
    magic, version = struct.unpack_from("<II", data, at)
    if magic != MAGIC:
        return None
    if version != VERSIONS[at]:
        what = f"is an LMDB database of data version {version}; 1 (LMDB 0.9) and 3 (1.0) are read"
        raise DataError(where, what, "copy it: mdb_dump of the LMDB that wrote it, then mdb_load of LMDB 0.9")
    entries = struct.unpack_from("<Q", data, at + 72 + 32)[0]  # md_entries of the main database
    last_page, transaction = struct.unpack_from("<QQ", data, at + 120)
    return Head(transaction, entries, (last_page + 1) * page)


_open: dict[str, object] = {}  # in the child: the database stays open between calls


def _read(path: str, after: bytes | None) -> list[Entry]:
    """In the child: the entries that follow ``after``, a few MB of them; none at the end."""
    import lmdb

    if path not in _open:
        folder = Path(path).is_dir()
        try:
            _open[path] = lmdb.open(
                path, subdir=folder, readonly=True, lock=False, create=False, max_readers=1
            )
        except lmdb.Error as error:
            raise RuntimeError(str(error)) from None
    env = _open[path]
    assert isinstance(env, lmdb.Environment)
    found: list[Entry] = []
    size = 0
    try:
        with env.begin(buffers=True) as transaction, transaction.cursor() as cursor:
            there = cursor.first() if after is None else cursor.set_range(after)
            if there and after is not None and bytes(cursor.key()) == after:
                there = cursor.next()
            while there and size < PIECE_BYTES and len(found) < PIECE_ENTRIES:
                key, value = cursor.item()
                if len(value) > MAX_FILE:
                    found.append((bytes(key), BadImageError(f"{len(value)} bytes, more than {MAX_FILE}")))
                else:
                    found.append((bytes(key), bytes(value)))
                    size += len(value)
                there = cursor.next()
    except lmdb.Error as error:
        raise RuntimeError(str(error)) from None
    if after is not None and any(key <= after for key, _ in found):
        raise RuntimeError("its keys are out of order")  # a rotten tree may lead round in a circle
    return found
