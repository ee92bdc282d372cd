"""STL-10 from its binary files: 96x96 RGB, packed at 48x48 by default.

5,000 labelled training and 8,000 test images of ten classes, and 100,000 unlabelled ones of a wider kind.
Coates, Ng & Lee 2011, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning". The SN-GAN
paper does not say which split it trained on; the 100,000 at 48x48 is how its readers take it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np

from ganlab.data.fingerprint import Labels, Pixels
from ganlab.data.formats.images import Resample
from ganlab.data.formats.source import Member
from ganlab.data.packing.originals import Original, OriginalDataset
from ganlab.data.packing.writer import Writer
from ganlab.schema import Range, checked

CLASSES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
SIDE = 96
IMAGE_BYTES = 3 * SIDE * SIDE
BLOCK = 256  # images read at a time
PARTS = {
    "unlabeled": ["unlabeled"],
    "train": ["train"],
    "test": ["test"],
    "train+unlabeled": ["train", "unlabeled"],
}
NAMES = "class_names.txt"
SUMS = {  # md5
    "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
    "train_y.bin": "5a34089d4802c674881badbb80307741",
    "unlabeled_X.bin": "5242ba1fed5e4be9e1e742405eb56ca4",
    "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
    "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
}


class Stl10(OriginalDataset):
    """STL-10 from ``path``: ``stl10_binary.tar.gz``, the folder unpacked from it, or a folder that holds one.

    path: None looks in the cache and downloads the archive there if needed (2.6 GB, by checksum).
    split: ``unlabeled`` (100,000), ``train`` (5,000), ``test`` (8,000) or ``train+unlabeled`` (105,000, no
    labels). resolution: each 96x96 image is resampled by Pillow's ``resample``, antialiased; bilinear to 48
    is what the reimplementations do. verify: as for CIFAR-10; false admits sets of your own in this format.
    """

    name = "stl10"
    file_names = (*SUMS, NAMES)
    sums = SUMS
    folder_names = ("stl10_binary",)
    side = SIDE

    @checked
    def __init__(
        self,
        path: str | None = None,
        split: Literal["unlabeled", "train", "test", "train+unlabeled"] = "unlabeled",
        resolution: Annotated[int, Range(ge=4, le=512)] = 48,
        resample: Resample = "bilinear",
        verify: bool = True,
    ) -> None:
        super().__init__(path, split, resolution, resample, verify)
        self.labelled = split in ("train", "test")

    def splits(self) -> tuple[str, ...]:
        return tuple(PARTS)

    def fill(self, writer: Writer, split: str, original: Original) -> None:
        """One pass over the source per part: an archive need not have them in our order."""
        for part in PARTS[split]:
            labels_file = f"{part}_y.bin" if split == part != "unlabeled" else None
            required = {f"{part}_X.bin", NAMES, *([labels_file] if labels_file else [])}
            present: set[str] = set()
            small: dict[str, bytes] = {}
            for name, member in original.files(required):
                present.add(name)
                if name == f"{part}_X.bin":
                    with original.source.reading():
                        self._read(writer, original, member, name)
                else:
                    small[name] = original.read(member, 1 << 20)
                    original.check(name, small[name], SUMS.get(name) if self.verify else None)
                if present == required:
                    break
            if missing := required - present - {NAMES}:
                raise original.missing(missing)
            if labels_file:
                writer.classes = small.get(NAMES, b"").decode("utf-8-sig", "replace").split() or CLASSES
                writer.add_labels(self._labels(original, labels_file, small[labels_file], writer))

    def _read(self, writer: Writer, original: Original, member: Member, name: str) -> None:
        count, rest = divmod(member.size, IMAGE_BYTES)
        if rest or not count:
            what = f"{member.size} bytes are not whole images of {IMAGE_BYTES} (3x96x96)"
            raise original.file_error(name, what)
        digest = hashlib.md5(usedforsecurity=False)

        def blocks() -> Iterator[Pixels]:
            with member.open() as file:
                for start in range(0, count, BLOCK):
                    size = min(BLOCK, count - start) * IMAGE_BYTES
                    raw = file.read(size)
                    if len(raw) != size:
                        raise original.file_error(name, f"ends after {start} of {count} images")
                    if self.verify:
                        digest.update(raw)
                    # stored column by column
                    yield np.frombuffer(raw, np.uint8).reshape(-1, 3, SIDE, SIDE).transpose(0, 1, 3, 2)

        self.add(writer, blocks(), count, name)
        if self.verify:
            original.check(name, digest, SUMS[name])

    def _labels(self, original: Original, name: str, raw: bytes, writer: Writer) -> Labels:
        """Bytes 1 to 10 in the file; 0 to 9 in ganlab."""
        labels = np.frombuffer(raw, np.uint8).astype(np.int64) - 1
        if len(labels) != writer.images:
            raise original.file_error(name, f"{len(labels)} labels for {writer.images} images")
        if labels.min() < 0 or labels.max() >= len(writer.classes):
            span = f"labels from {labels.min() + 1} to {labels.max() + 1}"
            raise original.file_error(name, f"{span}, expected 1 to {len(writer.classes)}")
        return labels
