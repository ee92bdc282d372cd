"""Base class of file sources (``Source``), and folders. Archives are in ``archive.py``.

Links are followed, as in torchvision and timm: everywhere from a folder, only inside an archive. A link to a
parent folder is ignored. A broken link counts as a broken image if it has an image's name; otherwise it
raises DataError, as it may have been a class folder. Hidden files, system files (``FOREIGN``), devices and
pipes are ignored and counted in ``Source.ignored``.
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
from ganlab.data.formats.images import MAX_FILE, BadImageError, is_image_name
from ganlab.data.formats.names import is_above
from ganlab.data.packing.decoding import Piece
from ganlab.errors import DataError, printable_name

MAX_ENTRIES = 5_000_000
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, NotImplementedError)
FOREIGN = frozenset(
    ["__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"]
)
LINK_LOOP = "link back to a folder above it"  # a key of ``Source.ignored``, saved in manifests
BROKEN_STAMP = "a link that leads nowhere"  # hashed into the identity of a folder
TARS = (".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2")


@dataclass(frozen=True)
class Member:
    """A regular file: ``name`` relative with "/", ``size`` in bytes. Read it before requesting the next.

    piece: its uncompressed bytes on disk (folder or plain tar), readable at any time by any process.
    """

    name: str
    size: int
    source: Source
    opener: Callable[[], IO[bytes]]
    piece: Piece | None = None

    def open(self) -> IO[bytes]:
        """Open the content as a stream; ``Source.reading`` turns its errors into a DataError."""
        return self.opener()

    def read(self, limit: int = MAX_FILE) -> bytes:
        """Read the whole content. Raises BadImageError if it is larger than ``limit`` or damaged."""
        if self.size > limit:
            raise BadImageError(f"{self.size} bytes, more than {limit}")
        try:
            with self.opener() as file:
                data = file.read(self.size + 1)
        except (*DAMAGE, OSError) as error:
            if self.source.independent_files:
                raise BadImageError(f"cannot be read ({error_text(error)})") from None
            with self.source.reading():
                raise
        if len(data) != self.size:
            raise BadImageError(f"{len(data)} bytes, expected {self.size}")
        return data

    def content(self) -> bytes | Piece | BadImageError:
        """Content for ``decoding.Encoded``: its location if possible, else its bytes or the error."""
        try:
            return self.piece or self.read()
        except BadImageError as error:
            return error


class Source(ABC):
    """A collection of files; ``members`` iterates over them and fills ``ignored`` and ``folders``.

    ``ignored``: count of skipped files by reason. ``ignored_examples``: the first name for each reason.
    ``folders``: names of all folders. ``independent_files``: whether damage to one file leaves the others
    readable (folder, zip) or not (tar).
    """

    independent_files = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ignored: Counter[str] = Counter()
        self.ignored_examples: dict[str, str] = {}
        self.folders: set[str] = set()
        self._entries = 0

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """JSON that changes whenever the source does (path, sizes, times); reads no contents."""

    @abstractmethod
    def _walk(self) -> Iterator[Member]: ...

    def members(self) -> Iterator[Member]:
        """Yield every regular file once. Raises DataError on damage, a broken link, or too many entries."""
        self.ignored.clear()
        self.ignored_examples.clear()
        self.folders.clear()
        self._entries = 0
        with self.reading():
            yield from self._walk()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn the errors of a damaged or unreadable file into a DataError."""
        try:
            yield
        except (*DAMAGE, OSError) as error:
            if isinstance(error, OSError) and error.filename is not None:
                where, fix = printable_name(error.filename), "check the path and its permissions"
                raise DataError(where, error_text(error), fix) from None
            fix = "download or create it again"
            raise DataError(self.path, f"damaged archive ({error_text(error)})", fix) from None

    def _skip(self, reason: str, name: str) -> None:
        self.ignored[reason] += 1
        self.ignored_examples.setdefault(reason, printable_name(name))

    def _count(self) -> None:
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise self._too_many(MAX_ENTRIES)

    def _too_many(self, limit: int) -> DataError:
        return DataError(self.path, f"more than {limit} entries", "split it")

    def _broken_link(self, name: str) -> Member:
        """A member for a broken link. Raises DataError unless its name is an image's."""
        if not is_image_name(name):
            fix = "repair or remove it, or archive its target (tar -h, zip without -y)"
            raise DataError(printable_name(f"{self.path}/{name}"), "is a broken link", fix)
        return Member(name, 0, self, _raise_broken_link)


class FolderSource(Source):
    """A folder, read in sorted order."""

    tars: list[str] = []  # noqa: RUF012  # its tars if it contains no images; set by ``identity``

    def identity(self) -> dict[str, Any]:
        return self._identity

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """Cached: walking a million files is slow."""
        digest, files, size = hashlib.sha256(), 0, 0
        tars, images = [], False
        with self.reading():
            for name, info in self._files():
                stamp = f"{info.st_size}\0{info.st_mtime_ns}" if info else BROKEN_STAMP
                digest.update(f"{name}\0{stamp}\n".encode(errors="surrogateescape"))
                files, size = files + 1, size + (info.st_size if info else 0)
                images = images or is_image_name(name)
                tars += [name] if not images and name.lower().endswith(TARS) else []
        self.tars = [] if images else tars
        return {"kind": "folder", "path": str(self.path), "files": files, "bytes": size,
                "listing_sha256": digest.hexdigest()}  # fmt: skip

    def top(self) -> tuple[list[str], list[str]]:
        """Names of the top-level files and folders, each sorted. Raises like ``members``."""
        with self.reading():
            files, folders = self._level("", None)
            return sorted(files), sorted(folders)

    def _walk(self) -> Iterator[Member]:
        for name, info in self._files():
            path = self.path / name
            if info is None:
                yield self._broken_link(name)
            else:
                piece = Piece(path, 0, info.st_size)
                yield Member(name, info.st_size, self, partial(open_file, path), piece)

    def _files(self) -> Iterator[tuple[str, os.stat_result | None]]:
        """Yield (name, stat or None for a broken link); keeps only names, as there may be millions."""
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
        """List one folder: files with whether each exists (False: a broken link), and subfolders."""
        files: dict[str, bool] = {}
        folders: list[str] = []
        with os.scandir(self.path / folder) as entries:
            for entry in entries:
                self._count()
                name = f"{folder}/{entry.name}" if folder else entry.name
                if is_hidden(entry.name):
                    self._skip("hidden", name)
                elif _resolves(entry, entry.is_file):
                    files[name] = True
                elif _resolves(entry, entry.is_dir):
                    info = entry.stat() if entry.is_symlink() else None
                    if info and is_above((info.st_dev, info.st_ino), above):
                        self._skip(LINK_LOOP, name)
                    else:
                        folders.append(name)
                elif entry.is_symlink():
                    files[name] = False
                    self._broken_link(name)
                else:
                    self._skip("special file", name)
        return files, folders


def is_hidden(name: str) -> bool:
    """Whether any part of a path (with "/") starts with a dot or is a system file."""
    if "/" not in name:
        return name.startswith(".") or name in FOREIGN
    return any(map(is_hidden, name.split("/")))


def path_exists(path: Path) -> bool:
    """Whether ``path`` exists. Raises DataError for a broken link."""
    if not path.exists() and path.is_symlink():
        raise DataError(path, "is a broken link", "repair or remove it")
    return path.exists()


def error_text(error: BaseException) -> str:
    """One-line description of an exception, for a message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _resolves(entry: os.DirEntry[str], check: Callable[[], bool]) -> bool:
    try:
        return check()
    except OSError as error:
        if error.errno == errno.ELOOP and entry.is_symlink():
            return False
        raise


def _raise_broken_link() -> IO[bytes]:
    raise BadImageError("broken link")
