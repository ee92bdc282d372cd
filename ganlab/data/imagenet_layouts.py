"""The layouts that ImageNet lies about in, all read in one order: class by class, by file name.

The same images in the same order make the same pack, whichever layout they come from: class folders, the tar
of tars of the training set, and the flat validation set (a folder or its tar) with its labels from the
development kit or from Kaggle's table.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ganlab.data.decoding import Piece
from ganlab.data.imagenet_labels import DEVKIT, KAGGLE, WNID, Beside, read_beside
from ganlab.data.images import is_image_name, shown
from ganlab.data.tar import index
from ganlab.errors import DataError

INSIDE = ("", "ILSVRC/Data/CLS-LOC/", "Data/CLS-LOC/", "CLS-LOC/")  # where Kaggle's archive has the splits
FIX = "fetch it again, or give the class folders"
Listing = list[tuple[str, Piece]]


class Layout(ABC):
    """Images by class. ``path`` is the folder or archive; classes are WordNet ids such as n01440764."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """What tells this set from another or a changed one, without a look at every file."""

    @abstractmethod
    def classes(self) -> list[str]:
        """Sorted. Raises DataError if there is none."""

    @abstractmethod
    def images(self, wnid: str) -> Listing:
        """(file name, where it lies) of one class, sorted by name. Raises DataError on damage."""

    def count(self, classes: list[str]) -> int:
        """How many images there are in all; of the tar of tars an estimate."""
        return sum(len(self.images(wnid)) for wnid in classes)


class ClassFolders(Layout):
    """``path/n01440764/*.JPEG``. Folders and files may be links, as on shared disks."""

    def identity(self) -> dict[str, object]:
        digest = hashlib.sha256()
        for wnid in (names := self.classes()):
            # a file that comes, goes or is renamed moves its folder's time: 1,000 looks, not 1.28 million
            digest.update(f"{wnid}\0{os.stat(self._folder(wnid)).st_mtime_ns}\n".encode())
        return {"kind": "class folders", "path": str(self.path), "folders": len(names),
                "listing_sha256": digest.hexdigest()}  # fmt: skip

    def classes(self) -> list[str]:
        with reading(self.path), os.scandir(self.path) as entries:
            found = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        wnids = [name for name in found if WNID.fullmatch(name)]
        if not wnids or len(wnids) < len(found):
            others = [name for name in found if name not in set(wnids)]
            seen = shown(", ".join(others[:5])) or "no folder"
            what = f"class folders are named like n01440764, but there is {seen}"
            raise DataError(shown(str(self.path)), what, "mend it, or use dataset=folder for other names")
        return wnids

    def images(self, wnid: str) -> Listing:
        folder = self._folder(wnid)
        with reading(folder):
            return _listed(folder)

    def _folder(self, wnid: str) -> Path:
        inside = self.path / wnid / "images"  # Tiny ImageNet has one more folder
        return inside if inside.is_dir() else self.path / wnid


class TarOfTars(Layout):
    """``ILSVRC2012_img_train.tar``: one tar per class, ``n01440764.tar``, read where they lie."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._classes: dict[str, tuple[int, int]] = {}

    def identity(self) -> dict[str, object]:
        return _file_identity("tar of tars", self.path)

    def classes(self) -> list[str]:
        if not self._classes:
            with reading(self.path):
                for name, start, size in index(self.path):
                    if WNID.fullmatch(stem := Path(name).stem) and name.endswith(".tar"):
                        self._classes[stem] = (start, size)
        if not self._classes:
            raise DataError(shown(str(self.path)), "holds no class tar such as n01440764.tar", FIX)
        return sorted(self._classes)

    def images(self, wnid: str) -> Listing:
        self.classes()
        with reading(self.path):
            return _tarred(self.path, *self._classes[wnid])

    def count(self, classes: list[str]) -> int:
        """From the size of the archive: its headers lie between the images, 138 GB apart."""
        first = classes[0]
        each = self._classes[first][1] / max(1, len(self.images(first)))
        return round(sum(self._classes[wnid][1] for wnid in classes) / max(each, 1))


class FlatVal(Layout):
    """Validation images side by side in a folder or the official tar. labels: file name -> class."""

    def __init__(self, path: Path, labels: dict[str, str]) -> None:
        super().__init__(path)
        self.labels = labels
        self._images: dict[str, Listing] = {}

    def identity(self) -> dict[str, object]:
        text = "".join(f"{name} {wnid}\n" for name, wnid in sorted(self.labels.items()))
        found = _file_identity("flat validation set", self.path)
        return {**found, "labels_sha256": hashlib.sha256(text.encode()).hexdigest()}

    def classes(self) -> list[str]:
        return sorted(set(self.labels.values()))

    def images(self, wnid: str) -> Listing:
        if not self._images:
            by_class: dict[str, Listing] = defaultdict(list)
            with reading(self.path):
                for name, piece in self._listing():
                    if (its := self.labels.get(name)) is None:
                        what = f"{shown(name)} has no label"
                        raise DataError(shown(str(self.path)), what, "check the file of labels")
                    by_class[its].append((name, piece))
            self._images = by_class
        return self._images.get(wnid, [])

    def _listing(self) -> Listing:
        if self.path.is_file():
            return _tarred(self.path)
        return _listed(self.path)


def find(root: Path, split: str) -> tuple[Layout, dict[str, str]]:
    """The layout of ``split`` at ``root``, and the names of classes as far as a file there tells them.

    root: a folder that holds the split, one of the two official tars, or the class folders themselves.
    Raises DataError, saying what was looked for.
    """
    official = f"ILSVRC2012_img_{split}.tar"
    if root.is_file():
        if root.name != official:
            what = f"{shown(str(root))} is not {official}"
            raise DataError("dataset.path", what, "give the folder that holds it, or the class folders")
        return _tar_layout(root, split)
    if not root.is_dir():
        raise DataError("dataset.path", f"{shown(str(root))} does not exist", "check the path")
    for inside in INSIDE:
        if (there := root / inside / split).is_dir():
            beside = read_beside((root, there, there.parent), split == "val")
            with reading(there), os.scandir(there) as entries:
                flat = any(_wanted(entry.name) for entry in entries)
            if flat and split == "val":
                return FlatVal(there, _needed(there, beside)), beside.names
            return ClassFolders(there), beside.names
    if (root / official).is_file():
        return _tar_layout(root / official, split)
    with reading(root), os.scandir(root) as entries:
        if any(WNID.fullmatch(entry.name) for entry in entries):
            return ClassFolders(root), read_beside((root, root.parent), False).names
    looked = ", ".join([*(f"{inside}{split}/" for inside in INSIDE[:2]), official, "n01440764/"])
    what = f"{shown(str(root))} holds no {split} split of ImageNet"
    raise DataError("dataset.path", what, f"looked for {looked}; for other layouts use dataset=folder")


def _tar_layout(tar: Path, split: str) -> tuple[Layout, dict[str, str]]:
    beside = read_beside((tar.parent,), split == "val")
    if split == "train":
        return TarOfTars(tar), beside.names
    return FlatVal(tar, _needed(tar, beside)), beside.names


def _needed(path: Path, beside: Beside) -> dict[str, str]:
    if not beside.val:
        fix = f"put Kaggle's {KAGGLE} or {DEVKIT} (folder or .tar.gz) beside it"
        raise DataError(shown(str(path)), "the labels of the validation images are missing", fix)
    return beside.val


def _tarred(path: Path, start: int = 0, size: int | None = None) -> Listing:
    found = ((name.rpartition("/")[2], at, length) for name, at, length in index(path, start, size))
    return sorted((name, Piece(path, at, length)) for name, at, length in found if _wanted(name))


def _listed(folder: Path) -> Listing:
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if _wanted(e.name) and e.is_file())
    return [(name, Piece(folder / name)) for name in names]


def _wanted(name: str) -> bool:
    """An image's name, not that of a hidden file such as macOS leaves beside each."""
    return is_image_name(name) and not name.startswith(".")


def _file_identity(kind: str, path: Path) -> dict[str, object]:
    with reading(path):
        info = os.stat(path)
    return {"kind": kind, "path": str(path), "bytes": info.st_size, "mtime_ns": info.st_mtime_ns}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what reading a folder or tar raises into one DataError."""
    try:
        yield
    except tarfile.TarError as error:
        fix = "fetch it again, or unpack it by hand"
        raise DataError(shown(str(path)), f"damaged archive ({error})", fix) from None
    except OSError as error:
        where = shown(str(error.filename or path))
        raise DataError(where, error.strerror or "unreadable", "check the path and its permissions") from None
