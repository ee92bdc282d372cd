"""The layouts that ImageNet lies about in, all read in one order: class by class, by file name.

The same images in the same order make the same pack, whichever layout they come from: class folders, the tar
of tars of the training set, and the flat validation set (a folder or its tar) with its labels from the
development kit or from Kaggle's table.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections import defaultdict
from functools import cached_property
from operator import itemgetter
from pathlib import Path

from ganlab.data.formats.archive import TarSource
from ganlab.data.formats.images import BadImageError, is_image_name
from ganlab.data.formats.source import FolderSource, Source, path_exists
from ganlab.data.imagenet_labels import DEVKIT, KAGGLE, WNID, Annotations, read_annotations
from ganlab.data.packing.decoding import Piece
from ganlab.errors import DataError, printable_name

INSIDE = ("", "ILSVRC/Data/CLS-LOC/", "Data/CLS-LOC/", "CLS-LOC/")  # where Kaggle's archive has the splits
FIX = "download it again, or give the class folders"
Listing = list[tuple[str, bytes | Piece | BadImageError]]


class Layout(ABC):
    """Images by class. ``path`` is the folder or archive; classes are WordNet ids such as n01440764."""

    kind: str

    def __init__(self, path: Path) -> None:
        self.path = path
        self._source: Source = TarSource(path) if path.is_file() else FolderSource(path)

    def identity(self) -> dict[str, object]:
        """What tells this set from another or a changed one, by names, sizes and times."""
        return {**self._source.identity(), "kind": self.kind}

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
    """``path/n01440764/*.JPEG``."""

    kind = "class folders"

    def classes(self) -> list[str]:
        folders = FolderSource(self.path).top()[1]
        others = [name for name in folders if not WNID.fullmatch(name)]
        if others or not folders:
            names = printable_name(", ".join(others[:5])) or "no folder"
            what = f"class folders are named like n01440764, but it contains {names}"
            raise DataError(self.path, what, "repair it, or use dataset=folder for other names")
        return folders

    def images(self, wnid: str) -> Listing:
        return _listed(FolderSource(self.path / wnid))  # Tiny ImageNet has one more folder in it


class TarOfTars(Layout):
    """``ILSVRC2012_img_train.tar``: one tar per class, ``n01440764.tar``, read where they lie."""

    kind = "tar of tars"

    @cached_property
    def _classes(self) -> dict[str, Piece]:
        classes = {}
        for member in self._source.members():
            stem, ending = os.path.splitext(member.name.rpartition("/")[2])
            if WNID.fullmatch(stem) and ending == ".tar" and member.piece:
                classes[stem] = member.piece
        if not classes:
            raise DataError(self.path, "contains no class tar such as n01440764.tar", FIX)
        return classes

    def classes(self) -> list[str]:
        return sorted(self._classes)

    def images(self, wnid: str) -> Listing:
        return _listed(TarSource(self.path, self._classes[wnid]))

    def count(self, classes: list[str]) -> int:
        """From the size of the archive: its headers lie between the images, 138 GB apart."""
        first = classes[0]
        each = self._classes[first].size / max(1, len(self.images(first)))
        return round(sum(self._classes[wnid].size for wnid in classes) / max(each, 1))


class FlatVal(Layout):
    """Validation images side by side in a folder or the official tar. labels: file name -> class."""

    kind = "flat validation set"

    def __init__(self, path: Path, annotations: Annotations) -> None:
        super().__init__(path)
        self.labels = annotations.val
        if not self.labels:
            fix = f"put Kaggle's {KAGGLE} or {DEVKIT} (folder or .tar.gz) beside it"
            raise DataError(path, "the labels of the validation images are missing", fix)

    def identity(self) -> dict[str, object]:
        text = "".join(f"{name} {wnid}\n" for name, wnid in sorted(self.labels.items()))
        return {**super().identity(), "labels_sha256": hashlib.sha256(text.encode()).hexdigest()}

    def classes(self) -> list[str]:
        return sorted(set(self.labels.values()))

    @cached_property
    def _images(self) -> dict[str, Listing]:
        images: dict[str, Listing] = defaultdict(list)
        for name, content in _listed(self._source):
            if (its := self.labels.get(name.rpartition("/")[2])) is None:
                what = f"{printable_name(name)} has no label"
                raise DataError(self.path, what, "check the file of labels")
            images[its].append((name, content))
        return images

    def images(self, wnid: str) -> Listing:
        return self._images.get(wnid, [])


def find(root: Path, split: str) -> tuple[Layout, dict[str, str]]:
    """The layout of ``split`` at ``root``, and the names of classes as far as a file there tells them.

    root: a folder that holds the split, one of the two official tars, or the class folders themselves.
    Raises DataError, saying what was looked for.
    """
    official = f"ILSVRC2012_img_{split}.tar"
    if root.is_file():
        if root.name != official:
            what = f"{printable_name(root)} is not {official}"
            raise DataError("dataset.path", what, "give the folder that holds it, or the class folders")
        return _tar_layout(root, split)
    if not root.is_dir():
        raise DataError("dataset.path", f"{printable_name(root)} does not exist", "check the path")
    for inside in INSIDE:
        if path_exists(folder := root / inside / split) and folder.is_dir():
            annotations = read_annotations((root, folder, folder.parent), split == "val")
            if split == "val" and any(is_image_name(name) for name in FolderSource(folder).top()[0]):
                return FlatVal(folder, annotations), annotations.names
            return ClassFolders(folder), annotations.names
    if path_exists(root / official):
        return _tar_layout(root / official, split)
    if any(WNID.fullmatch(name) for name in FolderSource(root).top()[1]):
        return ClassFolders(root), read_annotations((root, root.parent), False).names
    looked = ", ".join([*(f"{inside}{split}/" for inside in INSIDE[:2]), official, "n01440764/"])
    what = f"{printable_name(root)} contains no {split} split of ImageNet"
    raise DataError("dataset.path", what, f"looked for {looked}; for other layouts use dataset=folder")


def _tar_layout(tar: Path, split: str) -> tuple[Layout, dict[str, str]]:
    annotations = read_annotations((tar.parent,), split == "val")
    if split == "train":
        return TarOfTars(tar), annotations.names
    return FlatVal(tar, annotations), annotations.names


def _listed(source: Source) -> Listing:
    """(name, content) of every image, sorted."""
    images: Listing = []
    for member in source.members():
        if is_image_name(member.name):
            if member.piece is None and member.size:
                raise DataError(source.path, "is compressed", "unpack it by hand")
            images.append((member.name, member.content()))
    return sorted(images, key=itemgetter(0))
