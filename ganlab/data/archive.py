"""Files out of a folder, a zip or a tar (plain, gz, xz, bz2), streamed: nothing is ever unpacked to disk.

Only regular files come out. Links, FIFOs, devices, hidden files and names that climb ("..") or are absolute
are passed over and counted in ``Source.ignored``. Damage to an archive ends in a DataError that names it.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any

from ganlab.data import zip_directory
from ganlab.data.files import kind_of, open_file
from ganlab.data.images import MAX_FILE, BadImageError, shown
from ganlab.data.tar import headers, is_tar_header, open_tar
from ganlab.errors import DataError
from ganlab.paths import expanded

MAX_ENTRIES, MAX_ZIP = 5_000_000, 1_500_000  # of a zip all are kept: 1 GB; ImageNet fits
KEPT_BYTES, KEPT_ENTRY = 1 << 27, 1 << 10  # of a tar in memory; what an entry costs beside its content
MAX_RATIO, FREE_BYTES = 200, 1 << 30  # an archive may grow 200-fold, or to 1 GB
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, NotImplementedError)


@dataclass(frozen=True)
class Member:
    """A regular file: ``name`` relative with "/", ``size`` in bytes. Read it before asking for the next.

    path: where it lies by itself, of files in folders: it can be read at any time, by any process.
    """

    name: str
    size: int
    source: Source
    opener: Callable[[], IO[bytes]]
    path: Path | None = None

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
                raise BadImageError(f"cannot be read ({_why(error)})") from None
            with self.source.reading():
                raise
        if len(data) != self.size:
            raise BadImageError(f"{len(data)} bytes where {self.size} are promised")
        return data


class Source(ABC):
    """Where files come from. ``ignored`` and ``folders`` (every folder named) fill while ``members`` runs.

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
        """Every regular file once. Raises DataError on damage, or on more than ``MAX_ENTRIES`` entries."""
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
                where, fix = shown(str(error.filename)), "check the path and its permissions"
                raise DataError(where, _why(error), fix) from None
            fix = "fetch it again, or make it again"
            raise DataError(shown(str(self.path)), f"damaged archive ({_why(error)})", fix) from None

    def _pass(self, why: str, name: str) -> None:
        self.ignored[why] += 1
        self.such_as.setdefault(why, shown(name))

    def _too_many(self, most: int) -> DataError:
        return DataError(shown(str(self.path)), f"more than {most} entries", "split it")

    def _take(self, name: str) -> str | None:
        """The cleaned name, or None (and counted) if the entry is not to be touched."""
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise self._too_many(MAX_ENTRIES)
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        if ".." in parts or name.startswith("/") or "\0" in name:
            self._pass("unsafe name", name)
        elif any(part.startswith(".") or part in ("__MACOSX", "@eaDir") for part in parts):
            self._pass("hidden", name)
        else:
            return "/".join(parts)
        return None


class FolderSource(Source):
    """A folder, walked in sorted order; links inside it are not followed."""

    def identity(self) -> dict[str, Any]:
        return self._identity

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """One walk over a million files is enough."""
        digest, files, size = hashlib.sha256(), 0, 0
        with self.reading():
            for name, info in self._files():
                line = f"{name}\0{info.st_size}\0{info.st_mtime_ns}\n"
                digest.update(line.encode(errors="surrogateescape"))
                files, size = files + 1, size + info.st_size
        return {"kind": "folder", "path": str(self.path), "files": files, "bytes": size,
                "listing_sha256": digest.hexdigest()}  # fmt: skip

    def _walk(self) -> Iterator[Member]:
        for name, info in self._files():
            path = self.path / name
            yield Member(name, info.st_size, self, partial(open_file, path), path)

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        """Names are all that is kept of a folder while its files pass: it may hold millions."""
        below = [""]
        while below:
            folder = below.pop()
            files, folders = [], []
            with os.scandir(self.path / folder) as found:
                for entry in found:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if self._take(entry.name) is None:
                        continue
                    if entry.is_symlink():
                        self._pass("link", name)
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(name)
                    elif entry.is_file(follow_symlinks=False):
                        files.append(name)
                    else:
                        self._pass("special file", name)
            self.folders.update(folders)
            below += sorted(folders, reverse=True)
            files.sort()
            for name in files:
                yield name, os.stat(self.path / name, follow_symlinks=False)


class _FileSource(Source):
    def identity(self) -> dict[str, Any]:
        with self.reading():
            info = os.stat(self.path)
        kind = type(self).__name__.removesuffix("Source").lower()
        return {"kind": kind, "path": str(self.path), "bytes": info.st_size, "mtime_ns": info.st_mtime_ns}

    def _limit(self) -> int:
        return max(FREE_BYTES, MAX_RATIO * os.stat(self.path).st_size)


class ZipSource(_FileSource):
    """A zip archive, in the order of its directory."""

    def _walk(self) -> Iterator[Member]:
        limit, total = self._limit(), 0
        if zip_directory.count(self.path, MAX_ZIP) > MAX_ZIP:
            raise self._too_many(MAX_ZIP)
        with zipfile.ZipFile(self.path) as archive:
            for info in archive.infolist():
                name, mode = self._take(info.filename), info.external_attr >> 16
                if name is None:
                    continue
                if info.is_dir():
                    self.folders.add(name)
                elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                    self._pass("link" if stat.S_ISLNK(mode) else "special file", name)
                else:
                    total += info.file_size
                    if total > limit:
                        raise zipfile.BadZipFile(f"grows beyond {limit} bytes")
                    yield Member(name, info.file_size, self, partial(zip_directory.opened, archive, info))


class TarSource(_FileSource):
    """A tar archive, plain or compressed, read from front to back.

    A small one is unpacked once: its files are kept in memory, up to ``KEPT_BYTES``, for the next walk.
    """

    alone = False
    _kept: tuple[list[Member], Counter[str], dict[str, str], set[str]] | None = None

    def _walk(self) -> Iterator[Member]:
        if self._kept is not None:
            members, ignored, such_as, folders = self._kept
            self.ignored.update(ignored)
            self.such_as |= such_as
            self.folders |= folders
            yield from members
            return
        members, left = [], KEPT_BYTES
        for member in self._read():
            left -= member.size + KEPT_ENTRY
            if left < 0:
                members.clear()
            else:
                member = replace(member, opener=partial(io.BytesIO, member.read()))
                members.append(member)
            yield member
        if left >= 0:
            self._kept = members, self.ignored.copy(), self.such_as.copy(), self.folders.copy()

    def _read(self) -> Iterator[Member]:
        with open_tar(self.path, self._limit()) as archive:
            for info in headers(archive):
                name = self._take(info.name)
                if name is None:
                    continue
                if info.isdir():
                    self.folders.add(name)
                elif info.issym() or info.islnk():
                    self._pass("link", name)
                elif not info.isreg():
                    self._pass("special file", name)
                else:
                    yield Member(name, info.size, self, partial(_open_tarred, archive, info))


def open_source(path: str | Path, where: str = "dataset.path") -> Source:
    """The folder, zip or tar at ``path``. Raises DataError, naming the key ``where``, if it is none."""
    path = Path(os.path.abspath(expanded(path)))
    name = shown(str(path))
    try:
        if path.is_dir():
            os.scandir(path).close()
            return FolderSource(path)
        if path.exists() and not path.is_file():
            raise DataError(where, f"{name} is neither a file nor a folder", "give a folder, zip or tar")
        with open_file(path) as file:
            head = file.read(512)
    except FileNotFoundError:
        raise DataError(where, f"{name} does not exist", "check the path") from None
    except OSError as error:
        raise DataError(where, f"{name}: {_why(error)}", "check the path and its permissions") from None
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return ZipSource(path)
    if head.startswith((b"\x1f\x8b", b"\xfd7zXZ\0", b"BZh")) or is_tar_header(head):
        return TarSource(path)
    what = f"{name} is not a folder, zip or tar (it is {kind_of(head)})"
    raise DataError(where, what, "give a folder of images, a .zip, .tar, .tar.gz, .tar.xz or .tar.bz2")


def _open_tarred(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(info)
    assert file is not None, "a regular file has content"
    return file


def _why(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
