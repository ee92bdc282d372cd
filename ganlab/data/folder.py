"""Any folder, zip or tar of images. Sub-folders are classes; top-level folders that hold classes are splits.

The layout is found by reading names once; a second pass decodes. Neither unpacks anything to disk.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from ganlab.data.archive import Source, open_source
from ganlab.data.base import Dataset, ImageSet
from ganlab.data.check import Originals
from ganlab.data.decoding import Encoded, Piece
from ganlab.data.images import BadImageError, Fit, Resample, Rule, is_image_name, shown
from ganlab.data.pack import pack, read_manifest
from ganlab.data.stream import MAX_BAD, MaxBad, OnBad, pack_stream
from ganlab.data.writer import Recipe, Writer
from ganlab.errors import DataError
from ganlab.schema import Range, checked

Path_ = tuple[str, ...]
USUAL_SPLITS = frozenset(
    ["train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "unlabeled"]
)


@dataclass
class Layout:
    """The images of a source by folder: ``images[("train", "cat")]`` is a count.

    empty: folders without a file. ignored: what was passed over, and how often. depth: the number of leading
    folders that everything shares, such as the one an archive was made from.
    """

    images: Counter[Path_] = field(default_factory=Counter)
    empty: set[Path_] = field(default_factory=set)
    ignored: Counter[str] = field(default_factory=Counter)
    depth: int = 0

    def tops(self) -> list[str]:
        """The folders at the top, under the shared ones."""
        return sorted({path[self.depth] for path in self.images if len(path) > self.depth})

    def splits(self) -> list[str]:
        """The top folders that hold class folders themselves."""
        return sorted({path[self.depth] for path in self.images if len(path) > self.depth + 1})

    def classes_at(self, split: str | None) -> int:
        """Which element of a path names the class."""
        if split is not None:
            return self.depth + 1
        tops = self.tops()
        if not tops or tops != self.splits() or any(len(path) <= self.depth + 1 for path in self.images):
            return self.depth
        inside = [{p[self.depth + 1] for p in self.images if p[self.depth] == top} for top in tops]
        usual = all(top.lower() in USUAL_SPLITS for top in tops)
        return self.depth + 1 if usual or (len(tops) > 1 and set.intersection(*inside)) else self.depth


class Folder(Dataset):
    """Images in a folder, zip or tar (plain, gz, xz, bz2) at ``path``.

    split: a top-level folder such as ``train``; None takes everything (and merges splits). resolution,
    channels, fit, resample, max_pixels: see ``images.Rule``; an image that has the size already keeps its
    pixels. labels: false ignores the sub-folders. on_bad: ``skip`` leaves broken images and empty classes out
    and counts them, up to the share ``max_bad`` of all (ten are always let pass). Formats: JPEG, PNG, WEBP,
    BMP; other images count as broken, other files and links are passed over.
    """

    name = "folder"
    comes = "is packed from your own images: dataset.path=FOLDER|ZIP|TAR"

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
        """The top-level folders that hold class folders; ``all`` if there is none.

        Reads all names, unless the pack of ``split`` is there and tells them.
        """
        source = self._source()
        with suppress(DataError, KeyError, TypeError):
            packed = read_manifest(self._recipe(self.split, source).folder)
            return tuple(map(str, packed["source"]["splits"])) or ("all",)
        return tuple(self._layout(source).splits()) or ("all",)

    def pack_folder(self, split: str) -> Path | None:
        return self._recipe(split, self._source()).folder

    def load(self, *, split: str | None = None) -> ImageSet:
        source, split = self._source(), split or self.split
        return pack(self._recipe(split, source), lambda writer: self._fill(writer, split, source))

    def originals(self, split: str) -> Originals:
        source = self._source()
        layout = self._layout(source)
        chosen = self._chosen(layout, split, source)
        label_of, classes, hollow = self._named(layout, split, chosen)
        passed = {why: (n, source.such_as.get(why, "")) for why, n in layout.ignored.items()}
        files = self._encoded(source, label_of, skip=0)
        return Originals(source.path, files, sum(chosen.values()), self.rule, classes, hollow, passed)

    def _source(self) -> Source:
        if self.path is None:
            raise DataError("dataset.path", "is not set", "give a folder, zip or tar of images")
        return open_source(self.path)

    def _recipe(self, split: str, source: Source) -> Recipe:
        transform = {**vars(self.rule), "labels": self.labels, "on_bad": self.on_bad}
        shape = (self.channels, self.resolution, self.resolution)
        name = f"{self.name}-{source.path.name.partition('.')[0]}"
        return Recipe(name, split, shape, source.identity(), transform)

    def _layout(self, source: Source) -> Layout:
        identity = source.identity()
        if self._layouts is None or self._layouts[0] != identity:
            self._layouts = (identity, read_layout(source, self.split))
        return self._layouts[1]

    def _fill(self, writer: Writer, split: str, source: Source) -> None:
        layout = self._layout(source)
        chosen = self._chosen(layout, split, source)
        label_of = self._labels(writer, layout, split, chosen)
        writer.source |= {"ignored": dict(layout.ignored), "splits": layout.splits()}
        files = self._encoded(source, label_of, skip=writer.position or 0)
        title, total = f"packing {self.name} {split}", sum(chosen.values())
        bad = (self.on_bad, self.max_bad)
        pack_stream(writer, files, self.rule, title=title, total=total, bad=bad)

    def _encoded(self, source: Source, label_of: dict[Path_, int], skip: int) -> Iterator[Encoded]:
        """The images of the chosen folders, but for the first ``skip``."""
        number = 0
        for member in source.members():
            path = tuple(member.name.split("/")[:-1])
            if not is_image_name(member.name) or path not in label_of:
                continue
            number += 1
            if number <= skip:
                continue
            data: bytes | Piece | BadImageError
            try:
                data = Piece(member.path, 0, member.size) if member.path else member.read()
            except BadImageError as error:
                data = error
            yield Encoded(f"{source.path}/{member.name}", label_of[path], data, number)

    def _prefix(self, layout: Layout, split: str, source: Source) -> Path_:
        """The folders above the chosen split. Raises DataError if there is no image or no such split."""
        if not layout.images:
            seen = ", ".join(f"{n} {what}" for what, n in layout.ignored.most_common(4)) or "nothing"
            what = f"{shown(str(source.path))} holds no image (but {seen})"
            raise DataError("dataset.path", what, "give a folder or an archive of JPEG, PNG, WEBP or BMP")
        shared = next(iter(layout.images))[: layout.depth]
        if split in layout.tops():
            return (*shared, split)
        if split == "all":
            return shared
        splits = layout.splits() or layout.tops()
        near = difflib.get_close_matches(split, splits, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        what = f"{shown(str(source.path))} has no folder {split!r}"
        has = f"it has {shown(', '.join(splits[:20]))}" if splits else "it has no folders"
        raise DataError("dataset.split", what, f"{hint}{has}; null takes everything")

    def _chosen(self, layout: Layout, split: str, source: Source) -> dict[Path_, int]:
        """The folders of a split, and how many images they hold. Raises as ``_prefix`` does."""
        prefix = self._prefix(layout, split, source)
        return {path: n for path, n in layout.images.items() if path[: len(prefix)] == prefix}

    def _labels(
        self, writer: Writer, layout: Layout, split: str, chosen: dict[Path_, int]
    ) -> dict[Path_, int]:
        """Label of each folder (-1: none), with ``writer.classes`` set. Raises DataError on a muddle."""
        labels, writer.classes, hollow = self._named(layout, split, chosen)
        if hollow:
            if self.on_bad == "fail":
                what = f"class folder {hollow[0]!r} of {split!r} holds no image"
                raise DataError("dataset.path", what, "remove it or fill it, or dataset.on_bad=skip")
            if writer.position is None:
                writer.count("empty_classes", len(hollow))
        return labels

    def _named(
        self, layout: Layout, split: str, chosen: dict[Path_, int]
    ) -> tuple[dict[Path_, int], list[str], list[str]]:
        """Label of each folder (-1: none), the classes, and those without an image. Raises DataError."""
        index = layout.classes_at(None if split not in layout.tops() else split)
        named = {path: path[index] for path in chosen if len(path) > index}
        if not self.labels or not named:
            return dict.fromkeys(chosen, -1), [], []
        if loose := sum(n for path, n in chosen.items() if path not in named):
            fix = "move them into class folders, or dataset.labels=false to use none"
            raise DataError("dataset.path", f"{loose} images lie beside the class folders", fix)
        prefix = next(iter(chosen))[:index] if split in layout.tops() else ()
        names = sorted(set(named.values()))
        hollow = {p[index] for p in layout.empty if len(p) == index + 1 and p[: len(prefix)] == prefix}
        labels = {path: names.index(name) for path, name in named.items()}
        return labels, list(map(shown, names)), sorted(map(shown, hollow.difference(names)))


def read_layout(source: Source, split: str | None = None) -> Layout:
    """Count the images of a source by folder; other files go to ``ignored``.

    A folder called ``split`` or by a usual name of splits is not taken for a shared wrapper.
    """
    layout = Layout()
    busy: set[Path_] = set()
    for member in source.members():
        path = tuple(member.name.split("/")[:-1])
        busy.add(path)
        if is_image_name(member.name):
            layout.images[path] += 1
        else:
            layout.ignored["other file"] += 1
            source.such_as.setdefault("other file", shown(member.name))
    full = {path[:n] for path in busy for n in range(len(path) + 1)}
    layout.empty = {tuple(name.split("/")) for name in source.folders} - full
    layout.ignored += source.ignored
    while layout.images:
        here = {path[layout.depth : layout.depth + 1] for path in layout.images}
        top = next(iter(here))
        deeper = any(len(path) > layout.depth + 1 for path in layout.images)
        if len(here) > 1 or not top or not deeper or top[0] == split or top[0].lower() in USUAL_SPLITS:
            break
        layout.depth += 1
    return layout
