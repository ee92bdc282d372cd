"""Packed datasets: one raw uint8 file that is memory-mapped, its labels, and a manifest.

    <cache>/datasets/<name>-<split>-<resolution>-<key>/
        images.u8       N * C * H * W bytes, row-major (N, C, H, W)
        labels.i64      N little-endian int64, where there are labels
        manifest.json   format, counts, shape, classes, source, transform, sha256 sums, fingerprint

The key is a hash of the source's identity and the transform, so a changed source or option gives a new pack.
A pack is written to a temporary folder next to its final path and renamed once complete and synced; an
interrupted preparation resumes from there.

Verification: checksums are computed while writing. Opening a pack compares the size of ``images.u8`` and the
sha256 of the labels with the manifest (milliseconds). The sha256 of the pixels is compared by
``ganlab data info NAME verify=true`` (1 GB/s) and on resuming.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ganlab.data.base import Dataset, SampleSet
from ganlab.data.fingerprint import HASH_BLOCK, finish_fingerprint
from ganlab.data.formats.files import locked, log, megabytes, writing
from ganlab.data.packing.writer import FORMAT, JOURNAL, Recipe, Writer
from ganlab.errors import DataError, GanlabError
from ganlab.system.files import sync_folder
from ganlab.system.paths import cache_dir


class PackedDataset(Dataset):
    """Base class of datasets that are packed: where a split lies, what identifies it, how it is read."""

    @abstractmethod
    def _find(self, split: str) -> Any:
        """Where ``split`` lies. Raises DataError."""

    @abstractmethod
    def _recipe(self, split: str, source: Any) -> Recipe: ...

    @abstractmethod
    def _pack(self, writer: Writer, split: str, source: Any) -> None:
        """Write the images of ``split``."""

    def recipe(self, split: str) -> Recipe:
        return self._recipe(split, self._find(split))

    def load(self, *, split: str | None = None) -> SampleSet:
        split = self.resolve_split(split)
        source = self._find(split)
        return pack(self._recipe(split, source), lambda writer: self._pack(writer, split, source))


def pack(recipe: Recipe, fill: Callable[[Writer], None]) -> SampleSet:
    """Open the packed set of ``recipe``; if it is missing or damaged, create it with ``fill`` first.

    If several processes need the same pack, one creates it while the others wait. Raises what ``fill``
    raises, and EnvError if the cache is not writable. An incomplete pack never gets the final name; what
    ``fill`` committed (``Writer.commit``) is kept for the next attempt.
    """
    folder = recipe.folder
    if (packed := _usable(folder)) is not None:
        return packed
    parent, partial = folder.parent, partial_folder(folder)
    pixels, journal = partial / "images.u8", partial / JOURNAL
    with (
        writing(parent),
        locked(parent / ".locks" / folder.name, f"packing {recipe.name} {recipe.split}"),
    ):
        _remove_leftovers(folder)  # under the lock, no live process owns these
        if (packed := _usable(folder)) is not None:
            return packed
        if damaged := folder.exists() or folder.is_symlink():
            log.warning("%s: the packed dataset is damaged; packing it again", folder)
        partial.mkdir(exist_ok=True)
        try:
            if journal.exists() or _usable(partial) is None:  # else all was done but the rename
                if journal.exists() and pixels.exists() and (size := pixels.stat().st_size) > 1e9:
                    log.warning("%s: verifying the %s already packed", partial, megabytes(size))
                writer = Writer(partial, recipe.shape)
                try:
                    if writer.position is not None:
                        log.warning("%s: resuming after the first %s images", folder, f"{writer.images:,}")
                    fill(writer)
                    writer.finish(recipe)
                finally:
                    writer.close()
            if damaged:
                folder.rename(partial.with_name(f".tmp-{folder.name}-old"))
            partial.rename(folder)
            sync_folder(parent)
        finally:
            if not journal.exists():
                shutil.rmtree(partial, ignore_errors=True)
        _remove_leftovers(folder)
    return open_pack(folder)


def open_pack(folder: Path) -> SampleSet:
    """Open a packed set as a memory map. Raises DataError if a size or the labels' checksum is wrong."""
    manifest = read_manifest(folder)
    try:
        shape = tuple(int(n) for n in manifest["shape"])
        classes, fingerprint = [str(c) for c in manifest["classes"]], str(manifest["fingerprint"])
        name, split = str(manifest["name"]), str(manifest["split"])
        size, expected = (folder / "images.u8").stat().st_size, int(np.prod(shape, dtype=object))
        if len(shape) != 4 or min(shape) < 1 or size != expected:
            raise _damaged(folder / "images.u8", f"{size} bytes, expected {expected}")
        images = np.memmap(folder / "images.u8", np.uint8, "r", shape=shape)
        labels = None
        if (labels_sha256 := manifest["labels_sha256"]) is not None:
            raw = (folder / "labels.i64").read_bytes()
            if len(raw) != 8 * shape[0] or hashlib.sha256(raw).hexdigest() != labels_sha256:
                raise _damaged(folder / "labels.i64", "its sha256 does not match the manifest")
            labels = np.frombuffer(raw, "<i8").astype(np.int64)
            if labels.min() < 0 or labels.max() >= len(classes):
                raise _damaged(folder / "labels.i64", f"labels that are not of the {len(classes)} classes")
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / "manifest.json", f"not a manifest ({error!r})") from None
    except OSError as error:
        raise _damaged(Path(error.filename or folder), error.strerror or "unreadable") from None
    return SampleSet(images, labels, classes, fingerprint, name, split, warnings_of(manifest), manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a pack. Raises DataError if it is missing, invalid or of another format."""
    file = folder / "manifest.json"
    try:
        manifest = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file, f"unreadable ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        version = manifest.get("format") if isinstance(manifest, dict) else None
        raise _damaged(file, f"pack format {version!r}, expected {FORMAT}")
    return manifest


def verify_pack(folder: Path) -> None:
    """Compare the checksums of a whole pack with its manifest. Raises DataError on a mismatch."""
    packed = open_pack(folder)
    digest = hashlib.sha256()
    with open(folder / "images.u8", "rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    actual = finish_fingerprint(digest, packed.images.shape, packed.labels)
    if digest.hexdigest() != packed.manifest["images_sha256"] or actual != packed.fingerprint:
        raise _damaged(folder / "images.u8", "its sha256 does not match the manifest")


def warnings_of(manifest: dict[str, Any]) -> tuple[str, ...]:
    """Non-fatal findings about a packed set, one sentence each."""
    warnings = []
    counts: dict[str, int] = manifest.get("counts", {})
    if len(manifest["classes"]) == 1:
        warnings.append(f"all images are of one class, {manifest['classes'][0]!r}")
    if empty := [
        c for c, n in zip(manifest["classes"], manifest["class_counts"] or [], strict=False) if not n
    ]:
        warnings.append(f"no images of class {', '.join(map(repr, empty[:5]))}")
    if counts.get("skipped"):
        warnings.append(f"{counts['skipped']} broken images were skipped, such as {manifest['examples'][0]}")
    if counts.get("too_small"):
        warnings.append(f"{counts['too_small']} images were skipped as too small")
    if (official := manifest.get("source", {}).get("official_images")) not in (None, manifest["count"]):
        warnings.append(f"{manifest['count']:,} images; the official split has {official:,}")
    if counts.get("enlarged"):
        warnings.append(f"{counts['enlarged']} images are smaller than the resolution and were enlarged")
    return tuple(warnings)


def prepare(dataset: Dataset, splits: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Pack ``splits`` (None: the training split) of a dataset and of its ``reference``.

    Returns their manifests, each with ``folder`` added.
    """
    manifests = []
    for source in dict.fromkeys((dataset, dataset.reference)):
        for split in splits or (dataset.split,):
            manifest = source.load(split=split).manifest
            folder = source.pack_folder(split)
            manifests.append({**manifest, "folder": None if folder is None else str(folder)})
    return manifests


def info(dataset: Dataset, verify: bool = False) -> dict[str, Any]:
    """Describe a dataset and its prepared splits, without packing or downloading.

    ``packs`` maps each split to its manifest plus ``folder``, or to None if it is not prepared. ``verify``
    compares the sha256 of every pack and puts a mismatch into ``error``. ``begun`` is the size in bytes of an
    unfinished pack, ``absent`` the reason why a split has no source. Raises DataError if the training split
    has no source.
    """
    packs: dict[str, dict[str, Any] | None] = {}
    splits = dataset.splits()
    for split in dict.fromkeys([dataset.split, *splits]):
        try:
            folder = dataset.pack_folder(split)
        except DataError as error:
            if split == dataset.split:
                raise
            packs[split] = {"absent": str(error)}
            continue
        packs[split] = None
        if folder is not None and folder.exists():
            try:
                packs[split] = {**read_manifest(folder), "folder": str(folder)}
                open_pack(folder)
                if verify:
                    verify_pack(folder)
            except GanlabError as error:
                packs[split] = {**(packs[split] or {}), "folder": str(folder), "error": str(error)}
        elif folder is not None and (partial_folder(folder) / JOURNAL).exists():
            packs[split] = {"begun": (partial_folder(folder) / "images.u8").stat().st_size}
    return {
        "name": dataset.name,
        "split": dataset.split,
        "splits": list(splits),
        "resolution": dataset.resolution,
        "channels": dataset.channels,
        "cache": str(cache_dir() / "datasets"),
        "packs": packs,
    }


def outdated(recipe: Recipe) -> list[Path]:
    """Packs with the same options and source path as ``recipe``, made before the source files changed."""
    folders = []
    for folder in recipe.folder.parent.glob(f"{recipe.folder.name.removesuffix(recipe.key)}*"):
        if folder != recipe.folder:
            with suppress(DataError, KeyError, AttributeError):
                old = read_manifest(folder)
                same = old.get("transform") == json.loads(json.dumps(recipe.transform))
                if same and _places(old["source"]) == _places(recipe.source):
                    folders.append(folder)
    return sorted(folders)


def _places(source: Any) -> list[Any]:
    """All values of ``path`` in a source's identity."""
    inner = [_places(value) for _, value in sorted(source.items()) if isinstance(value, dict)]
    return [source.get("path"), *inner]


def _usable(folder: Path) -> SampleSet | None:
    try:
        return open_pack(folder)
    except DataError:
        return None


def _damaged(file: Path, what: str) -> DataError:
    return DataError(str(file), what, "remove its folder to pack the dataset again")


def partial_folder(folder: Path) -> Path:
    """Temporary folder of the pack ``folder`` while it is being written."""
    return folder.with_name(f".tmp-{folder.name}-part")


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary folders of earlier attempts, except the one to resume from."""
    for stale in folder.parent.glob(f".tmp-{folder.name}-*"):
        if stale != partial_folder(folder):
            shutil.rmtree(stale, ignore_errors=True)
