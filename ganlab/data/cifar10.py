"""CIFAR-10 as its author ships it: the "python version" (pickles) or the "binary version".

50,000 training and 10,000 test images, 32x32 RGB, ten classes. Krizhevsky 2009, "Learning Multiple Layers of
Features from Tiny Images". Both versions hold the same images in the same order.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from ganlab.data.fingerprint import Labels, Pixels
from ganlab.data.formats.images import Resample
from ganlab.data.formats.unpickle import unpickle
from ganlab.data.packing.originals import Original, OriginalDataset
from ganlab.data.packing.writer import Writer
from ganlab.schema import Range, checked

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
TRAIN = [f"data_batch_{i}" for i in range(1, 6)]
BATCHES = {"train": TRAIN, "test": ["test_batch"], "train+test": [*TRAIN, "test_batch"]}
META, META_TEXT = "batches.meta", "batches.meta.txt"
SUMS = {  # md5 of the pickles, sha256 of the binary files
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
BLOCK = 500  # images resized at a time
LIMIT = 1 << 27  # bytes of one batch file; the original's have 31 MB


class Cifar10(OriginalDataset):
    """CIFAR-10 from ``path``: the archive, its unpacked folder, or a folder that holds one of them.

    path: None looks in the cache and downloads the archive there if needed (170 MB, by checksum).
    split: ``train`` (50,000), ``test`` (10,000) or ``train+test``. resolution: 32 is the original; others are
    resampled by Pillow's ``resample``. verify: every file must have the original's checksum; false admits
    sets of your own in either format (the pickles are read without running code in both cases).
    """

    name = "cifar10"
    file_names = (*SUMS, META_TEXT)
    sums = SUMS
    folder_names = ("cifar-10-batches-py", "cifar-10-batches-bin")
    side = 32

    @checked
    def __init__(
        self,
        path: str | None = None,
        split: Literal["train", "test", "train+test"] = "train",
        resolution: Annotated[int, Range(ge=4, le=512)] = 32,
        resample: Resample = "bilinear",
        verify: bool = True,
    ) -> None:
        super().__init__(path, split, resolution, resample, verify)

    def splits(self) -> tuple[str, ...]:
        return tuple(BATCHES)

    def fill(self, writer: Writer, split: str, original: Original) -> None:
        batch_names = BATCHES[split]
        names = {*batch_names, *(f"{name}.bin" for name in batch_names), META, META_TEXT}
        files: dict[str, bytes] = {}
        for name, member in original.files(names):
            files[name] = original.read(member, LIMIT)
            original.check(name, files[name], SUMS.get(name) if self.verify else None)
        ending = ".bin" if any(name.endswith(".bin") for name in files) else ""
        if missing := [name + ending for name in batch_names if name + ending not in files]:
            raise original.missing(missing)
        writer.classes = _classes(original, files)
        for name in batch_names:
            raw = files.pop(name + ending)
            try:
                images, labels = (_binary if ending else _pickled)(raw)
                if labels.min() < 0 or labels.max() >= len(writer.classes):
                    raise ValueError(f"label {labels.max()} in a set of {len(writer.classes)} classes")
            except ValueError as error:
                raise original.file_error(name + ending, f"not a batch of CIFAR-10 ({error})") from None
            self.add(writer, np.array_split(images, max(1, len(images) // BLOCK)), len(images), name)
            writer.add_labels(labels)


def _classes(original: Original, files: dict[str, bytes]) -> list[str]:
    """The class names of the file that comes with the batches, or the known ones without it."""
    if META in files:
        try:
            names = unpickle(files[META])["label_names"]
            if isinstance(names, list) and names and all(isinstance(n, str) for n in names):
                return [str(n) for n in names]
        except (ValueError, KeyError, TypeError) as error:
            raise original.file_error(META, f"not the names of CIFAR-10's classes ({error})") from None
    if META_TEXT in files and (names := files[META_TEXT].decode("utf-8-sig", "replace").split()):
        return names
    return CLASSES


def _pickled(raw: bytes) -> tuple[Pixels, Labels]:
    """A batch of the python version: a dict with ``data`` (n, 3072) uint8 and ``labels``, n numbers."""
    batch = unpickle(raw)
    if not isinstance(batch, dict) or "data" not in batch or "labels" not in batch:
        has = ", ".join(map(str, batch)) if isinstance(batch, dict) else type(batch).__name__
        raise ValueError(f"it has no data and labels, only {has}")
    data, labels = batch["data"], batch["labels"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise ValueError("data is not uint8 (n, 3072)")
    if not isinstance(labels, list) or not all(type(n) is int for n in labels):
        raise ValueError("labels are not a list of integers")
    if not labels or len(labels) != len(data):
        raise ValueError(f"{len(labels)} labels for {len(data)} images")
    return data.reshape(-1, 3, 32, 32), np.array(labels, np.int64)


def _binary(raw: bytes) -> tuple[Pixels, Labels]:
    """A batch of the binary version: records of one byte label and 3072 bytes of pixels."""
    if not raw or len(raw) % 3073:
        raise ValueError(f"{len(raw)} bytes are not whole records of 3073")
    records = np.frombuffer(raw, np.uint8).reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)
