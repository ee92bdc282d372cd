"""Read LMDB databases sequentially in a worker process.

LMDB maps its file into memory without checks: a truncated or corrupt one kills the reader with SIGBUS or
SIGSEGV, which becomes a DataError here. The number of entries comes from the file's header, without a scan.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ganlab.data.formats.images import MAX_FILE, BadImageError
from ganlab.data.packing.worker import ChildCrashed, WorkerPool
from ganlab.errors import DataError, EnvError, printable_name

if TYPE_CHECKING:
    import lmdb

PIECE_BYTES, PIECE_ENTRIES = 1 << 22, 512  # what the process sends at once
FIX = "download it again and unpack the whole archive"
Entry = tuple[bytes, bytes | BadImageError]


def data_file(path: Path) -> Path:
    """Path of the data file: ``data.mdb`` in a folder, or the database file itself."""
    return path / "data.mdb" if path.is_dir() else path


def count_entries(path: Path) -> int:
    """Number of entries. Raises DataError if the file is no LMDB database, empty or truncated."""
    file = data_file(path)
    where = printable_name(file)
    try:
        info = os.stat(file)
    except OSError as error:
        raise DataError(where, f"cannot be read ({error.strerror})", FIX) from None
    if not info.st_size:
        raise DataError(where, "is empty", FIX)
    entries, size = _header(path, where, info.st_size, info.st_mtime_ns)
    if info.st_size < size:
        raise DataError(where, f"is truncated: {info.st_size:,} bytes, expected {size:,}", FIX)
    if not entries:
        raise DataError(where, "has no entries", FIX)
    return entries


@lru_cache
def _header(path: Path, where: str, *_: int) -> tuple[int, int]:
    """``_read_header`` in a worker. Raises DataError. Cached by the file's size and time."""
    _require_lmdb()
    try:
        with WorkerPool() as pool:
            return pool.run(_read_header, str(path))
    except ChildCrashed as crash:
        raise DataError(where, f"damaged LMDB database (opening ended with {crash})", FIX) from None
    except ValueError:
        raise DataError(where, "is not an LMDB database", FIX) from None
    except RuntimeError as error:
        fix = "copy it: mdb_dump of the LMDB that wrote it, then mdb_load of LMDB 0.9"
        raise DataError(where, f"cannot be opened ({error})", fix) from None


def _require_lmdb() -> None:
    try:
        import lmdb  # noqa: F401  # the worker would only say that it ended
    except ImportError:
        raise EnvError("lmdb", "is not installed", "pip install lmdb") from None


def read_entries(path: Path, after: bytes | None = None) -> Iterator[Entry]:
    """Yield (key, value) in key order, starting after the key ``after``; oversized values are errors.

    Raises DataError if the database is damaged, EnvError if the reading process hangs or dies twice.
    """
    where = printable_name(path)
    _require_lmdb()
    key = after
    try:
        with WorkerPool() as pool:
            while piece := pool.run(_read, str(path), key):
                key = piece[-1][0]
                yield from piece
    except ChildCrashed as crash:
        at = f"after key {printable_name(key.decode('latin1'))}" if key else "at its first entry"
        raise DataError(where, f"damaged LMDB database (reading ended with {crash} {at})", FIX) from None
    except (RuntimeError, OSError) as error:
        raise DataError(where, f"damaged LMDB database ({error})", FIX) from None


@lru_cache  # in the worker: the database stays open between calls
def _opened(path: str) -> lmdb.Environment:
    import lmdb

    folder = Path(path).is_dir()
    try:
        return lmdb.open(path, subdir=folder, readonly=True, lock=False, create=False, max_readers=1)
    except lmdb.InvalidError as error:
        raise ValueError(str(error)) from None
    except lmdb.Error as error:
        raise RuntimeError(str(error)) from None


def _read_header(path: str) -> tuple[int, int]:
    """In the worker: the number of entries, and the bytes that the file must have."""
    env = _opened(path)
    stat = env.stat()
    return stat["entries"], (env.info()["last_pgno"] + 1) * stat["psize"]


def _read(path: str, after: bytes | None) -> list[Entry]:
    """In the worker: the entries that follow ``after``, a few MB of them; none at the end."""
    import lmdb

    entries: list[Entry] = []
    size = 0
    try:
        with _opened(path).begin(buffers=True) as transaction, transaction.cursor() as cursor:
            exists = cursor.first() if after is None else cursor.set_range(after)
            if exists and after is not None and bytes(cursor.key()) == after:
                exists = cursor.next()
            while exists and size < PIECE_BYTES and len(entries) < PIECE_ENTRIES:
                key, value = cursor.item()
                if len(value) > MAX_FILE:
                    entries.append((bytes(key), BadImageError(f"{len(value)} bytes, more than {MAX_FILE}")))
                else:
                    entries.append((bytes(key), bytes(value)))
                    size += len(value)
                exists = cursor.next()
    except lmdb.Error as error:
        raise RuntimeError(str(error)) from None
    if after is not None and any(key <= after for key, _ in entries):
        raise RuntimeError("its keys are out of order")  # a rotten tree may lead round in a circle
    return entries
