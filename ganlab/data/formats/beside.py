"""Label files next to images, as written by other tools instead of class folders.

StyleGAN's ``dataset.json`` (dataset_tool.py): {"labels": [["00000/img00000000.png", 3], ...]}, or null for no
labels; the folders are storage. WebDataset's samples: ``000012.cls`` (a number or a name) or ``000012.json``
({"label": 3}) beside ``000012.jpg``.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable
from typing import Any

from ganlab.data.formats.images import BadImageError
from ganlab.data.formats.names import clean
from ganlab.data.formats.source import Member
from ganlab.errors import DataError, printable_name

TABLE, CLASS, RECORD = "dataset.json", ".cls", ".json"
MAX_TABLE, MAX_RECORD = 1 << 26, 1 << 16  # bytes: a table of 1.3 million images has 45 MB
NO_LABELS = "set dataset.labels=false to use none"


class LabelFiles:
    """Labels collected by ``take``. tables: folder -> path of its label table, or "" if it has no labels."""

    def __init__(self) -> None:
        self.tables: dict[str, str] = {}
        self._images: dict[str, str | None] = {}
        self._samples: dict[str, str] = {}
        self._facts: dict[str, str] = {}  # used only if there are no ``.cls`` files

    def take(self, member: Member, loose: bool) -> bool:
        """Read a label file; returns False for other files. loose: not in a folder, as in a shard."""
        folder, name = posixpath.split(member.name)
        if name == TABLE:
            return self._table(member, folder)
        if name.lower().endswith(CLASS):
            text = _read(member, MAX_RECORD).decode("utf-8-sig", "replace").strip()
            self._samples[_sample(member.name)] = text
            return True
        if loose and name.lower().endswith(RECORD) and member.size <= MAX_RECORD:
            facts = _parsed(_read(member, MAX_RECORD))
            if isinstance(facts, dict) and isinstance(
                label := facts.get("label", facts.get("cls")), int | str
            ):
                self._facts[_sample(member.name)] = str(label)
                return True
        return False

    def labels(self, folders: Iterable[str]) -> dict[str, str | None] | None:
        """Map images or samples in ``folders`` (names as in ``Member``) to labels.

        None if they have no label files, so folders may be classes. Raises DataError if a table matches none
        of the images.
        """
        inside = set(folders)
        labels: dict[str, str | None] = {**(self._samples or self._facts), **self._images}
        labels = {name: label for name, label in labels.items() if posixpath.dirname(name) in inside}
        over = [
            t for t in self.tables if any(f"{folder}/".startswith(f"{t}/" if t else "") for folder in inside)
        ]
        if not labels and any(self.tables[table] for table in over):
            what = "its labels match none of the images"
            raise DataError(self.tables[over[0]], what, f"names are relative to its folder; {NO_LABELS}")
        return labels if labels or over else None

    def _table(self, member: Member, folder: str) -> bool:
        facts = _parsed(_read(member, MAX_TABLE))
        if not isinstance(facts, dict) or "labels" not in facts:
            return False
        labels = facts["labels"] or ()
        self.tables[folder] = _place(member) if labels else ""
        try:
            for name, label in labels.items() if isinstance(labels, dict) else labels:
                path = clean(name) or ""
                below = not folder or path.startswith(f"{folder}/")
                self._images[path if below else posixpath.join(folder, path)] = _class(label)
        except (TypeError, ValueError, AttributeError):
            what = "labels must be pairs of a file name and an integer"
            raise DataError(_place(member), what, f"write it with dataset_tool.py, or {NO_LABELS}") from None
        return True


def label_of(name: str, labels: dict[str, str | None]) -> str | None:
    """Label of an image. Raises KeyError if it has none."""
    return labels[name] if name in labels else labels[_sample(name)]


def in_order(labels: Iterable[str]) -> list[str]:
    """Sort class names, numerically if all are numbers."""
    names = sorted(set(labels))
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def _sample(name: str) -> str:
    """A path up to the first dot of its file name."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def _class(label: Any) -> str | None:
    """Convert an integer or one-hot label to text."""
    if label is None:
        return None
    if isinstance(label, list):
        if label.count(1) != 1 or label.count(0) != len(label) - 1:
            raise ValueError
        label = label.index(1)
    if isinstance(label, bool | str) or int(label) != label:
        raise ValueError
    return str(int(label))


def _read(member: Member, most: int) -> bytes:
    try:
        return member.read(most)
    except BadImageError as error:
        raise DataError(_place(member), str(error), f"repair it; {NO_LABELS}") from None


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _place(member: Member) -> str:
    return printable_name(f"{member.source.path}/{member.name}")
