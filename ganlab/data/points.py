"""Toy distributions: 8 and 25 Gaussians and the Swiss roll in the plane, one Gaussian on a line.

Source of those in the plane: Gulrajani et al. 2017, arXiv:1704.00028, Figure 1, and its released code
(gan_toy.py). What that code draws anew for each batch is drawn anew here, as a function of (seed, place).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ganlab.data.base import Dataset, SampleSet, memory_manifest
from ganlab.data.batches import Sampler
from ganlab.data.fingerprint import fingerprint
from ganlab.rng import fold
from ganlab.schema import Count, Positive, Range, Seed, checked
from ganlab.types import Batch, PointShape

Plane = npt.NDArray[np.float32]  # points (n, 2), or (n, 1) on a line
Draw = Callable[[int, np.random.RandomState], Plane]
SPLITS = ("train", "test")
ROOT2 = 1.414  # the code's numbers, not the roots: 8 Gaussians are divided by 1.414, 25 by 2.828


@dataclass(frozen=True)
class PointSet(SampleSet):
    """Points, float32 (N, 2) or (N, 1), as players see them.

    draw: makes fresh points for training; ``images`` are then a sample to look at and to compare with. None:
    training goes through ``images`` in their order, the same in every epoch.
    """

    draw: Draw | None = None

    @property
    def shape(self) -> PointShape:
        return PointShape(int(self.images.shape[1]))

    @property
    def is_stream(self) -> bool:
        return self.draw is not None

    def batches(self, device: torch.device | str, seed: int, data_memory_gb: float | None = None) -> Sampler:
        return Fresh(self, device, seed) if self.draw else InOrder(self, device, seed, data_memory_gb)


class InOrder(Sampler):
    """Every epoch in the order of the set, which was shuffled once when it was made.

    A batch may straddle two epochs, where the code leaves the last 160 of 100,000 points out of each.
    """

    def _order(self, epoch: int) -> Tensor:
        return torch.arange(len(self), device=None if self.on_device is None else self.device)


class Fresh(Sampler):
    """Points drawn anew for each batch: a pure function of (seed, start), so resume needs no state."""

    def __init__(self, image_set: PointSet, device: torch.device | str, seed: int) -> None:
        assert image_set.draw is not None
        self.image_set, self.device, self.seed = image_set, torch.device(device), seed
        self.shard, self._draw = None, image_set.draw

    def batch(self, start: int, size: int) -> Batch:
        random = np.random.RandomState(fold(self.seed, "order", start) % 2**32)
        points = torch.from_numpy(self._draw(size, random))
        return Batch((points if self.shard is None else self.shard(points)).to(self.device))

    def close(self) -> None:
        """Nothing is held."""


class Points(Dataset):
    """Base of the toy sets.

    ``n``: points of each split that scores and pictures see, drawn by ``data_seed``.
    """

    channels, resolution, labelled = 1, 1, False  # of images: none here
    origin = "is sampled when a run starts"
    dim = 2  # coordinates of a point
    fresh = True  # whether training draws its own points

    @checked
    def __init__(
        self, n: Count = 10_000, data_seed: Seed = 0, split: Literal["train", "test"] = "train"
    ) -> None:
        self.n, self.data_seed, self.split = n, data_seed, split

    @property
    def shape(self) -> PointShape:
        return PointShape(self.dim)

    def splits(self) -> tuple[str, ...]:
        return SPLITS

    @abstractmethod
    def draw(self, n: int, random: np.random.RandomState) -> Plane:
        """``n`` points of the distribution, float32 (n, dim)."""

    def modes(self) -> tuple[Plane, float] | None:
        """Centres (K, dim) and standard deviation of the modes, in the points' units; None without any."""
        return None

    def load(self, *, split: str | None = None) -> PointSet:
        split = self.resolve_split(split)
        random = np.random.RandomState(fold(self.data_seed, "order", SPLITS.index(split)) % 2**32)
        points = self.draw(self.n, random)
        source = {"kind": "drawn", "data_seed": self.data_seed}
        manifest = memory_manifest(self, split, points, fingerprint(points, None), source=source)
        if (modes := self.modes()) is not None:
            manifest["modes"] = {"centres": modes[0].tolist(), "std": modes[1]}
        draw = self.draw if self.fresh else None
        identity = (manifest["fingerprint"], self.name, split)
        return PointSet(points, None, [], *identity, manifest=manifest, draw=draw)


class EightGaussians(Points):
    """Eight modes on a circle of radius 2, deviation 0.02, everything divided by 1.414; drawn on the fly."""

    name = "8gaussians"

    def modes(self) -> tuple[Plane, float]:
        diagonal = 1 / np.sqrt(2)
        around = [(1, 0), (-1, 0), (0, 1), (0, -1)]
        around += [(a * diagonal, b * diagonal) for a in (1, -1) for b in (1, -1)]
        return np.array(around, np.float32) * np.float32(2 / ROOT2), 0.02 / ROOT2

    def draw(self, n: int, random: np.random.RandomState) -> Plane:
        centres, std = self.modes()
        chosen = centres[random.randint(len(centres), size=n)]
        return (chosen + std * random.randn(n, 2)).astype(np.float32)


class TwentyFiveGaussians(Points):
    """25 modes at (2i, 2j), i and j from -2 to 2, deviation 0.05, everything divided by 2.828.

    A fixed set of 100,000 points, 4,000 a mode, shuffled once; batches go through it in order.
    """

    name, fresh = "25gaussians", False

    @checked
    def __init__(
        self, per_mode: Count = 4000, data_seed: Seed = 0, split: Literal["train", "test"] = "train"
    ) -> None:
        super().__init__(25 * per_mode, data_seed, split)

    def modes(self) -> tuple[Plane, float]:
        grid = [(2 * i, 2 * j) for i in range(-2, 3) for j in range(-2, 3)]
        return np.array(grid, np.float32) / np.float32(2 * ROOT2), 0.05 / (2 * ROOT2)

    def draw(self, n: int, random: np.random.RandomState) -> Plane:
        centres, std = self.modes()
        points = np.resize(centres, (n, 2)) + std * random.randn(n, 2)
        random.shuffle(points)
        return points.astype(np.float32)


class SwissRoll(Points):
    """scikit-learn's Swiss roll, noise 0.25, its first and third coordinate divided by 7.5; on the fly."""

    name = "swissroll"

    def draw(self, n: int, random: np.random.RandomState) -> Plane:
        from sklearn.datasets import make_swiss_roll

        points = make_swiss_roll(n_samples=n, noise=0.25, random_state=random)[0]
        return np.asarray(points[:, [0, 2]] / 7.5, np.float32)


class Gaussian(Points):
    """One normal distribution on a line, N(mean, std^2); drawn on the fly.

    With a generator that shifts it (``fixed_shift``) the two Gaussians of WGAN's Figure 2 (arXiv:1701.07875).
    """

    name, dim = "gaussian", 1

    @checked
    def __init__(
        self,
        mean: Annotated[float, Range(ge=-1e6, le=1e6)] = -2.0,
        std: Positive = 1.0,
        n: Count = 10_000,
        data_seed: Seed = 0,
        split: Literal["train", "test"] = "train",
    ) -> None:
        super().__init__(n, data_seed, split)
        self.mean, self.std = mean, std

    def modes(self) -> tuple[Plane, float]:
        return np.array([[self.mean]], np.float32), self.std

    def draw(self, n: int, random: np.random.RandomState) -> Plane:
        return (self.mean + self.std * random.randn(n, 1)).astype(np.float32)
