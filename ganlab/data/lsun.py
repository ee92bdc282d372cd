"""LSUN: ten scene and twenty object categories, from the original LMDB databases or from folders of images.

Yu et al. 2015, arXiv:1506.03365. A database holds the encoded images (WebP, shorter side 256) by key; they
are read once, from front to back, and training needs no LMDB. Bedrooms are 3,033,042 images.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from ganlab.data.formats.images import BadImageError, Resample, Rule, is_image_name
from ganlab.data.formats.lmdb_reader import count_entries, data_file, read_entries
from ganlab.data.formats.source import FolderSource, path_exists
from ganlab.data.packing.check import Originals
from ganlab.data.packing.decoding import Encoded, Piece
from ganlab.data.packing.download import by_hand_place
from ganlab.data.packing.stream import MAX_BAD, EncodedDataset, MaxBad, OnBad
from ganlab.data.packing.writer import Recipe
from ganlab.errors import DataError, printable_name
from ganlab.schema import Range, checked
from ganlab.system.paths import expanded

URL = "http://dl.yf.io/lsun/scenes/{category}_{split}_lmdb.zip"  # the authors' server


class Lsun(EncodedDataset):
    """LSUN from ``path``: a folder that holds ``bedroom_train_lmdb/`` and the like, or one such database.

    path: None looks in ``<cache>/downloads/lsun``. category: ``bedroom``, any other, or several joined by
    "+", which become the classes. split: ``train`` or ``val``; object databases have no split in their name.
    Folders of images are taken too: ``bedroom_train/``, ``train/bedroom/`` or ``bedroom/``. resolution,
    resample: the largest centred square is resampled. limit: the first so many images of each category, in
    the order of keys; None takes all. on_bad: ``skip`` counts broken images and leaves them out, up to the
    share ``max_bad`` of all (ten are always let pass).
    """

    name = "lsun"

    @checked
    def __init__(
        self,
        path: str | None = None,
        category: str = "bedroom",
        split: Literal["train", "val"] = "train",
        resolution: Annotated[int, Range(ge=4, le=1024)] = 64,
        resample: Resample = "bilinear",
        limit: Annotated[int, Range(ge=1)] | None = None,
        on_bad: OnBad = "skip",
        max_bad: MaxBad = MAX_BAD,
    ) -> None:
        self.categories = category.split("+")
        if not all(self.categories) or len(set(self.categories)) < len(self.categories):
            raise ValueError(f"category: {category!r} is not a name, or several different ones joined by '+'")
        self.path, self.split, self.resolution, self.limit = path, split, resolution, limit
        self.on_bad, self.max_bad = on_bad, max_bad
        self.rule = Rule(resolution, 3, "crop", resample)

    def splits(self) -> tuple[str, ...]:
        return ("train", "val")

    def _images(self, split: str, sources: list[_Source], after: list[Any] | None) -> Originals:
        counts = [min(n, self.limit or n) for n in (source.count() for source in sources)]
        several = len(sources) > 1
        root = sources[0].path.parent if several else sources[0].path
        files = self._files(sources, counts, after or [0, 0, None])
        return Originals(root, files, sum(counts), self.rule, self.categories if several else [])

    def _files(self, sources: list[_Source], counts: list[int], after: list[Any]) -> Iterator[Encoded]:
        """Category by category. ``after``: which one, how many of it are done, and the last of them."""
        for number, (source, count) in enumerate(zip(sources, counts, strict=True)):
            if number < after[0]:
                continue
            done, last = (after[1], after[2]) if number == after[0] else (0, None)
            label, taken = (number if len(sources) > 1 else -1), done
            for name, data in itertools.islice(source.images(done, last), count - done):
                taken += 1
                yield Encoded(f"{source.path}/{name}", label, data, [number, taken, name])
            if taken < count:
                what = f"ends after {taken:,} of {count:,} images"
                raise DataError(source.path, what, "download it again")

    def _find(self, split: str) -> list[_Source]:
        root = by_hand_place(self.name) if self.path is None else expanded(self.path).absolute()
        if self.path is not None and not root.exists():
            raise DataError("dataset.path", f"{printable_name(root)} does not exist", "check the path")
        if data_file(root).is_file():
            if len(self.categories) > 1:
                what = f"{printable_name(root)} is one database, for {len(self.categories)} categories"
                raise DataError("dataset.path", what, "give the folder that holds them all")
            return [_Database(_matching(root, self.categories[0], split))]
        return [_source(root, category, split) for category in self.categories]

    def _recipe(self, split: str, sources: list[_Source]) -> Recipe:
        rule = self.rule
        transform = {
            "resolution": rule.resolution, "fit": rule.fit, "resample": rule.resample,
            "max_pixels": rule.max_pixels, "limit": self.limit, "on_bad": self.on_bad,
        }  # fmt: skip
        identities = dict(zip(self.categories, (source.identity() for source in sources), strict=True))
        shape = (3, self.resolution, self.resolution)
        name = f"{self.name}-{'+'.join(self.categories)}"
        return Recipe(name, split, shape, {"kind": "lsun", "categories": identities}, transform)


class _Database:
    """An LMDB database of one category."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def identity(self) -> dict[str, Any]:
        info = os.stat(data_file(self.path))
        return {"kind": "lmdb", "path": str(self.path), "entries": self.count(), "bytes": info.st_size,
                "mtime_ns": info.st_mtime_ns}  # fmt: skip

    def count(self) -> int:
        return count_entries(self.path)

    def images(self, done: int, last: str | None) -> Iterator[tuple[str, bytes | Piece | BadImageError]]:
        """(name, content) in order, but for the first ``done``, of which ``last`` is the last one's name."""
        for key, value in read_entries(self.path, None if last is None else last.encode("latin1")):
            yield key.decode("latin1"), value  # the keys are hashes in ASCII; any bytes come back whole


class _Folder(FolderSource):
    """A folder of images of one category."""

    def count(self) -> int:
        return sum(is_image_name(member.name) for member in self.members())

    def images(self, done: int, last: str | None) -> Iterator[tuple[str, bytes | Piece | BadImageError]]:
        images = (m for m in self.members() if is_image_name(m.name))
        for member in itertools.islice(images, done, None):
            yield member.name, member.content()


_Source = _Database | _Folder


def _matching(path: Path, category: str, split: str) -> Path:
    """``path``. Raises DataError if the database's name says that it is another one."""
    folder = path if path.is_dir() else path.parent
    if named := re.fullmatch(r"(.+)_(train|val)_lmdb", folder.name):
        for key, wanted, its in (("category", category, named[1]), ("split", split, named[2])):
            if its != wanted:
                what = f"{wanted!r}, but {printable_name(path)} is {its!r}"
                raise DataError(f"dataset.{key}", what, f"set dataset.{key}={its}, or another path")
    return path


def _source(root: Path, category: str, split: str) -> _Source:
    """The database or folder of a category. Raises DataError: what was looked for, where it is to be had."""
    names = (f"{category}_{split}_lmdb", f"{category}_lmdb", category)
    for name in names:
        if path_exists(root / name) and path_exists(root / name / "data.mdb"):
            return _Database(root / name)
        if name.endswith("_lmdb") and (root / name).is_dir():
            raise DataError(root / name, "contains no data.mdb", "unpack the whole archive")
    for name in (f"{category}_{split}", f"{split}/{category}", category):
        if path_exists(root / name) and (root / name).is_dir():
            return _Folder(root / name)
    packed = f"{category}_{split}_lmdb.zip"
    if (root / packed).is_file():
        raise DataError(root / packed, "is not unpacked", f"unzip it in {printable_name(root)}")
    what = f"no {category} {split} in {printable_name(root)}"
    url = URL.format(category=category, split=split)
    raise DataError("dataset.path", what, f"get {url} and unzip it there, or set dataset.path")
