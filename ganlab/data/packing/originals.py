"""Datasets in their authors' original format: a known archive, or the folder unpacked from it.

``find`` locates one; ``Original.files`` yields named files from it, in the archive's order. Subclasses of
``OriginalDataset`` define which files belong to a split and how to read them.
"""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ganlab.data.fingerprint import Pixels
from ganlab.data.formats.archive import open_source
from ganlab.data.formats.files import open_file, progress
from ganlab.data.formats.images import BadImageError, Resample, resize_block
from ganlab.data.formats.source import FolderSource, Member, Source, path_exists
from ganlab.data.packing.check import PublishedFiles
from ganlab.data.packing.download import Remote, fetch, remotes
from ganlab.data.packing.pack import PackedDataset
from ganlab.data.packing.worker import num_cores
from ganlab.data.packing.writer import Recipe, Writer
from ganlab.errors import DataError, printable_name
from ganlab.system.paths import expanded

WRAPPERS = 3  # wrapper folders to search through, each the only folder in its parent


class Original:
    """An archive or unpacked folder ``source``, and the names of the dataset's files in it."""

    def __init__(self, source: Source, names: Collection[str]) -> None:
        self.source, self.names = source, names

    def identity(self) -> dict[str, Any]:
        """Like ``Source.identity``; for a folder, of the dataset's files only."""
        if not isinstance(self.source, FolderSource):
            return self.source.identity()
        stats = {m.name: os.stat(self.source.path / m.name) for _, m in self.files()}
        sizes = {name: [info.st_size, info.st_mtime_ns] for name, info in stats.items()}
        return {"kind": "folder", "path": str(self.source.path), "files": sizes}

    def files(self, names: Collection[str] | None = None) -> Iterator[tuple[str, Member]]:
        """Yield (base name, file) for every existing file in ``names``."""
        names = self.names if names is None else names
        if isinstance(self.source, FolderSource):
            for name in sorted(names):
                if place := _place(self.source.path, name):
                    path = self.source.path / place
                    yield name, Member(place, path.stat().st_size, self.source, partial(open_file, path))
            return
        for member in self.source.members():
            if (name := member.name.rpartition("/")[2]) in names:
                yield name, member

    def missing(self, names: Collection[str]) -> DataError:
        """The error for files that the source lacks."""
        what = f"contains no {', '.join(sorted(names))}"
        return DataError(self.source.path, what, "give the original archive, or the folder from it")

    def read(self, member: Member, limit: int) -> bytes:
        """Read the whole file. Raises DataError if it is damaged, unreadable or larger than ``limit``."""
        try:
            return member.read(limit)
        except BadImageError as error:
            raise self.file_error(member.name, str(error)) from None

    def check(self, name: str, data: bytes | Any, expected: str | None) -> None:
        """Raise DataError unless a file's bytes, or their running hash, have the known checksum, if any."""
        if expected is None:
            return
        if isinstance(data, bytes):
            data = hashlib.new("sha256" if len(expected) == 64 else "md5", data, usedforsecurity=False)
        if (actual := data.hexdigest()) != expected:
            fix = "download it again, or set dataset.verify=false for your own data in this format"
            raise self.file_error(name, f"checksum {actual}, expected {expected}", fix)

    def file_error(self, name: str, what: str, fix: str = "download it again") -> DataError:
        """Create a DataError about one file of the dataset."""
        return DataError(self.source.path / name, what, fix)


class OriginalDataset(PackedDataset):
    """Base class of datasets read from their authors' archives.

    Class attributes: ``file_names``, names of all files; ``folder_names``, names of the folders that
    unpacking gives; ``sums``, known md5 or sha256 of some files; ``side``, the images' own size in pixels;
    ``padded``, a size that a border gives, not resampling.
    """

    channels = 3
    file_names: Collection[str]
    folder_names: Collection[str]
    sums: Mapping[str, str]
    side: int
    padded = 0

    def __init__(
        self, path: str | None, split: str, resolution: int, resample: Resample, verify: bool
    ) -> None:
        self.path, self.split, self.resolution = path, split, resolution
        self.resample: Resample = resample
        self.verify = verify

    @abstractmethod
    def fill(self, writer: Writer, split: str, original: Original) -> None:
        """Read the files of ``split`` from ``original`` and ``add`` their images."""

    def _pack(self, writer: Writer, split: str, source: Original | None) -> None:
        if source is None:
            for remote in self._remotes(split):
                fetch(remote)
            source = self._find(split)
        assert source is not None, "it was just fetched"
        writer.source["read_from"] = str(source.source.path)
        self.fill(writer, split, source)

    def originals(self, split: str) -> PublishedFiles:
        original = self._find(split)
        if original is None:
            fix = f"'ganlab data prepare {self.name}' downloads it, or set dataset.path"
            raise DataError("dataset.path", "is not set, and nothing has been downloaded", fix)
        return PublishedFiles(original.source.path, original.files(), self.sums if self.verify else {})

    def add(self, writer: Writer, blocks: Iterable[Pixels], count: int, title: str) -> None:
        """Resize ``count`` images, in uint8 blocks (n, 3, side, side), and write them."""
        writer.expect(count)
        if self.side < self.resolution != self.padded:
            writer.count("enlarged", count)
        cores = num_cores()
        with (
            progress(f"packing {self.name} {title}", count) as advance,
            ThreadPoolExecutor(cores) as threads,  # Pillow resamples outside the interpreter lock
        ):
            for block in blocks:
                parts = np.array_split(block, cores) if self.resolution != self.side else [block]
                for sized in threads.map(self.sized, parts):
                    writer.add(sized)
                advance(len(block))

    def sized(self, images: Pixels) -> Pixels:
        """uint8 (n, C, side, side) at the resolution."""
        return resize_block(images, self.resolution, self.resample)

    def _find(self, split: str) -> Original | None:
        """Locate the files of ``split``, or return None. By default one archive has every split."""
        return find(self.name, self.path, self.file_names, self.folder_names)

    def _remotes(self, split: str) -> Iterable[Remote]:
        """What to download for ``split``. By default one archive, with every split."""
        return remotes(self.name)[:1]

    def _recipe(self, split: str, source: Original | None) -> Recipe:
        if source is None or (self.path is None and self.verify):  # of any archive format and path
            identity = {"kind": "original", "sha256": [remote.sha256 for remote in remotes(self.name)]}
        else:
            identity = source.identity()
        transform: dict[str, Any] = {"resolution": self.resolution, "verify": self.verify}
        if self.resolution != self.side:
            transform["resample"] = self.resample
        return Recipe(
            self.name, split, (self.channels, self.resolution, self.resolution), identity, transform
        )


class SeparateFiles(OriginalDataset):
    """Base class of datasets that are downloaded file by file, those that a split needs (``_remotes``)."""

    @abstractmethod
    def _remotes(self, split: str) -> list[Remote]:
        """What to download for ``split``."""

    def _find(self, split: str) -> Original | None:
        """Where the files of ``split`` are; None if they are not all there and are to be downloaded."""
        if self.path is not None:
            return super()._find(split)
        parts = self._remotes(split)
        if not all(p.path.is_file() and p.path.stat().st_size == p.size for p in parts):
            return None
        return find(self.name, str(parts[0].path.parent), self.file_names, self.folder_names)


def find(dataset: str, path: str | None, names: Collection[str], folders: Collection[str]) -> Original | None:
    """Locate ``dataset`` at ``path``: its archive, its unpacked folder, or a folder containing either.

    ``folders``: names of the unpacked folder. Returns None if ``path`` is None and the cache has no copy.
    Raises DataError, listing the names searched for, if ``path`` does not contain the dataset.
    """
    archives = remotes(dataset)
    if path is None:
        here = [remote for remote in archives if _is_complete(remote)]
        return Original(open_source(here[0].path), names) if here else None
    if os.path.isfile(place := expanded(path).absolute()) and place.name in names:
        what = f"{printable_name(place)} is one of the files of {dataset}"
        fix = f"give the folder that holds them: {printable_name(place.parent)}"
        raise DataError("dataset.path", what, fix)
    source = open_source(path)
    if not isinstance(source, FolderSource):
        return Original(source, names)
    place = source.path
    for _ in range(WRAPPERS):
        for folder in (place, *(place / name for name in folders)):
            if any(_place(folder, name) for name in names):
                return Original(open_source(folder), names)
        for remote in archives:
            if path_exists(place / remote.file):
                return Original(open_source(place / remote.file), names)
        if len(inside := FolderSource(place).top()[1]) != 1:
            break
        place = place / inside[0]
    file_names = ", ".join([*(remote.file for remote in archives), *folders])
    what = f"{printable_name(source.path)} contains no {dataset}"
    raise DataError("dataset.path", what, f"looked for {file_names}")


def _place(folder: Path, name: str) -> str | None:
    """Relative path of a file in ``folder``; Kaggle unpacks some files into folders of the same name."""
    for place in (name, f"{name}/{name}"):
        if path_exists(folder / place) and os.path.isfile(folder / place):
            return place
    return None


def _is_complete(remote: Remote) -> bool:
    return os.path.isfile(remote.path) and remote.path.stat().st_size == remote.size
