"""Stream files from a zip or a tar (plain, gz, xz, bz2) without unpacking to disk.

A first pass reads the names (``names.py``), a second one the files. Devices, pipes, absolute names and names
with ".." are ignored and counted in ``Source.ignored``. Damage raises DataError.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

from ganlab.data.formats.files import kind_of, open_file
from ganlab.data.formats.images import BadImageError
from ganlab.data.formats.names import Names, clean, target_of
from ganlab.data.formats.source import DAMAGE, LINK_LOOP, FolderSource, Member, Source, error_text, is_hidden
from ganlab.data.formats.tar import Part, decompressed, headers, is_tar_header, open_tar
from ganlab.data.packing.decoding import Piece
from ganlab.errors import DataError, printable_name
from ganlab.system.files import open_regular
from ganlab.system.paths import expanded

MAX_ZIP = 1_500_000  # entries of a zip, all of which are kept: 1 GB; ImageNet fits
MAX_DIRECTORY = 1 << 28  # bytes of a zip's directory, which Python reads at once
MARKED_UTF8, ENCRYPTED = 1 << 11, 1  # of a zip entry's flags
KEPT_BYTES, KEPT_ENTRY = 1 << 27, 1 << 10  # of a tar in memory; what an entry costs beside its content
MAX_RATIO, FREE_BYTES = 200, 1 << 30  # an archive may grow 200-fold, or to 1 GB
MAX_LINK = 1 << 12  # bytes of a link's text
GIVE = "give a folder of images, a .zip, .tar, .tar.gz, .tar.xz or .tar.bz2"


class Entry(NamedTuple):
    """One archive entry. target: of a link, relative to the archive's root; None if outside."""

    name: str
    kind: Literal["file", "folder", "link", "special"]
    size: int = 0
    opener: Callable[[], IO[bytes]] = io.BytesIO
    piece: Piece | None = None
    target: str | None = None


class ArchiveSource(Source):
    """Base class of archives; members come in the archive's order."""

    _names: Names | None = None

    def identity(self) -> dict[str, Any]:
        with self.reading():
            info = os.stat(self.path)
        kind = type(self).__name__.removesuffix("Source").lower()
        return {"kind": kind, "path": str(self.path), "bytes": info.st_size, "mtime_ns": info.st_mtime_ns}

    @abstractmethod
    def _listed(self) -> Iterator[Entry]:
        """Yield every entry in order."""

    def _limit(self) -> int:
        return max(FREE_BYTES, MAX_RATIO * os.stat(self.path).st_size)

    def _walk(self) -> Iterator[Member]:
        names = self._names = self._names or self._read_names()
        self._entries = 0
        self.folders |= {name for name in names.folders if not is_hidden(name)}
        for circle in names.link_loops:
            self._skip(LINK_LOOP, circle)
        for lost in names.broken_links:
            if not is_hidden(lost):
                yield self._broken_link(lost)
        later = dict(names.repeated)
        for entry in self._listed():
            name = clean(entry.name)
            if name is None:
                self._skip("unsafe name", entry.name)
            elif is_hidden(name):
                self._skip("hidden", name)
            elif entry.kind == "special":
                self._skip("special file", name)
            if name is None or entry.kind not in ("file", "link"):
                continue
            if (key := hash(name)) in later:
                later[key] -= 1
                if later[key]:
                    self._skip("older file of the same name", name)
                    continue
            for visible in names.visible_names(name) if entry.kind == "file" else ():
                self._count()
                if not is_hidden(visible):
                    yield Member(visible, entry.size, self, entry.opener, entry.piece)

    def _read_names(self) -> Names:
        names = Names()
        for entry in self._listed():
            self._count()
            if name := clean(entry.name):
                if entry.kind == "folder":
                    names.folder(name)
                elif entry.kind != "special":
                    names.file(name, entry.target, entry.kind == "link")
        if len(names.links) > MAX_ZIP or not names.close(MAX_ZIP):
            raise self._too_many(MAX_ZIP)
        return names


class ZipSource(ArchiveSource):
    """A zip archive, in the order of its directory."""

    _archive: zipfile.ZipFile | None = None

    def _listed(self) -> Iterator[Entry]:
        limit, total = self._limit(), 0
        if self._archive is None:
            self._archive = _open_zip(self.path)
            if len(self._archive.filelist) > MAX_ZIP:
                raise self._too_many(MAX_ZIP)
        for info in self._archive.filelist:
            name, kind = _zip_name(info), stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir():
                yield Entry(name, "folder")
            elif kind == stat.S_IFLNK:
                link = b"/" if info.flag_bits & ENCRYPTED else self._archive.open(info).read(MAX_LINK)
                yield Entry(name, "link", target=target_of(clean(name) or "", os.fsdecode(link)))
            elif kind not in (0, stat.S_IFREG):
                yield Entry(name, "special")
            else:
                total += info.file_size
                if total > limit:
                    raise zipfile.BadZipFile(f"expands beyond {limit} bytes")
                yield Entry(name, "file", info.file_size, partial(_open_zipped, self._archive, info))


class TarSource(ArchiveSource):
    """A tar archive read sequentially: plain, compressed, or a plain one embedded in another file.

    Entries of a small tar (up to ``KEPT_BYTES``), including the content if compressed, are cached in memory
    for later passes.
    """

    independent_files = False
    _kept: list[Entry] | None = None

    def __init__(self, path: Path, part: Piece | None = None) -> None:
        super().__init__(path)
        self._part = (part.start, part.size) if part else None

    def _listed(self) -> Iterator[Entry]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Entry] = []
        left = KEPT_BYTES
        for entry in self._read():
            left -= KEPT_ENTRY + (0 if entry.piece else entry.size)
            if left < 0:
                kept.clear()
            else:
                if entry.kind == "file" and entry.piece is None:
                    with entry.opener() as file:
                        entry = entry._replace(opener=partial(io.BytesIO, file.read()))
                kept.append(entry)
            yield entry
        if left >= 0:
            self._kept = kept

    def _read(self) -> Iterator[Entry]:
        with open_file(self.path) as file:
            plain = self._part is not None or is_tar_header(file.read(512))
        start = self._part[0] if self._part else 0
        with open_tar(self.path, self._limit(), self._part) as archive:
            for info in headers(archive):
                name = info.name
                if info.isdir():
                    yield Entry(name, "folder")
                elif info.issym():
                    yield Entry(name, "link", target=target_of(clean(name) or "", info.linkname))
                elif info.islnk():
                    yield Entry(name, "link", target=clean(info.linkname))
                elif not info.isreg():
                    yield Entry(name, "special")
                elif plain and not info.issparse():
                    piece = Piece(self.path, start + info.offset_data, info.size)
                    yield Entry(name, "file", info.size, partial(_part, piece), piece)
                else:
                    yield Entry(name, "file", info.size, partial(_open_tarred, archive, info))


class ShardSource(Source):
    """A folder of tars, such as WebDataset shards; names of files are prefixed with their tar's name."""

    def __init__(self, folder: FolderSource) -> None:
        super().__init__(folder.path)
        self._folder = folder

    def identity(self) -> dict[str, Any]:
        return self._folder.identity()

    def _walk(self) -> Iterator[Member]:
        for tar in self._folder.tars:
            part = TarSource(self.path / tar)
            for member in part.members():
                yield replace(member, name=f"{tar}/{member.name}")
            self.ignored += part.ignored
            self.ignored_examples = {
                reason: f"{tar}/{name}" for reason, name in part.ignored_examples.items()
            } | self.ignored_examples
            self.folders |= {f"{tar}/{name}" for name in part.folders}


def open_source(path: str | Path, where: str = "dataset.path") -> Source:
    """Open the folder, zip or tar at ``path``. Raises DataError, naming the key ``where``, otherwise."""
    path = Path(os.path.abspath(expanded(path)))
    name, packed = printable_name(path), ""
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
        raise DataError(where, f"{name}: {error_text(error)}", "check the path and its permissions") from None
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return ZipSource(path)
    if head.startswith((b"\x1f\x8b", b"\xfd7zXZ\0", b"BZh")):
        try:
            with decompressed(path) as raw:
                head, packed = raw.read(512), ", compressed"
        except (*DAMAGE, OSError):
            return TarSource(path)  # to say that it is damaged
    if is_tar_header(head):
        return TarSource(path)
    raise DataError(where, f"{name} is not a folder, zip or tar (it is {kind_of(head)}{packed})", GIVE)


def _part(piece: Piece) -> IO[bytes]:
    return cast(IO[bytes], Part(*piece))


def _open_tarred(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(info)
    assert file is not None, "a regular file has content"
    return file


class _BoundedFile(io.BufferedReader):
    """Refuses to read a zip's directory that would not fit into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return super().read(size)

    def __del__(self) -> None:  # a ``ZipFile`` does not close a file that it was given
        self.close()


def _open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip. Raises zipfile.BadZipFile, also for an undecodable name."""
    try:
        return zipfile.ZipFile(_BoundedFile(io.FileIO(path, opener=open_regular)))
    except UnicodeDecodeError as error:
        name = printable_name(error.object.decode("utf-8", "replace"))
        raise zipfile.BadZipFile(f"an entry name is marked as UTF-8 but is not: {name}") from None


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Name of an entry. macOS and some tools write UTF-8 without setting its flag."""
    try:
        return info.filename if info.flag_bits & MARKED_UTF8 else info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _open_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """Open an entry's content. Raises BadImageError if it is encrypted."""
    if info.flag_bits & ENCRYPTED:
        raise BadImageError("encrypted")
    return archive.open(info)
