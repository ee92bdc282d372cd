"""Stacked MNIST: three digits of MNIST drawn at random, one in each color channel; 1,000 modes.

Metz et al. 2017 (unrolled GANs), arXiv:1611.02163, section 3.3; 128,000 images as in the code of PacGAN
(Lin et al. 2018, arXiv:1712.04086).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np

from ganlab.data.base import Dataset, SampleSet, memory_manifest
from ganlab.data.fingerprint import fingerprint
from ganlab.data.mnist import Mnist
from ganlab.schema import Count, Range, Seed, checked

if TYPE_CHECKING:
    from ganlab.data.packing.check import Originals, PublishedFiles


class StackedMnist(Dataset):
    """``n`` images of three digits of MNIST's ``split``, drawn with replacement by ``data_seed``, in memory.

    The class of an image is its number, red digit first: 0 to 999. The rest as for MNIST. 128,000 images of
    32 px take 393 MB.
    """

    name, channels, origin = "stacked_mnist", 3, "is made of MNIST"

    @checked
    def __init__(
        self,
        path: str | None = None,
        split: Literal["train", "test"] = "train",
        resolution: Annotated[int, Range(ge=4, le=512)] = 32,
        n: Count = 128_000,
        data_seed: Seed = 0,
        verify: bool = True,
    ) -> None:
        self.digits = Mnist(path, split, resolution, verify=verify)
        self.split, self.resolution, self.n, self.data_seed = split, resolution, n, data_seed

    def splits(self) -> tuple[str, ...]:
        return self.digits.splits()

    def originals(self, split: str) -> Originals | PublishedFiles | None:
        return self.digits.originals(split)

    def load(self, *, split: str | None = None) -> SampleSet:
        split = self.resolve_split(split)
        digits = self.digits.load(split=split)
        rows = np.random.RandomState(self.data_seed).randint(len(digits), size=(self.n, 3))
        images = np.asarray(digits.images)[:, 0][rows]
        assert digits.labels is not None
        labels = digits.labels[rows] @ np.array([100, 10, 1])
        classes = [f"{number:03}" for number in range(1000)]
        identity = fingerprint(images, labels)
        manifest = memory_manifest(
            self, split, images, identity,
            classes=classes, class_counts=np.bincount(labels, minlength=1000).tolist(),
            source={"kind": "drawn", "data_seed": self.data_seed, "from": digits.fingerprint},
        )  # fmt: skip
        return SampleSet(images, labels, classes, identity, self.name, split, manifest=manifest)
