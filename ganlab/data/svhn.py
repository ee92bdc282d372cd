"""SVHN from its original .mat files: house numbers, 32x32 RGB, one digit in the middle of each.

73,257 training, 26,032 test and 531,131 extra images of ten digits. Netzer et al. 2011, "Reading Digits in
Natural Images with Unsupervised Feature Learning".
"""

from __future__ import annotations

import io
import zlib
from typing import Annotated, Any, Literal

import numpy as np

from ganlab.data.fingerprint import Labels, Pixels
from ganlab.data.formats.images import Resample
from ganlab.data.packing.download import Remote, remotes
from ganlab.data.packing.originals import Original, SeparateFiles
from ganlab.data.packing.writer import Writer
from ganlab.schema import Range, checked

SIDE = 32
CLASSES = [str(digit) for digit in range(10)]
PARTS = {"train": ["train"], "test": ["test"], "extra": ["extra"], "train+extra": ["train", "extra"]}
SUMS = {  # md5
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    "extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7",
}
LIMIT = 1 << 31  # bytes of a file, packed and unpacked; the largest of the originals has 1.6 GB unpacked
BLOCK = 1000  # images resized at a time


class Svhn(SeparateFiles):
    """SVHN's cropped digits from ``path``: a folder with the original files, ``train_32x32.mat`` and so on.

    path: None looks in the cache and downloads there what the split needs (182 MB, 64 MB; extra: 1.3 GB; by
    checksum). split: ``train`` (73,257), ``test`` (26,032), ``extra`` (531,131) or ``train+extra``, which
    takes 4 GB of memory to pack. resolution: 32 is the original; others are resampled by Pillow's
    ``resample``. verify: as for CIFAR-10; false admits sets of your own in this format. Label 10 of the files
    is the digit 0.
    """

    name = "svhn"
    file_names = tuple(SUMS)
    sums = SUMS
    folder_names = ("svhn", "SVHN")
    side = SIDE

    @checked
    def __init__(
        self,
        path: str | None = None,
        split: Literal["train", "test", "extra", "train+extra"] = "train",
        resolution: Annotated[int, Range(ge=4, le=512)] = 32,
        resample: Resample = "bilinear",
        verify: bool = True,
    ) -> None:
        super().__init__(path, split, resolution, resample, verify)

    def splits(self) -> tuple[str, ...]:
        return tuple(PARTS)

    def fill(self, writer: Writer, split: str, original: Original) -> None:
        writer.classes = CLASSES
        for part in PARTS[split]:
            name = f"{part}_32x32.mat"
            member = next((m for n, m in original.files([name]) if n == name), None)
            if member is None:
                raise original.missing([name])
            raw = original.read(member, LIMIT)
            original.check(name, raw, SUMS[name] if self.verify else None)
            try:
                images, labels = arrays(raw)
            except ValueError as error:
                raise original.file_error(name, f"not a file of SVHN's digits ({error})") from None
            blocks = (images[start : start + BLOCK] for start in range(0, len(images), BLOCK))
            self.add(writer, blocks, len(images), name)
            writer.add_labels(labels)

    def _remotes(self, split: str) -> list[Remote]:
        names = {f"{part}_32x32.mat" for part in PARTS[split]}
        return [remote for remote in remotes(self.name) if remote.file in names]


def arrays(raw: bytes) -> tuple[Pixels, Labels]:
    """Images (n, 3, 32, 32) and labels (n,) of a MATLAB 5 file: X (32, 32, 3, n) and y (n, 1), both uint8.

    Sizes are read from the headers before any array is. Raises ValueError.
    """
    from scipy.io import loadmat, whosmat
    from scipy.io.matlab import MatReadError

    try:
        sizes = {name: (shape, kind) for name, shape, kind in whosmat(io.BytesIO(raw), appendmat=False)}
        for name in ("X", "y"):
            if name not in sizes:
                raise ValueError(f"it has no {name}, only {', '.join(sizes) or 'nothing'}")
            if sizes[name][1] != "uint8":
                raise ValueError(f"{name} is {sizes[name][1]}, not uint8")
        shape = sizes["X"][0]
        if len(shape) != 4 or shape[:3] != (SIDE, SIDE, 3) or not 0 < shape[3] <= LIMIT // (3 * SIDE * SIDE):
            raise ValueError(f"X is {shape}, not (32, 32, 3, n)")
        if sizes["y"][0] != (shape[3], 1):
            raise ValueError(f"y is {sizes['y'][0]} for {shape[3]} images")
        content: dict[str, Any] = loadmat(io.BytesIO(raw), appendmat=False, variable_names=["X", "y"])
        images, labels = np.asarray(content["X"]), np.asarray(content["y"]).ravel().astype(np.int64)
    except ValueError:
        raise
    except (MatReadError, OSError, KeyError, TypeError, IndexError, NotImplementedError, zlib.error) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if labels.min() < 1 or labels.max() > 10:
        raise ValueError(f"labels from {labels.min()} to {labels.max()}, expected 1 to 10")
    return images.transpose(3, 2, 0, 1), labels % 10
