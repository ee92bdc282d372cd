"""The embedded default: scikit-learn's handwritten digits, offline and in memory.

1,797 grey images of 8x8 pixels with values 0..16, ten classes: the test half of the UCI set "Optical
Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998).
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from ganlab.data.base import Dataset, SampleSet, memory_manifest
from ganlab.data.fingerprint import fingerprint
from ganlab.schema import Range, checked


class Digits(Dataset):
    """scikit-learn's digits, enlarged to ``resolution`` by Pillow's bicubic (in float, then rounded).

    A black margin of one source pixel is put around each, or strokes would be cut at the edge.
    One split, ``train``: all 1,797 images. The set is too small to hold some out for a score.
    ``channels=3`` repeats the grey channel, for nets and extractors that want RGB.
    """

    name = "digits"

    @checked
    def __init__(
        self,
        resolution: Annotated[int, Range(ge=8, le=512)] = 32,
        channels: Literal[1, 3] = 1,
        split: Literal["train"] = "train",
    ) -> None:
        self.resolution, self.channels, self.split = resolution, channels, split

    def splits(self) -> tuple[str, ...]:
        return ("train",)

    def load(self, *, split: str | None = None) -> SampleSet:
        import sklearn
        from PIL import Image
        from sklearn.datasets import load_digits

        split = self.resolve_split(split)
        source = load_digits()
        size = (self.resolution, self.resolution)
        small = np.pad(source.images.astype(np.float32) * (255 / 16), ((0, 0), (1, 1), (1, 1)))
        large = np.stack(
            [np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BICUBIC)) for i in small]
        )
        grey = np.clip(np.rint(large), 0, 255).astype(np.uint8)[:, None]
        images = np.repeat(grey, self.channels, axis=1)
        labels = source.target.astype(np.int64)
        classes = [str(name) for name in source.target_names]
        identity = fingerprint(images, labels)
        manifest = memory_manifest(
            self, split, images, identity,
            classes=classes, class_counts=np.bincount(labels).tolist(),
            source={"kind": "embedded", "in": f"scikit-learn {sklearn.__version__}"},
            transform={"resolution": self.resolution, "channels": self.channels, "resample": "bicubic"},
        )  # fmt: skip
        return SampleSet(images, labels, classes, identity, self.name, split, manifest=manifest)
