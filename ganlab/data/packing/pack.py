"""Packed datasets: one raw uint8 file that is memory-mapped, its labels, and a manifest.

    <cache>/datasets/<name>-<split>-<resolution>-<key>/
        images.u8       N * C * H * W bytes, row-major (N, C, H, W)
        labels.i64      N little-endian int64, where there are labels
        manifest.json   format, counts, shape, classes, source, transform, sha256 sums, fingerprint

The key is a hash of the source's identity and the transform: a changed source or option is another pack. A
pack is written beside its final name and renamed once it is whole and on the disk; what a killed preparation
left there is continued.

What is checked: the sums are made of the bytes on their way to the disk. Opening a pack, at the start of a
run, reads the manifest, compares the size of ``images.u8`` and the sha256 of the labels: a few milliseconds.
The sha256 of the pixels is compared by ``ganlab data info NAME verify=true`` (1 GB/s), and on continuing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ganlab.data.base import Dataset, SampleSet
from ganlab.data.fingerprint import HASH_BLOCK, finish_fingerprint
from ganlab.data.formats.files import locked, log, megabytes, writing
from ganlab.data.packing.download import REMOTES as REMOTES
from ganlab.data.packing.journal import NAME as JOURNAL
from ganlab.data.packing.writer import FORMAT, Recipe, Writer
from ganlab.errors import DataError, GanlabError
from ganlab.system.files import sync_folder
from ganlab.system.paths import cache_dir


def pack(recipe: Recipe, fill: Callable[[Writer], None]) -> SampleSet:
    """The packed set of ``recipe``; made by ``fill`` if it is not there yet, made anew if it is damaged.

    Of several processes that want the same pack one makes it and the others wait. Raises what ``fill`` does,
    and EnvError if the cache cannot be written; whatever happens, nothing half-made gets the final name. What
    ``fill`` committed (``Writer.commit``) stays for the next try.
    """
    folder = recipe.folder
    if (found := _usable(folder)) is not None:
        return found
    parent = folder.parent
    with ExitStack() as stack:
        stack.enter_context(writing(parent))
        stack.enter_context(locked(parent / ".locks" / folder.name, f"packing {recipe.name} {recipe.split}"))
        _sweep(folder)  # the lock is ours: whoever left something is dead
        if (found := _usable(folder)) is not None:
            return found
        if folder.exists() or folder.is_symlink():
            log.warning("%s: the packed dataset is damaged; packing it again", folder)
        with _beside(folder) as temporary:
            if not _finished(temporary):
                _tell_of_reading(temporary)
                writer = Writer(temporary, recipe.shape)
                try:
                    if writer.position is not None:
                        log.warning("%s: resuming after the first %s images", folder, f"{writer.images:,}")
                    fill(writer)
                    writer.finish(recipe)
                finally:
                    writer.close()
            if folder.exists() or folder.is_symlink():
                folder.rename(temporary.with_name(f".tmp-{folder.name}-old"))
            try:
                temporary.rename(folder)
            except OSError:  # without locks another process may have been first
                if _usable(folder) is None:
                    raise
            sync_folder(parent)
        _sweep(folder)
    return open_pack(folder)


def open_pack(folder: Path) -> SampleSet:
    """A packed set, memory-mapped. Raises DataError if a size or the labels' sum is wrong."""
    manifest = read_manifest(folder)
    try:
        shape = tuple(int(n) for n in manifest["shape"])
        classes, fingerprint = [str(c) for c in manifest["classes"]], str(manifest["fingerprint"])
        name, split = str(manifest["name"]), str(manifest["split"])
        size, wanted = (folder / "images.u8").stat().st_size, int(np.prod(shape, dtype=object))
        if len(shape) != 4 or min(shape) < 1 or size != wanted:
            raise _damaged(folder / "images.u8", f"{size} bytes, expected {wanted}")
        images = np.memmap(folder / "images.u8", np.uint8, "r", shape=shape)
        labels = None
        if (promised := manifest["labels_sha256"]) is not None:
            raw = (folder / "labels.i64").read_bytes()
            if len(raw) != 8 * shape[0] or hashlib.sha256(raw).hexdigest() != promised:
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
    """The manifest of a pack. Raises DataError if it is missing, not one, or of a newer format."""
    file = folder / "manifest.json"
    try:
        manifest = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file, f"unreadable ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise _damaged(file, f"pack format {found!r}, this ganlab reads {FORMAT}")
    return manifest


def verify_pack(folder: Path) -> None:
    """Read all of a pack and compare its sums with the manifest. Raises DataError at the first difference."""
    packed = open_pack(folder)
    digest = hashlib.sha256()
    with open(folder / "images.u8", "rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    whole = finish_fingerprint(digest, packed.images.shape, packed.labels)
    if digest.hexdigest() != packed.manifest["images_sha256"] or whole != packed.fingerprint:
        raise _damaged(folder / "images.u8", "its sha256 does not match the manifest")


def warnings_of(manifest: dict[str, Any]) -> tuple[str, ...]:
    """What a user should hear of a set, in sentences; none of it is fatal."""
    said = []
    counts: dict[str, int] = manifest.get("counts", {})
    if len(manifest["classes"]) == 1:
        said.append(f"all images are of one class, {manifest['classes'][0]!r}")
    if empty := [
        c for c, n in zip(manifest["classes"], manifest["class_counts"] or [], strict=False) if not n
    ]:
        said.append(f"no images of class {', '.join(map(repr, empty[:5]))}")
    if counts.get("skipped"):
        said.append(f"{counts['skipped']} broken images were skipped, such as {manifest['examples'][0]}")
    if counts.get("too_small"):
        said.append(f"{counts['too_small']} images were skipped as too small")
    if (official := manifest.get("source", {}).get("official_images")) not in (None, manifest["count"]):
        said.append(f"{manifest['count']:,} images; the official split has {official:,}")
    if counts.get("enlarged"):
        said.append(f"{counts['enlarged']} images are smaller than the resolution and were enlarged")
    return tuple(said)


def prepare(dataset: Dataset, splits: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Make the packs of ``splits`` (None: the one that training uses), and those that scores compare with.

    Returns manifests plus ``folder``.
    """
    manifests = []
    for one in dict.fromkeys((dataset, dataset.reference)):
        for split in splits or (dataset.split,):
            manifest = one.load(split=split).manifest
            folder = one.pack_folder(split)
            manifests.append({**manifest, "folder": None if folder is None else str(folder)})
    return manifests


def info(dataset: Dataset, verify: bool = False) -> dict[str, Any]:
    """What a dataset is and which of its splits are prepared; packs nothing, downloads nothing.

    ``packs`` maps each split to its manifest plus ``folder``, or to None if it is not prepared. With
    ``verify`` every pack is read and its sha256 compared: ``error`` in its entry says what is wrong.
    ``begun`` is the size in bytes of one that was not finished, ``absent`` says why a split has no source
    here. Raises DataError if the training split has none.
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
    """Packs made by the same options from the same place as its files were before."""
    found = []
    for folder in recipe.folder.parent.glob(f"{recipe.folder.name.removesuffix(recipe.key)}*"):
        if folder != recipe.folder:
            with suppress(DataError, KeyError, AttributeError):
                old = read_manifest(folder)
                same = old.get("transform") == json.loads(json.dumps(recipe.transform))
                if same and _places(old["source"]) == _places(recipe.source):
                    found.append(folder)
    return sorted(found)


def _places(source: Any) -> list[Any]:
    """Every ``path`` in a source's identity."""
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
    """Where the pack ``folder`` lies while it is made."""
    return folder.with_name(f".tmp-{folder.name}-part")


def _sweep(folder: Path) -> None:
    """Remove what earlier tries left beside ``folder``, but for what can be continued."""
    for stale in folder.parent.glob(f".tmp-{folder.name}-*"):
        if stale != partial_folder(folder):
            shutil.rmtree(stale, ignore_errors=True)


def _finished(temporary: Path) -> bool:
    """Whether an earlier try got as far as the rename."""
    return not (temporary / JOURNAL).exists() and _usable(temporary) is not None


def _tell_of_reading(temporary: Path) -> None:
    """What an earlier try left is read and checked: a minute for some 50 GB."""
    pixels = temporary / "images.u8"
    if (temporary / JOURNAL).exists() and pixels.exists() and pixels.stat().st_size > 1e9:
        log.warning("%s: checking the %s there are", temporary, megabytes(pixels.stat().st_size))


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """The folder beside ``folder`` that becomes it; kept at the end only if it can be continued."""
    temporary = partial_folder(folder)
    temporary.mkdir(exist_ok=True)
    try:
        yield temporary
    finally:
        if not (temporary / JOURNAL).exists():
            shutil.rmtree(temporary, ignore_errors=True)
