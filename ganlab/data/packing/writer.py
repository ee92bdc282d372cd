"""Recipe of a packed set, and the writer that streams its images, labels and manifest to disk.

``commit`` marks a position from which an interrupted preparation resumes (``journal.py``).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ganlab.data.fingerprint import Labels, Pixels, finish_fingerprint
from ganlab.data.formats.files import check_room
from ganlab.data.packing.journal import NAME as JOURNAL
from ganlab.data.packing.journal import Entry, Journal
from ganlab.errors import DataError
from ganlab.system.files import sync_folder, write_new
from ganlab.system.paths import cache_dir

FORMAT = 1
EXAMPLES = 20  # names of left-out images that a manifest keeps


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

        self._digest = hashlib.sha256()
        self._labels: list[Labels] = []
        self._committed = (0, 0)  # lengths of ``_labels`` and ``examples``
        self._journal = Journal(self.folder, {"ganlab": __version__, **decoder_versions()})
        pixels = self.folder / "images.u8"
        entries, digest = self._journal.recover(pixels, int(np.prod(self.shape)))
        for name in ("manifest.json", "labels.i64", *(() if entries else ("images.u8", JOURNAL))):
            (self.folder / name).unlink(missing_ok=True)
        for entry in entries:
            self._labels += [np.array(entry.labels, np.int64)] if entry.labels else []
            self.examples += entry.examples
        if entries:
            self._digest, self.images, self.position = digest, entries[-1].images, entries[-1].position
            self.counts.update(entries[-1].counts)
            self._committed = (len(self._labels), len(self.examples))
        self._file = open(pixels, "ab")  # noqa: SIM115  # closed by ``finish`` or ``close``

    def expect(self, images: int) -> None:
        """Announce the total number of images. Raises EnvError if the rest does not fit on the disk."""
        check_room(self.folder, (images - self.images) * int(np.prod(self.shape)))

    def commit(self, position: Any) -> None:
        """Record all images so far in the journal; ``position`` (JSON) is where to resume."""
        self._file.flush()
        labels = [int(label) for part in self._labels[self._committed[0] :] for label in part]
        examples = self.examples[self._committed[1] :]
        sha256, counts = self._digest.hexdigest(), dict(sorted(self.counts.items()))
        self._journal.append(Entry(self.images, sha256, labels, counts, examples, position))
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
        self._file.close()
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
            "bytes": int(np.prod(shape)),
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
        self._journal.close()
        (self.folder / JOURNAL).unlink(missing_ok=True)  # last: with a manifest and no journal it is whole
        return manifest

    def close(self) -> None:
        self._file.close()
        self._journal.close()
