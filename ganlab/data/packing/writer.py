"""Recipe of a packed set, and the writer that streams its images, labels and manifest to disk.

``commit`` adds a line to a journal, from which an interrupted preparation resumes:

    journal.jsonl   a header, then a line per block: images so far, sha256 of their bytes, labels, counts,
    position

A line is written after its pixels. On resuming, the pixels are compared with the checksums of the lines, and
whatever a power failure tore is truncated and redone, so the finished pack is identical byte for byte.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ganlab.data.fingerprint import HASH_BLOCK, Labels, Pixels, finish_fingerprint
from ganlab.data.formats.files import check_room
from ganlab.errors import DataError
from ganlab.system.files import sync_folder, write_new
from ganlab.system.paths import cache_dir

FORMAT = 1
EXAMPLES = 20  # names of left-out images that a manifest keeps
JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Recipe:
    """Source and transform of a packed set. ``shape`` is (C, H, W) of one image.

    source: identity of the source (path, size, time, or checksums). transform: every option that affects
    pixels, labels or the selection of images. Both are hashed into the key, so both must be JSON.
    """

    name: str
    split: str
    shape: tuple[int, int, int]
    source: dict[str, Any]
    transform: dict[str, Any]

    @property
    def key(self) -> str:
        facts = [FORMAT, self.name, self.split, self.shape, self.source, self.transform]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """Folder of the pack, whether or not it exists."""
        words = [re.sub(r"[^A-Za-z0-9_+.]+", "-", part)[:40] for part in (self.name, self.split)]
        return cache_dir() / "datasets" / "-".join([*words, str(self.shape[-1]), self.key])


@dataclass
class Writer:
    """Streams images to disk in order, in constant memory.

    classes: class names, to be set before ``finish`` if there are labels. counts, examples: see ``count``.
    source: manifest entries that are not part of the key. position: None for a new pack; when resuming, the
    argument of the last ``commit``, after which to continue (``classes`` and ``source`` must be set again).
    """

    folder: Path
    shape: tuple[int, int, int]
    classes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    source: dict[str, Any] = field(default_factory=dict)
    images: int = 0
    position: Any = None

    def __post_init__(self) -> None:
        from ganlab import __version__
        from ganlab.data.packing.decoding import decoder_versions

        made_with = {"journal": 1, "ganlab": __version__, **decoder_versions()}  # the pixels depend on it
        self._head = f"{json.dumps(made_with, sort_keys=True)}\n".encode()
        self._digest, self._labels = hashlib.sha256(), list[Labels]()
        self._journal: io.FileIO | None = None
        pixels = self.folder / "images.u8"
        resumes = self._recover(pixels)
        for name in ("manifest.json", "labels.i64", *(() if resumes else ("images.u8", JOURNAL))):
            (self.folder / name).unlink(missing_ok=True)
        self._committed = (len(self._labels), len(self.examples))
        self._file = open(pixels, "ab")  # noqa: SIM115  # closed by ``finish`` or ``close``

    def _recover(self, pixels: Path) -> bool:
        """Take over the journal's blocks with intact pixels, and truncate the rest; False if there are none.

        None are of other versions of ganlab or its decoders.
        """
        path, size = self.folder / JOURNAL, math.prod(self.shape)
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        if lines[:1] != [self._head] or not pixels.is_file():
            return False
        end = len(self._head)
        with open(pixels, "rb") as file:
            for line in lines[1:]:
                try:
                    entry, ahead = json.loads(line), self._digest.copy()
                    left = (entry["images"] - self.images) * size
                    while left > 0 and (block := file.read(min(left, HASH_BLOCK))):
                        ahead.update(block)
                        left -= len(block)
                    if left or not line.endswith(b"\n") or ahead.hexdigest() != entry["sha256"]:
                        break
                    self._labels += [np.array(entry["labels"], np.int64)] if entry["labels"] else []
                except (KeyError, TypeError, ValueError, RecursionError):
                    break
                self._digest, self.images, self.position = ahead, entry["images"], entry["position"]
                self.counts = Counter(entry["counts"])
                self.examples += entry["examples"]
                end += len(line)
        if resumes := end > len(self._head):
            os.truncate(pixels, self.images * size)
            os.truncate(path, end)
        return resumes

    def expect(self, images: int) -> None:
        """Announce the total number of images. Raises EnvError if the rest does not fit on the disk."""
        check_room(self.folder, (images - self.images) * math.prod(self.shape))

    def commit(self, position: Any) -> None:
        """Record all images so far in the journal; ``position`` (JSON) is where to resume."""
        self._file.flush()
        if self._journal is None:
            self._journal = open(self.folder / JOURNAL, "ab", buffering=0)  # noqa: SIM115  # as ``_file``
            if not self._journal.tell():
                self._journal.write(self._head)
        entry = {
            "images": self.images,
            "sha256": self._digest.hexdigest(),
            "labels": [int(label) for part in self._labels[self._committed[0] :] for label in part],
            "counts": dict(sorted(self.counts.items())),
            "examples": self.examples[self._committed[1] :],
            "position": position,
        }
        self._journal.write(f"{json.dumps(entry)}\n".encode())
        self._committed = (len(self._labels), len(self.examples))

    def add(self, images: Pixels) -> None:
        """Append uint8 (n, C, H, W)."""
        if images.dtype != np.uint8 or images.shape[1:] != self.shape:
            raise ValueError(f"expected uint8 (n, {self.shape}), got {images.dtype} {images.shape}")
        block = np.ascontiguousarray(images).reshape(-1).data
        self._digest.update(block)
        self._file.write(block)
        self.images += len(images)

    def add_labels(self, labels: Labels) -> None:
        """Append int64 (n,) labels in the images' order, before or after the images."""
        self._labels.append(np.asarray(labels, np.int64))

    def count(self, what: str, number: int = 1, example: str | None = None) -> None:
        """Count an event (``NOTES``) and keep its first few examples."""
        self.counts[what] += number
        if example is not None and len(self.examples) < EXAMPLES:
            self.examples.append(example)

    def finish(self, recipe: Recipe) -> dict[str, Any]:
        """Write labels and manifest, and sync all files. Raises DataError if there are no images."""
        from ganlab import __version__

        if not self.images:
            raise DataError("dataset.path", "no images are left to pack", "see dataset.on_bad")
        self._file.flush()
        os.fsync(self._file.fileno())
        labels = np.concatenate(self._labels) if self._labels else None
        per_class: list[int] | None = None
        if labels is not None:
            assert len(labels) == self.images, f"{len(labels)} labels for {self.images} images"
            assert 0 <= labels.min() <= labels.max() < len(self.classes), "labels are indices of classes"
            write_new(self.folder / "labels.i64", labels.astype("<i8").tobytes())
            per_class = np.bincount(labels, minlength=len(self.classes)).tolist()
        shape = (self.images, *self.shape)
        manifest = {
            "format": FORMAT,
            "ganlab": __version__,
            "name": recipe.name,
            "split": recipe.split,
            "key": recipe.key,
            "count": self.images,
            "shape": list(shape),
            "bytes": math.prod(shape),
            "classes": self.classes,
            "class_counts": per_class,
            "counts": dict(sorted(self.counts.items())),
            "examples": self.examples,
            "source": {**recipe.source, **self.source},
            "transform": recipe.transform,
            "images_sha256": self._digest.hexdigest(),
            "labels_sha256": None
            if labels is None
            else hashlib.sha256(labels.astype("<i8").data).hexdigest(),
            "fingerprint": finish_fingerprint(self._digest, shape, labels),
        }
        write_new(self.folder / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
        sync_folder(self.folder)
        (self.folder / JOURNAL).unlink(missing_ok=True)  # last: with a manifest and no journal it is whole
        return manifest

    def close(self) -> None:
        self._file.close()
        if self._journal is not None:
            self._journal.close()
