"""MNIST from its IDX files, gzipped as its authors ship them or unpacked: grey digits of 28x28.

60,000 training and 10,000 test images. LeCun, Cortes & Burges 1998, "The MNIST database of handwritten
digits".
"""

from __future__ import annotations

import io
import struct
import zlib
from gzip import GzipFile
from typing import Annotated, Any, Literal

import numpy as np

from ganlab.data.fingerprint import Labels, Pixels
from ganlab.data.formats.images import Resample
from ganlab.data.packing.download import Remote, remotes
from ganlab.data.packing.originals import Original, SeparateFiles
from ganlab.data.packing.writer import Recipe, Writer
from ganlab.errors import DataError
from ganlab.schema import Count, Range, Seed, checked

SIDE = 28
CLASSES = [str(digit) for digit in range(10)]
FILES = {  # of images and of labels
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SUMS = {  # md5 of what is in them: zipped again they are another file, and the same images
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
IMAGES, LABELS = 0x803, 0x801  # the first four bytes: unsigned bytes, in three dimensions or in one
LIMIT = 1 << 27  # bytes of a file, unpacked; the largest of the originals has 47 MB
BLOCK = 1000  # images resized at a time


def _spellings(name: str) -> list[str]:
    """The author's name of a file and Kaggle's, zipped and not."""
    return [spelling + end for spelling in (name, name.replace("-idx", ".idx")) for end in (".gz", "")]


class Mnist(SeparateFiles):
    """MNIST from ``path``: a folder with the original files, gzipped or not, or by Kaggle's names of them.

    path: None looks in the cache and downloads there what is needed of the four files (11.6 MB, by checksum).
    split: ``train`` (60,000) or ``test`` (10,000). resolution: 28 is the original; 32 puts two black pixels
    around it; others are resampled by Pillow's ``resample`` from the original. limit: of ``split`` the first
    so many after a shuffle by ``limit_seed``, as the unused ``limit`` of WGAN-GP's loader has it; the split
    ``rest`` is then what is left out of the same files. verify: the files, unpacked, must have the
    originals' checksums; false admits sets of your own in this format.
    """

    name = "mnist"
    channels = 1
    file_names = tuple(other for name in SUMS for other in _spellings(name))
    sums = SUMS
    folder_names = ("MNIST/raw", "mnist")
    side, padded = SIDE, 32

    @checked
    def __init__(
        self,
        path: str | None = None,
        split: Literal["train", "test"] = "train",
        resolution: Annotated[int, Range(ge=4, le=512)] = 32,
        resample: Resample = "bilinear",
        limit: Count | None = None,
        limit_seed: Seed = 0,
        verify: bool = True,
    ) -> None:
        super().__init__(path, split, resolution, resample, verify)
        self.limit, self.limit_seed = limit, limit_seed

    def splits(self) -> tuple[str, ...]:
        return (*FILES, "rest") if self.limit else tuple(FILES)

    def fill(self, writer: Writer, split: str, original: Original) -> None:
        images, labels = self._read(original, self.split if split == "rest" else split)
        if self.limit and split in (self.split, "rest"):
            rows = self._rows(len(images), split)
            images, labels = images[rows], labels[rows]
        self.add(writer, np.array_split(images[:, None], -(-len(images) // BLOCK)), len(images), split)
        writer.classes = CLASSES
        writer.add_labels(labels)

    def _rows(self, count: int, split: str) -> Any:
        """Which images of the files ``split`` has: the first of a shuffle, or (``rest``) those after them."""
        import torch

        from ganlab.rng import generator

        assert self.limit is not None
        if self.limit > count or (split == "rest" and self.limit == count):
            what = "leaves none of" if self.limit == count else "is more than"
            what = f"{self.limit} {what} the {count} images of {self.split}"
            raise DataError("dataset.limit", what, "lower it")
        order = torch.randperm(count, generator=generator("cpu", self.limit_seed, "order")).numpy()
        return order[self.limit :] if split == "rest" else order[: self.limit]

    def sized(self, images: Pixels) -> Pixels:
        if self.resolution == self.padded:
            return np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
        return super().sized(images)

    def _read(self, original: Original, split: str) -> tuple[Pixels, Labels]:
        """Images (n, 28, 28) and labels (n,) of the two files of ``split``. Raises DataError."""
        files: dict[str, tuple[str, bytes]] = {}
        for name, member in original.files([other for n in FILES[split] for other in _spellings(n)]):
            raw, stem = original.read(member, LIMIT), name.removesuffix(".gz").replace(".idx", "-idx")
            data = _unzipped(original, name, raw) if name.endswith(".gz") else raw
            original.check(name, data, SUMS[stem] if self.verify else None)
            files.setdefault(stem, (name, data))
        if missing := [f"{name}.gz" for name in FILES[split] if name not in files]:
            fix = "put it there" if len(missing) == 1 else "put them there"
            for other in FILES:
                names = [spelling for name in FILES[other] for spelling in _spellings(name)]
                if other != split and any(True for _ in original.files(names)):
                    fix += f", or set dataset.split={other}: its files are there"
            raise DataError(original.source.path, f"contains no {' and no '.join(missing)}", fix)
        images, labels = (
            _array(original, *files[name], magic)
            for name, magic in zip(FILES[split], (IMAGES, LABELS), strict=True)
        )
        name = files[FILES[split][0]][0]
        if images.shape[1:] != (SIDE, SIDE):
            what = f"images of {images.shape[2]}x{images.shape[1]} pixels, not {SIDE}x{SIDE}"
            raise original.file_error(name, what, "give files of MNIST's own format")
        label_name = files[FILES[split][1]][0]
        if len(labels) != len(images):
            raise original.file_error(label_name, f"{len(labels)} labels for {len(images)} images")
        if len(images) == 0:
            raise original.file_error(name, "contains no images")
        if labels.max() >= len(CLASSES):
            raise original.file_error(label_name, f"label {labels.max()} in a set of {len(CLASSES)} classes")
        return images, labels.astype(np.int64)

    def _remotes(self, split: str) -> list[Remote]:
        names = FILES[split if split in FILES else self.split]
        return [remote for remote in remotes(self.name) if remote.file.removesuffix(".gz") in names]

    def _recipe(self, split: str, original: Original | None) -> Recipe:
        recipe = super()._recipe(split, original)
        if self.limit and split in (self.split, "rest"):
            chosen = {"limit": self.limit, "limit_seed": self.limit_seed, "of": self.split}
            recipe.transform.update(chosen)
        return recipe


def _array(original: Original, name: str, data: bytes, magic: int) -> Pixels:
    """The bytes of an IDX file, uint8, in its own shape. Raises DataError."""
    axes = magic & 0xFF
    head = 4 * (1 + axes)
    if len(data) < head:
        raise original.file_error(name, f"ends within its header, after {len(data)} of {head} bytes")
    first, *shape = struct.unpack(f">{1 + axes}I", data[:head])
    if first != magic:
        what = "images" if magic == IMAGES else "labels"
        raise original.file_error(
            name, f"begins with {first:#010x}; an IDX file of {what} with {magic:#010x}"
        )
    expected = int(np.prod(shape, dtype=object))
    if len(data) - head != expected:
        dimensions = "x".join(map(str, shape))
        raise original.file_error(
            name, f"{len(data) - head} bytes after its header, which declares {dimensions} = {expected}"
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _unzipped(original: Original, name: str, raw: bytes) -> bytes:
    try:
        with GzipFile(fileobj=io.BytesIO(raw)) as file:
            data = file.read(LIMIT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise original.file_error(name, f"not a complete gzip file ({error})") from None
    if len(data) > LIMIT:
        raise original.file_error(name, f"more than {LIMIT:,} bytes unpacked", "give the original")
    return data
