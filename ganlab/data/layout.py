"""Layout of a folder or archive of images: splits, classes and label files, from one pass over the names."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from ganlab.data.formats.beside import LabelFiles
from ganlab.data.formats.images import is_image_name
from ganlab.data.formats.source import TARS, Source
from ganlab.errors import printable_name

Path_ = tuple[str, ...]
USUAL_SPLITS = frozenset(
    ["train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "unlabeled"]
)
SPLIT_WORD = re.compile(
    r"(?:^|.*[^a-zA-Z])((?i:train|test|val|dev|eval|pred|unlabel))(?i:ing|ed|led|id|idation|set|iction)?(?![a-z])"
)


@dataclass
class Layout:
    """The images of a source by folder: ``images[("train", "cat")]`` is a count.

    empty: folders without files. ignored: reason -> count of skipped files. depth: the number of leading
    folders common to all images, such as the archive's root folder. label_files: labels from files.
    """

    images: Counter[Path_] = field(default_factory=Counter)
    names: dict[Path_, set[str]] = field(default_factory=dict)  # of folders as ``Member.name`` has them
    empty: set[Path_] = field(default_factory=set)
    ignored: Counter[str] = field(default_factory=Counter)
    depth: int = 0
    label_files: LabelFiles = field(default_factory=LabelFiles)

    def tops(self) -> list[str]:
        """The top-level folders, below the common ones."""
        return sorted({path[self.depth] for path in self.images if len(path) > self.depth})

    def splits(self) -> list[str]:
        """The top-level folders that are splits: by their names, or because they contain class folders."""
        tops = self.tops()
        if are_splits(tops):
            return tops
        return sorted({path[self.depth] for path in self.images if len(path) > self.depth + 1})

    def merged(self) -> bool:
        """Whether the top-level folders are splits, so that the folders inside are the classes."""
        tops = self.tops()
        if not tops or any(len(path) <= self.depth for path in self.images):
            return False
        if are_splits(tops):
            return True
        if any(len(path) <= self.depth + 1 for path in self.images) or len(tops) == 1:
            return False
        inside = [{p[self.depth + 1] for p in self.images if p[self.depth] == top} for top in tops]
        return bool(set.intersection(*inside))

    def class_at(self, path: Path_, split: bool) -> int:
        """Index of the path element that is the class; split: whether the top-level folder is a split."""
        at = self.depth + split
        if split and len(path) > at and path[at] == path[at - 1]:  # training_set/training_set/cats
            top = [p for p in self.images if p[:at] == path[:at]]
            at += all(p[at : at + 1] == path[at : at + 1] for p in top) and any(len(p) > at + 1 for p in top)
        return at


def folders_of(name: str) -> Path_:
    """Folders in the path of a file, excluding a tar that contains it."""
    return tuple(part for part in name.split("/")[:-1] if not part.lower().endswith(TARS))


def in_tar(name: str) -> bool:
    """Whether a file is at the top level of a tar inside a folder."""
    return name.rpartition("/")[0].lower().endswith(TARS)


def are_splits(tops: list[str]) -> bool:
    """Whether names are splits: "my_train", "my_test" are; "freight_train", "steam_train" are classes."""
    words = [match[1].lower() if (match := SPLIT_WORD.match(top)) else "" for top in tops]
    usual = all(top.lower() in USUAL_SPLITS for top in tops)
    return bool(tops) and (usual or (all(words) and len(set(words)) > 1))


def read_layout(source: Source, split: str | None = None, labels: bool = True) -> Layout:
    """Count the images of a source by folder; other files go to ``ignored``.

    A folder named ``split``, or like a common split, is never treated as a common wrapper. labels: whether to
    read label files. Raises DataError, also for a damaged label file.
    """
    layout = Layout()
    busy: set[Path_] = set()
    for member in source.members():
        path = folders_of(member.name)
        busy.add(path)
        if is_image_name(member.name):
            layout.images[path] += 1
            layout.names.setdefault(path, set()).add(member.name.rpartition("/")[0])
        elif not (labels and layout.label_files.take(member, not path or in_tar(member.name))):
            layout.ignored["other file"] += 1
            source.ignored_examples.setdefault("other file", printable_name(member.name))
    full = {path[:n] for path in busy for n in range(len(path) + 1)}
    layout.empty = {folders_of(f"{name}/") for name in source.folders} - full
    layout.ignored += source.ignored
    while layout.images:
        here = {path[layout.depth : layout.depth + 1] for path in layout.images}
        top = next(iter(here))
        deeper = any(len(path) > layout.depth + 1 for path in layout.images)
        if len(here) > 1 or not top or not deeper or top[0] == split or top[0].lower() in USUAL_SPLITS:
            break
        layout.depth += 1
    return layout
