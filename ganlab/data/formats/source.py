"""Where files come from (``Source``), and one rule of what is taken; folders. Archives: ``archive.py``.

Links are followed, as torchvision and timm do: in a folder wherever they lead, in an archive inside it. One
that leads back to a folder above it ends there. One that leads nowhere is a broken image if it is named like
one, else a DataError: it may have been a class. Hidden files and what systems leave behind (``FOREIGN``) are
passed over and counted in ``Source.ignored``, as are devices and pipes.
"""

from __future__ import annotations

import errno
import hashlib
import lzma
import os
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any

from ganlab.data.formats.files import open_file
from ganlab.data.formats.images import MAX_FILE, BadImageError, is_image_name, printable_name
from ganlab.data.packing.decoding import Piece
from ganlab.errors import DataError

MAX_ENTRIES = 5_000_000
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, NotImplementedError)
FOREIGN = frozenset(
    ["__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"]
)
CIRCLE = "link back to a folder above it"
NOWHERE = "a link that leads nowhere"
TARS = (".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2")


@dataclass(frozen=True)
class Member:
    """A regular file: ``name`` relative with "/", ``size`` in bytes. Read it before asking for the next.

    piece: where it lies as it is, in a folder or an uncompressed tar: any process can read it at any time.
    """

    name: str
    size: int
    source: Source
    opener: Callable[[], IO[bytes]]
    piece: Piece | None = None

    def open(self) -> IO[bytes]:
        """Its content as a stream. What reading it raises, ``Source.reading`` turns into a DataError."""
        return self.opener()

    def read(self, limit: int = MAX_FILE) -> bytes:
        """The whole content. Raises BadImageError if it is larger than ``limit`` or damaged by itself."""
        if self.size > limit:
            raise BadImageError(f"{self.size} bytes, more than {limit}")
        try:
            with self.opener() as file:
                data = file.read(self.size + 1)
        except (*DAMAGE, OSError) as error:
            if self.source.alone:
                raise BadImageError(f"cannot be read ({why(error)})") from None
            with self.source.reading():
                raise
        if len(data) != self.size:
            raise BadImageError(f"{len(data)} bytes where {self.size} are promised")
        return data

    def content(self) -> bytes | Piece | BadImageError:
        """For ``decoding.Encoded``: where it lies, else its bytes, or why there are none."""
        try:
            return self.piece or self.read()
        except BadImageError as error:
            return error


class Source(ABC):
    """``ignored`` and ``folders`` (every folder named) fill while ``members`` runs.

    ``such_as``: the first name of each reason in ``ignored``.
    ``alone``: whether a file can be damaged without its neighbours (folder, zip) or not (tar).
    """

    alone = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ignored: Counter[str] = Counter()
        self.such_as: dict[str, str] = {}
        self.folders: set[str] = set()
        self._entries = 0

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What tells this source from another or a changed one; reads no contents."""

    @abstractmethod
    def _walk(self) -> Iterator[Member]: ...

    def members(self) -> Iterator[Member]:
        """Every regular file once. Raises DataError on damage, a lost link, or more than ``MAX_ENTRIES``."""
        self.ignored.clear()
        self.such_as.clear()
        self.folders.clear()
        self._entries = 0
        with self.reading():
            yield from self._walk()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what readers raise on a damaged or unreadable file into one DataError."""
        try:
            yield
        except (*DAMAGE, OSError) as error:
            if isinstance(error, OSError) and error.filename is not None:
                where, fix = printable_name(str(error.filename)), "check the path and its permissions"
                raise DataError(where, why(error), fix) from None
            fix = "fetch it again, or make it again"
            raise DataError(printable_name(str(self.path)), f"damaged archive ({why(error)})", fix) from None

    def _pass(self, reason: str, name: str) -> None:
        self.ignored[reason] += 1
        self.such_as.setdefault(reason, printable_name(name))

    def _count(self) -> None:
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise self._too_many(MAX_ENTRIES)

    def _too_many(self, most: int) -> DataError:
        return DataError(printable_name(str(self.path)), f"more than {most} entries", "split it")

    def _lost(self, name: str) -> Member:
        """A link that leads nowhere. Raises DataError unless its name is an image's."""
        if not is_image_name(name):
            fix = "mend or remove it, or pack what it leads to (tar -h, zip without -y)"
            raise DataError(printable_name(f"{self.path}/{name}"), f"is {NOWHERE} that can be read", fix)
        return Member(name, 0, self, _nothing)


class FolderSource(Source):
    """A folder, walked in sorted order."""

    tars: list[str] = []  # noqa: RUF012  # set by ``identity``: the tars in it, if it holds no image

    def identity(self) -> dict[str, Any]:
        return self._identity

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """One walk over a million files is enough."""
        digest, files, size = hashlib.sha256(), 0, 0
        tars, images = [], False
        with self.reading():
            for name, info in self._files():
                digest.update(f"{name}\0{_stamp(info)}\n".encode(errors="surrogateescape"))
                files, size = files + 1, size + (info.st_size if info else 0)
                images = images or is_image_name(name)
                tars += [name] if not images and name.lower().endswith(TARS) else []
        self.tars = [] if images else tars
        return {"kind": "folder", "path": str(self.path), "files": files, "bytes": size,
                "listing_sha256": digest.hexdigest()}  # fmt: skip

    def top(self) -> tuple[list[str], list[str]]:
        """Names of the files and of the folders at the top, each sorted. Raises as ``members`` does."""
        with self.reading():
            files, folders = self._level("", None)
            return sorted(files), sorted(folders)

    def _walk(self) -> Iterator[Member]:
        for name, info in self._files():
            path = self.path / name
            if info is None:
                yield self._lost(name)
            else:
                piece = Piece(path, 0, info.st_size)
                yield Member(name, info.st_size, self, partial(open_file, path), piece)

    def _files(self) -> Iterator[tuple[str, os.stat_result | None]]:
        """Names are all that is kept of a folder while its files pass: it may hold millions."""
        below: list[tuple[str, Any]] = [("", None)]
        while below:
            folder, above = below.pop()
            info = os.stat(self.path / folder)
            above = ((info.st_dev, info.st_ino), above)
            files, folders = self._level(folder, above)
            self.folders.update(folders)
            below += ((name, above) for name in sorted(folders, reverse=True))
            for name in sorted(files):
                yield name, os.stat(f"{self.path}/{name}") if files[name] else None

    def _level(self, folder: str, above: Any) -> tuple[dict[str, bool], list[str]]:
        """Of one folder: the files, and whether each is there (else a lost link); and its sub-folders."""
        files: dict[str, bool] = {}
        folders: list[str] = []
        with os.scandir(self.path / folder) as entries:
            for entry in entries:
                self._count()
                name = f"{folder}/{entry.name}" if folder else entry.name
                if hidden(entry.name):
                    self._pass("hidden", name)
                elif _leads(entry, entry.is_file):
                    files[name] = True
                elif _leads(entry, entry.is_dir):
                    if entry.is_symlink() and _is_above(entry.stat(), above):
                        self._pass(CIRCLE, name)
                    else:
                        folders.append(name)
                elif entry.is_symlink():
                    files[name] = False
                    self._lost(name)
                else:
                    self._pass("special file", name)
        return files, folders


def hidden(name: str) -> bool:
    """Whether a path (with "/") is not to be seen: a part begins with a dot, or is a system's own."""
    if "/" not in name:
        return name.startswith(".") or name in FOREIGN
    return any(map(hidden, name.split("/")))


def is_there(path: Path) -> bool:
    """Whether ``path`` is a file or folder. Raises DataError for a link that leads nowhere."""
    if not path.exists() and path.is_symlink():
        raise DataError(printable_name(str(path)), f"is {NOWHERE} that can be read", "mend or remove it")
    return path.exists()


def why(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _stamp(info: os.stat_result | None) -> str:
    return f"{info.st_size}\0{info.st_mtime_ns}" if info else NOWHERE


def _leads(entry: os.DirEntry[str], what: Callable[[], bool]) -> bool:
    try:
        return what()
    except OSError as error:
        if error.errno == errno.ELOOP and entry.is_symlink():
            return False
        raise


def _is_above(info: os.stat_result, above: Any) -> bool:
    while above is not None:
        key, above = above
        if key == (info.st_dev, info.st_ino):
            return True
    return False


def _nothing() -> IO[bytes]:
    raise BadImageError(NOWHERE)
