"""Lines of any text, one-hot: a file, or a folder of files such as Google Billion Word's.

Source: Gulrajani et al. 2017, arXiv:1704.00028, section 5.4, and its released code (language_helpers.py):
lines of 32 characters, longer ones cut, shorter ones padded with a backtick; a vocabulary by frequency.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt

from ganlab.data.base import Dataset, SampleSet, memory_manifest
from ganlab.data.corpus import PAD, PIECE, UNKNOWN, Counts, Long, Rows, read
from ganlab.data.fingerprint import HASH_BLOCK, finish_fingerprint
from ganlab.data.formats.files import log
from ganlab.data.formats.source import FolderSource
from ganlab.errors import DataError, printable_name
from ganlab.schema import Count, Range, Seed, Unit, checked
from ganlab.system.paths import expanded
from ganlab.types import TextShape

Ids = npt.NDArray[np.int16]
SPLITS = ("train", "test")
CODES = 0x110000  # of Unicode


@dataclass(frozen=True)
class TextSet(SampleSet):
    """Lines as symbols, int16 (N, L); ``manifest["vocabulary"]`` tells what they stand for, 0 is unknown."""

    @property
    def shape(self) -> TextShape:
        return TextShape(len(self.manifest["vocabulary"]), int(self.images.shape[1]))


class Text(Dataset):
    """Lines of the UTF-8 text at ``path``: a file, plain or .gz, or a folder of them, sorted by name.

    A top folder that begins with ``heldout`` is the split ``test``; where one begins with ``training``, no
    other is read for ``train``.

    Args:
        length: symbols of a line; shorter ones are padded with a backtick.
        long_lines: longer ones are ``cut`` (as released), ``split`` into lines, or ``fail``.
        max_lines: how many are taken, from the first on; empty ones are left out.
        max_vocabulary: symbols: 0 is the unknown one, the others are by falling frequency in ``train``,
            padding included; among equals the lower code point is first.
        held_out: share of the lines that is the split ``test``, in place of a ``heldout`` folder.
        data_seed: of the order in which lines are held out, and stored.
        on_bad: bytes that are no UTF-8: ``fail``, or ``replace`` by the unknown symbol.
    """

    name, channels, resolution, labelled = "text", 1, 1, False
    holdout_option = "set dataset.held_out=0.1"
    origin = "is read from your own text when a run starts: dataset.path=FILE|FOLDER"

    @checked
    def __init__(
        self,
        path: str | None = None,
        length: Annotated[int, Range(ge=1, le=4096)] = 32,
        long_lines: Long = "cut",
        max_lines: Count = 10_000_000,
        max_vocabulary: Annotated[int, Range(ge=2, le=2**15)] = 2048,
        held_out: Unit = 0.0,
        data_seed: Seed = 0,
        on_bad: Literal["fail", "replace"] = "fail",
        split: Literal["train", "test"] = "train",
    ) -> None:
        self.path, self.length, self.long_lines, self.max_lines = path, length, long_lines, max_lines
        self.max_vocabulary, self.held_out, self.data_seed = max_vocabulary, held_out, data_seed
        self.on_bad, self.split = on_bad, split
        self._made: dict[str, TextSet] = {}

    @property
    def shape(self) -> TextShape:
        return TextShape(self.max_vocabulary, self.length)

    def splits(self) -> tuple[str, ...]:
        return SPLITS if self.held_out or (self.path and files_of(self._root())[1]) else SPLITS[:1]

    def load(self, *, split: str | None = None) -> TextSet:
        split = self.resolve_split(split)
        if not self._made:
            self._made = self._make()
        return self._made[split]

    def _root(self) -> Path:
        if self.path is None:
            raise DataError("dataset.path", "is not set", "give a text file, or a folder of them")
        root = expanded(self.path)
        if not root.exists():
            raise DataError(root, "does not exist", "give a text file, or a folder of them")
        return root

    def _make(self) -> dict[str, TextSet]:
        """Both splits, or the one there is."""
        from ganlab.rng import fold

        root = self._root()
        train, held = files_of(root)
        rows, counts = self._read(root, train)
        order = np.random.RandomState(fold(self.data_seed, "order") % 2**32).permutation(len(rows))
        if self.held_out and len(rows) < 2:
            raise DataError(root, "has one line, and dataset.held_out wants some", "leave it out")
        first = min(max(round(self.held_out * len(rows)), self.held_out > 0), len(rows) - 1)
        orders = {"train": order[first:], "test": order[:first]}
        vocabulary, table = self._vocabulary(root, rows, orders["train"])
        parts = {"train": (rows, orders["train"], counts, len(train))}
        if self.held_out:
            parts["test"] = (rows, orders["test"], Counts(), len(train))
        elif held:
            held_rows, held_counts = self._read(root, held)
            parts["test"] = (held_rows, np.arange(len(held_rows)), held_counts, len(held))
        return {
            split: self._set(split, _looked_up(*part[:2], table), vocabulary, *part[2:])
            for split, part in parts.items()
        }

    def _read(self, root: Path, files: list[Path]) -> tuple[Rows, Counts]:
        replace = self.on_bad == "replace"
        rows, counts = read(files, self.length, self.max_lines, self.long_lines, replace)
        if not len(rows):
            what = f"all its {counts.empty:,} lines are empty" if counts.empty else "it contains no text"
            raise DataError(root, what, "give a text file, or a folder of them")
        if counts.long and self.long_lines == "cut":
            what = f"{counts.long:,} lines are longer than {self.length} symbols and were cut"
            log.warning("%s: %s; dataset.long_lines=split keeps all of them", printable_name(root), what)
        return rows, counts

    def _vocabulary(self, root: Path, rows: Rows, order: npt.NDArray[np.int64]) -> tuple[list[str], Ids]:
        """The symbols, and the number of each code point. Raises DataError where there is one only."""
        counts = np.zeros(CODES, np.int64)
        for part in _pieces(order, self.length):
            counts += np.bincount(rows[part].reshape(-1), minlength=CODES)
        if np.count_nonzero(counts) - bool(counts[ord(PAD)]) < 2:
            raise DataError(root, "has only one symbol: nothing to learn", "give another text")
        counts[ord(UNKNOWN)] = 0
        codes = np.flatnonzero(counts)
        best = codes[np.lexsort((codes, -counts[codes]))][: self.max_vocabulary - 1]
        table = np.zeros(CODES, np.int16)
        table[best] = np.arange(len(best)) + 1
        return [UNKNOWN, *map(chr, best)], table

    def _set(self, split: str, ids: Ids, vocabulary: list[str], counts: Counts, files: int) -> TextSet:
        unknown = sum(int((part == 0).sum()) for part in np.array_split(ids, 1 + ids.size // PIECE))
        long = "lines_split" if self.long_lines == "split" else "lines_cut"
        changes = {long: counts.long, "empty_lines_left_out": counts.empty}
        changes |= {"symbols_replaced": counts.replaced, "symbols_unknown": unknown}
        manifest = memory_manifest(
            self, split, ids, fingerprint(ids, vocabulary),
            counts={what: n for what, n in changes.items() if n},
            source={"kind": "text", "path": self.path, "files": files, "data_seed": self.data_seed},
            transform={"length": self.length, "long_lines": self.long_lines, "pad": PAD},
            vocabulary=vocabulary,
        )  # fmt: skip
        warnings = (f"{counts.long:,} lines were cut",) if changes.get("lines_cut") else ()
        return TextSet(ids, None, [], manifest["fingerprint"], self.name, split, warnings, manifest)


def files_of(root: Path) -> tuple[list[Path], list[Path]]:
    """The files of training and the held-out ones, sorted by name; hidden ones are none."""
    if not root.is_dir():
        return [root], []
    by_top: dict[str, list[Path]] = {}
    for member in FolderSource(root).members():
        top, inside, _ = member.name.partition("/")
        by_top.setdefault(top if inside else "", []).append(root / member.name)
    held = sorted(f for top, files in by_top.items() if top.startswith("heldout") for f in files)
    training = [top for top in by_top if top.startswith("training")]
    train = training or [top for top in by_top if not top.startswith("heldout")]
    return sorted(f for top in train for f in by_top[top]), held


def fingerprint(ids: Ids, vocabulary: list[str]) -> str:
    """sha256 over the vocabulary as JSON, the symbols' bytes and their shape."""
    digest = hashlib.sha256(json.dumps(vocabulary).encode())
    flat = np.ascontiguousarray(ids, "<i2").reshape(-1)
    for start in range(0, flat.size, HASH_BLOCK):
        digest.update(flat[start : start + HASH_BLOCK].data)
    return finish_fingerprint(digest, ids.shape, None)


def _pieces(order: npt.NDArray[np.int64], length: int) -> Iterator[npt.NDArray[np.int64]]:
    at = max(1, PIECE // length)
    return (order[i : i + at] for i in range(0, len(order), at))


def _looked_up(rows: Rows, order: npt.NDArray[np.int64], table: Ids) -> Ids:
    """The rows in this order, as numbers of the vocabulary."""
    out, at = np.empty((len(order), rows.shape[1]), np.int16), 0
    for part in _pieces(order, rows.shape[1]):
        out[at : at + len(part)] = table[rows[part]]
        at += len(part)
    return out
