"""A dataset of random images, so that benchmarks need no download."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from ganlab.data.base import Dataset, SampleSet
from ganlab.data.fingerprint import fingerprint
from ganlab.schema import Count, Range, checked


class Noise(Dataset):
    """``count`` deterministic uint8 images of uniform noise, with ten classes and two splits."""

    name = "noise"

    @checked
    def __init__(
        self,
        resolution: Annotated[int, Range(ge=8, le=512)] = 32,
        channels: Literal[1, 3] = 3,
        count: Count = 10_000,
        split: Literal["train", "test"] = "train",
    ) -> None:
        self.resolution, self.channels, self.count, self.split = resolution, channels, count, split

    def splits(self) -> tuple[str, ...]:
        return ("train", "test")

    def load(self, *, split: str | None = None) -> SampleSet:
        split = self.resolve_split(split)
        random = np.random.default_rng(self.splits().index(split))
        shape = (self.count, self.channels, self.resolution, self.resolution)
        images = random.integers(0, 256, shape, np.uint8)
        labels = random.integers(0, 10, self.count)
        return SampleSet(
            images, labels, [str(i) for i in range(10)], fingerprint(images, labels), self.name, split
        )
