"""Sliced Wasserstein distance of local patches, at each level of a Laplacian pyramid; lower is better.

Source: Karras et al. 2018 (Progressive GAN), arXiv:1710.10196, section 5, and its code: 7x7 patches at
random places, each color standardized over the whole set, projected onto random directions. A level's
distance is the mean absolute difference of the sorted projections, times 1,000 as in the paper's table.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab import rng
from ganlab.metrics.base import Accumulator, Collected, Metric, MetricError, Protocol, Real
from ganlab.schema import Count, checked

SIDE = 7  # of a patch, in pixels
COARSEST = 16  # pixels of the last level
SIDES = (1024, 512, 256, 128, 64, 32, 16)
BATCH = 128  # images at a time
KERNEL = (1.0, 4.0, 6.0, 4.0, 1.0)  # / 16, along each axis


def laplacian_pyramid(x: Tensor) -> list[Tensor]:
    """Images (B, C, S, S) as differences to a blurred half of them, from S pixels down to 16.

    Every level plus the enlarged next one gives the image of its size back.
    """
    levels = []
    while x.shape[-1] > COARSEST:
        smaller = _blurred(x)[:, :, ::2, ::2]
        levels.append(x - _enlarged(smaller))
        x = smaller
    return [*levels, x]


def _blurred(x: Tensor, gain: float = 1.0) -> Tensor:
    """Convolution with the 5x5 binomial kernel times ``gain``, mirrored at the borders."""
    axis = x.new_tensor(KERNEL) / 16
    kernel = (gain * torch.outer(axis, axis)).expand(x.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=x.shape[1])


def _enlarged(x: Tensor) -> Tensor:
    zeros = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    zeros[:, :, ::2, ::2] = x
    return _blurred(zeros, 4.0)


def patches(x: Tensor, count: int, random: torch.Generator) -> Tensor:
    """``count`` patches of each image (B, C, S, S), at uniform places: (B * count, C, 7, 7)."""
    n, _, height, width = x.shape
    rows = torch.randint(height - SIDE + 1, (n, count), generator=random)
    columns = torch.randint(width - SIDE + 1, (n, count), generator=random)
    at = x.unfold(2, SIDE, 1).unfold(3, SIDE, 1)  # (B, C, places, places, 7, 7), a view
    return at[torch.arange(n)[:, None], :, rows, columns].flatten(0, 1)


def sliced_distance(a: Tensor, b: Tensor, directions: int, random: torch.Generator) -> float:
    """1-Wasserstein distance of two sets of as many vectors (N, D), a mean over random directions."""
    total, left = 0.0, directions
    while left:
        count = min(left, BATCH)
        lines = F.normalize(torch.randn(a.shape[1], count, generator=random), dim=0).to(a)
        total += float((a.mm(lines).sort(0).values - b.mm(lines).sort(0).values).abs().mean(0).sum())
        left -= count
    return total / directions


class SWD(Metric[Real]):
    """Sliced Wasserstein distances of ``images`` generated and as many real images, by level, times 1,000.

    ``swd`` is the mean over the levels, ``swd_128`` that of the details of 128 pixels, and so on down to 16.
    With the paper's 16,384 images a level takes 2.5 GB, and minutes on a CPU.

    Args:
        images: generated, and real, images.
        patches: of each image, at each level.
        directions: of projection.
    """

    names = ("swd", *(f"swd_{side}" for side in SIDES))
    better = "lower"
    needs = frozenset({"samples", "real"})
    own_record = True

    @checked
    def __init__(self, images: Count = 16_384, patches: Count = 128, directions: Count = 512) -> None:
        self.images, self.patches, self.directions = images, patches, directions

    def n_fake(self, protocol: Protocol) -> int:
        return self.images

    def check(self, protocol: Protocol, real: Real) -> None:
        if real.shape is not None and [*real.shape][1:] not in [[side, side] for side in SIDES]:
            raise MetricError(
                f"a pyramid needs square images of 16, 32, ... or 1024 pixels, not {real.shape}"
            )
        if 0 < len(real.samples if real.samples is not None else ()) < self.images:
            raise MetricError(
                f"compares {self.images} images, there are {len(real.samples)}; set images lower"
            )

    def start(self, real: Real, protocol: Protocol) -> Accumulator:
        return Collected(
            "samples", self.images, lambda fakes: self._values(fakes, real.samples, protocol.seed)
        )

    def _values(self, fakes: Tensor, real: object, seed: int) -> dict[str, float]:
        order = torch.randperm(len(real), generator=rng.generator("cpu", seed, "metric"))[: self.images]  # type: ignore[arg-type]
        values: dict[str, float] = {}
        sides = [side for side in SIDES if side <= fakes.shape[-1]]
        for level, side in enumerate(sides):
            sets = []
            for images, name in ((fakes, "fake"), (real, "real")):
                rows = torch.arange(len(fakes)) if name == "fake" else order.sort().values
                random = rng.generator("cpu", seed, "metric", side, int(name == "fake"))
                sets.append(standardized(torch.cat([*self._level(images, rows, level, random)])))
            lines = rng.generator("cpu", seed, "metric", side, 2)
            values[f"swd_{side}"] = 1000 * sliced_distance(sets[0], sets[1], self.directions, lines)
        return {"swd": sum(values.values()) / len(values), **values}

    def _level(self, images: object, rows: Tensor, level: int, random: torch.Generator) -> Iterator[Tensor]:
        for part in rows.split(BATCH):
            x = torch.as_tensor(images[part.numpy()]).float()  # type: ignore[index]
            x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
            yield patches(laplacian_pyramid(x)[level], self.patches, random)


def standardized(x: Tensor) -> Tensor:
    """Patches (N, C, 7, 7) as rows (N, C * 49), each color with mean 0 and deviation 1 over all of them."""
    mean, deviation = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), correction=0, keepdim=True)
    return ((x - mean) / deviation.clamp_min(1e-8)).flatten(1)
