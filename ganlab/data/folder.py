"""Any folder, zip or tar of images. Subfolders are classes; top-level folders of class folders are splits.

A first pass reads names to determine the layout; a second one decodes. Nothing is unpacked to disk.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Annotated, Any, Literal

from ganlab.data.formats.archive import ShardSource, open_source
from ganlab.data.formats.beside import NO_LABELS, in_order, label_of
from ganlab.data.formats.images import Fit, Resample, Rule, is_image_name
from ganlab.data.formats.source import FolderSource, Source
from ganlab.data.layout import USUAL_SPLITS, Layout, Path_, are_splits, folders_of, read_layout
from ganlab.data.packing.check import Originals
from ganlab.data.packing.decoding import Encoded
from ganlab.data.packing.pack import read_manifest
from ganlab.data.packing.stream import MAX_BAD, EncodedDataset, MaxBad, OnBad
from ganlab.data.packing.writer import Recipe
from ganlab.errors import DataError, printable_name
from ganlab.schema import Range, checked

Labels = Callable[[str], int]  # of an image by its name; -1 is none


class Folder(EncodedDataset):
    """Images in a folder, zip or tar (plain, gz, xz, bz2) at ``path``, or in the tars of a folder (shards).

    split: a top-level folder such as ``train``; None takes everything (and merges splits of the same
    classes). resolution, channels, fit, resample, max_pixels: see ``images.Rule``; an image that has the size
    already keeps its pixels. Labels are in StyleGAN's ``dataset.json`` or WebDataset's ``.cls``, else the
    sub-folders. labels: false ignores them. on_bad: ``skip`` leaves broken images and empty classes out and
    counts them, up to the share ``max_bad`` of all (ten are always let pass). Formats: JPEG, PNG, WEBP, BMP;
    other images count as broken, other files are passed over. Links: see ``source.py``.
    """

    name = "folder"
    origin = "is packed from your own images: dataset.path=FOLDER|ZIP|TAR"

    @checked
    def __init__(
        self,
        path: str | None = None,
        split: str | None = None,
        resolution: Annotated[int, Range(ge=4, le=1024)] = 32,
        channels: Literal[1, 3] = 3,
        fit: Fit = "crop",
        resample: Resample = "bilinear",
        labels: bool = True,
        on_bad: OnBad = "fail",
        max_pixels: Annotated[int, Range(ge=1, le=1 << 30)] = 1 << 26,
        max_bad: MaxBad = MAX_BAD,
    ) -> None:
        self.path, self.split, self.resolution, self.channels = path, split or "all", resolution, channels
        self.rule = Rule(resolution, channels, fit, resample, max_pixels)
        self.labels, self.on_bad, self.max_bad = labels, on_bad, max_bad
        self.labelled = labels
        self._layouts: tuple[dict[str, Any], Layout] | None = None

    def splits(self) -> tuple[str, ...]:
        """The top-level folders that contain class folders; ``all`` if there are none.

        Read from the pack's manifest if it exists, otherwise from all names in the source.
        """
        source = self._find()
        with suppress(DataError, KeyError, TypeError):
            packed = read_manifest(self._recipe(self.split, source).folder)
            return tuple(map(str, packed["source"]["splits"])) or ("all",)
        return tuple(self._layout(source).splits()) or ("all",)

    def resolve_split(self, split: str | None) -> str:
        return split or self.split  # ``_prefix`` refuses others: here all names would have to be read

    def _images(self, split: str, source: Source, after: int | None) -> Originals:
        layout = self._layout(source)
        folders = self._folders(layout, split, source)
        label_of, classes, empty = self._label_images(layout, split, folders)
        passed = {why: (n, source.ignored_examples.get(why, "")) for why, n in layout.ignored.items()}
        files, total = self._encoded(source, folders, label_of, after or 0), sum(folders.values())
        facts = {"ignored": dict(layout.ignored), "splits": layout.splits()}
        return Originals(source.path, files, total, self.rule, classes, empty, passed, facts)

    def _find(self, split: str = "") -> Source:
        if self.path is None:
            raise DataError("dataset.path", "is not set", "give a folder, zip or tar of images")
        source = open_source(self.path)
        if isinstance(source, FolderSource) and source.identity() and source.tars:
            return ShardSource(source)
        return source

    def _recipe(self, split: str, source: Source) -> Recipe:
        transform = {**vars(self.rule), "labels": self.labels, "on_bad": self.on_bad}
        shape = (self.channels, self.resolution, self.resolution)
        name = f"{self.name}-{source.path.name.partition('.')[0]}"
        return Recipe(name, split, shape, source.identity(), transform)

    def _layout(self, source: Source) -> Layout:
        identity = source.identity()
        if self._layouts is None or self._layouts[0] != identity:
            self._layouts = (identity, read_layout(source, self.split, self.labels))
        return self._layouts[1]

    def _encoded(
        self, source: Source, folders: dict[Path_, int], label_of: Labels, skip: int
    ) -> Iterator[Encoded]:
        """Yield the images of the selected folders, except the first ``skip``."""
        number = 0
        for member in source.members():
            if not is_image_name(member.name) or folders_of(member.name) not in folders:
                continue
            number += 1
            if number > skip:
                name = f"{source.path}/{member.name}"
                try:
                    yield Encoded(name, label_of(member.name), member.content(), number)
                except KeyError:
                    what = "has no label, but other images have one"
                    raise DataError(printable_name(name), what, f"add it; {NO_LABELS}") from None

    def _prefix(self, layout: Layout, split: str, source: Source) -> Path_:
        """Path of the split's folder. Raises DataError if there are no images or no such split."""
        if not layout.images:
            ignored = ", ".join(f"{n} {reason}" for reason, n in layout.ignored.most_common(4))
            problem = f"contains no images (ignored: {ignored})" if ignored else "is empty"
            what = f"{printable_name(source.path)} {problem}"
            raise DataError("dataset.path", what, "give a folder or an archive of JPEG, PNG, WEBP or BMP")
        shared = next(iter(layout.images))[: layout.depth]
        if split in layout.tops():
            return (*shared, split)
        if split == "all":
            return shared
        splits = layout.splits() or layout.tops()
        near = difflib.get_close_matches(split, splits, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        what = f"{printable_name(source.path)} has no folder {split!r}"
        has = f"it has {printable_name(', '.join(splits[:20]))}" if splits else "it has no folders"
        raise DataError("dataset.split", what, f"{hint}{has}; null uses everything")

    def _folders(self, layout: Layout, split: str, source: Source) -> dict[Path_, int]:
        """The folders of a split and their image counts. Raises like ``_prefix``."""
        prefix = self._prefix(layout, split, source)
        return {path: n for path, n in layout.images.items() if path[: len(prefix)] == prefix}

    def _label_images(
        self, layout: Layout, split: str, folders: dict[Path_, int]
    ) -> tuple[Labels, list[str], list[str]]:
        """Return (image name -> label, classes, empty classes). Raises DataError if ambiguous."""
        if not self.labels:
            return _no_label, [], []
        labels_by_name = layout.label_files.labels(name for path in folders for name in layout.names[path])
        if labels_by_name is not None:
            return self._from_label_files(labels_by_name)
        is_split = split in layout.tops()
        inside = is_split or layout.merged()
        at = {path: layout.class_at(path, inside) for path in (*folders, *layout.empty)}
        named = {path: path[at[path]] for path in folders if len(path) > at[path]}
        if not is_split:
            self._check_splits(layout, named)
        if not named:
            return _no_label, [], []
        if loose := sum(n for path, n in folders.items() if path not in named):
            fix = "move them into class folders, or dataset.labels=false to use none"
            raise DataError("dataset.path", f"{loose} images are outside the class folders", fix)
        prefix = next(iter(folders))[: layout.depth + 1] if is_split else ()
        names = sorted(set(named.values()))
        empty = {p[-1] for p in layout.empty if len(p) == at[p] + 1 and p[: len(prefix)] == prefix}
        labels = {path: names.index(name) for path, name in named.items()}
        return (
            lambda name: labels[folders_of(name)],
            list(map(printable_name, names)),
            sorted(map(printable_name, empty.difference(names))),
        )

    def _from_label_files(self, labels_by_name: dict[str, str | None]) -> tuple[Labels, list[str], list[str]]:
        """Like ``_label_images``, for labels from files."""
        classes = in_order(label for label in labels_by_name.values() if label is not None)
        if not classes:
            return _no_label, [], []
        if without := [name for name, label in labels_by_name.items() if label is None]:
            example = printable_name(without[0])
            what = f"{len(without)} images have no label, such as {example}, and others have one"
            raise DataError("dataset.path", what, f"add them; {NO_LABELS}")
        ids = {label: i for i, label in enumerate(classes)}
        names = list(map(printable_name, classes))
        return lambda name: ids[label_of(name, labels_by_name) or ""], names, []

    def _check_splits(self, layout: Layout, named: dict[Path_, str]) -> None:
        """Raise DataError if labels would mostly encode the split of an image."""
        tops = layout.tops()
        splits = [top for top in tops if top.lower() in USUAL_SPLITS] if not are_splits(tops) else tops
        if not are_splits(splits) or (len(splits) < 2 and splits != tops):
            return
        of = {top: {named.get(p) for p in layout.images if p[layout.depth :][:1] == (top,)} for top in splits}
        most = max(of.values(), key=len)
        if splits != tops or not all(classes <= most for classes in of.values()):
            what = f"is not set, but the classes of {printable_name(', '.join(splits))} differ"
            train = next((top for top in splits if "train" in top.lower()), splits[0])
            raise DataError(
                "dataset.split", what, f"set dataset.split={printable_name(train)}, or {NO_LABELS}"
            )


def _no_label(name: str) -> int:
    return -1
