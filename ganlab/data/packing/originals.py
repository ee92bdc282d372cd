"""Datasets as their authors ship them: a known archive, or the folder that comes out of it.

``find`` looks for one; ``Original.files`` reads named files out of it, in the archive's own order. A dataset
that comes this way is an ``OriginalDataset``: it says which files hold a split and how they are read.
"""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from ganlab.data.base import Dataset, SampleSet
from ganlab.data.fingerprint import Pixels
from ganlab.data.formats.archive import open_source
from ganlab.data.formats.files import open_file, progress
from ganlab.data.formats.images import BadImageError, Resample, printable_name
from ganlab.data.formats.source import FolderSource, Member, Source, path_exists
from ganlab.data.packing.check import PublishedFiles
from ganlab.data.packing.download import Remote, fetch, remotes
from ganlab.data.packing.pack import pack
from ganlab.data.packing.resizing import resize_all
from ganlab.data.packing.writer import Recipe, Writer
from ganlab.errors import DataError
from ganlab.system.paths import expanded

WRAPPERS = 3  # folders that may lie around a set, each alone in the one above


class Original:
    """An archive or unpacked folder at ``source``, of which the files in ``names`` matter."""

    def __init__(self, source: Source, names: Collection[str]) -> None:
        self.source, self.names = source, names

    def identity(self) -> dict[str, Any]:
        """As ``Source.identity``; of a folder only the files that matter count."""
        if not isinstance(self.source, FolderSource):
            return self.source.identity()
        stats = {m.name: os.stat(self.source.path / m.name) for _, m in self.files()}
        sizes = {name: [info.st_size, info.st_mtime_ns] for name, info in stats.items()}
        return {"kind": "folder", "path": str(self.source.path), "files": sizes}

    def files(self, names: Collection[str] | None = None) -> Iterator[tuple[str, Member]]:
        """(base name, file) of every file that is wanted and there."""
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

    def read(self, member: Member, limit: int) -> bytes:
        """The whole file. Raises DataError if it is damaged, unreadable or longer than ``limit`` bytes."""
        try:
            return member.read(limit)
        except BadImageError as error:
            raise self.file_error(member.name, str(error)) from None

    def check(self, name: str, found: str, sums: Mapping[str, str]) -> None:
        """Raise DataError unless the hex sum ``found`` is the known one of the file ``name``."""
        if (expected := sums.get(name)) is not None and found != expected:
            raise self.file_error(
                name,
                f"checksum {found}, expected {expected}",
                "download it again, or set dataset.verify=false for your own data in this format",
            )

    def file_error(self, name: str, what: str, fix: str = "download it again") -> DataError:
        """A DataError about one file inside."""
        return DataError(printable_name(f"{self.source.path}/{name}"), what, fix)


class OriginalDataset(Dataset):
    """Base of the datasets that come in an archive of their authors.

    Class attributes: ``wanted``, every file that may matter; ``unpacked``, names of the folders that
    unpacking gives; ``sums``, known md5 or sha256 of some files; ``side``, the images' own size in pixels.
    """

    channels = 3
    wanted: Collection[str]
    unpacked: Collection[str]
    sums: Mapping[str, str]
    side: int

    def __init__(
        self, path: str | None, split: str, resolution: int, resample: Resample, verify: bool
    ) -> None:
        self.path, self.split, self.resolution = path, split, resolution
        self.resample: Resample = resample
        self.verify = verify

    @abstractmethod
    def fill(self, writer: Writer, split: str, found: Original) -> None:
        """Read the files of ``split`` out of ``found`` and ``add`` their images."""

    def recipe(self, split: str) -> Recipe:
        return self._recipe(split, self._find(split))

    def load(self, *, split: str | None = None) -> SampleSet:
        split = self.resolve_split(split)
        found = self._find(split)

        def fill(writer: Writer) -> None:
            source = found or self._fetched(split)
            writer.source["read_from"] = str(source.source.path)
            self.fill(writer, split, source)

        return pack(self._recipe(split, found), fill)

    def originals(self, split: str) -> PublishedFiles:
        found = self._find(split)
        if found is None:
            fix = f"'ganlab data prepare {self.name}' downloads it, or set dataset.path"
            raise DataError("dataset.path", "is not set, and nothing has been downloaded", fix)
        return PublishedFiles(found.source.path, found.files(), self.sums if self.verify else {})

    def add(self, writer: Writer, blocks: Iterable[Pixels], count: int, title: str) -> None:
        """Bring ``count`` images, uint8 blocks (n, 3, side, side), to the resolution and write them."""
        writer.expect(count)
        if self.resolution > self.side:
            writer.count("enlarged", count)
        sized = resize_all(blocks, count, self.resolution, self.resample)
        with progress(f"packing {self.name} {title}", count) as advance, closing(sized):
            for block in sized:
                writer.add(block)
                advance(len(block))

    def _find(self, split: str) -> Original | None:
        """Where ``split`` can be read from, or None. One archive has every split, if a class says no else."""
        return find(self.name, self.path, self.wanted, self.unpacked)

    def _fetched(self, split: str) -> Original:
        fetch(remotes(self.name)[0])
        found = self._find(split)
        assert found is not None, "it was just fetched"
        return found

    def _recipe(self, split: str, found: Original | None) -> Recipe:
        known = self.path is None and self.verify
        source = official(self.name) if known or found is None else found.identity()
        transform: dict[str, Any] = {"resolution": self.resolution, "verify": self.verify}
        if self.resolution != self.side:
            transform["resample"] = self.resample
        return Recipe(self.name, split, (self.channels, self.resolution, self.resolution), source, transform)


def find(dataset: str, path: str | None, names: Collection[str], folders: Collection[str]) -> Original | None:
    """The original of ``dataset`` at ``path``: its archive, its unpacked folder, or a folder that has either.

    ``folders`` are the names that unpacking gives. None if ``path`` is None and nothing is in the cache.
    Raises DataError, saying what was looked for, if there is none at ``path``.
    """
    archives = remotes(dataset)
    if path is None:
        here = [remote for remote in archives if _is_complete(remote)]
        return Original(open_source(here[0].path), names) if here else None
    if os.path.isfile(place := expanded(path).absolute()) and place.name in names:
        what = f"{printable_name(str(place))} is one of the files of {dataset}"
        raise DataError(
            "dataset.path", what, f"give the folder that holds them: {printable_name(str(place.parent))}"
        )
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
    wanted = ", ".join([*(remote.file for remote in archives), *folders])
    raise DataError(
        "dataset.path", f"{printable_name(str(source.path))} contains no {dataset}", f"looked for {wanted}"
    )


def _place(folder: Path, name: str) -> str | None:
    """Where a file lies in ``folder``: Kaggle unpacks some into folders of their own names."""
    for place in (name, f"{name}/{name}"):
        if path_exists(folder / place) and os.path.isfile(folder / place):
            return place
    return None


def official(dataset: str) -> dict[str, Any]:
    """Identity of the original, whichever archive it comes in and wherever that is: it gets verified."""
    return {"kind": "original", "sha256": [remote.sha256 for remote in remotes(dataset)]}


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _is_complete(remote: Remote) -> bool:
    return os.path.isfile(remote.path) and remote.path.stat().st_size == remote.size
