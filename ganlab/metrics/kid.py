"""Kernel Inception Distance: unbiased squared MMD of features under a cubic kernel, lower is better.

Unlike that of FID, its expectation does not depend on the number of images; it can be slightly negative.
Source: Binkowski et al. 2018, arXiv:1801.01401, section 4; subsets as in the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ganlab import rng
from ganlab.metrics.base import Accumulator, Collected, Metric, MetricError, Protocol, Real, Reference


def cubic_mmd2(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased squared MMD of x (M, D) and y (M, D) under k(a, b) = (a.b / D + 1)^3; a float64 scalar."""
    x, y = x.double(), y.double()
    m = len(x)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T).div_(a.shape[1]).add_(1).pow_(3)

    def others(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.trace()) / (m * (m - 1))

    return others(x) + others(y) - 2 * kernel(x, y).mean()


def kernel_distance(
    real: Tensor, fake: Tensor, subsets: Iterable[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """Mean and population standard deviation of ``cubic_mmd2`` over pairs of row indices (real, fake)."""
    device = fake.device
    values = [
        cubic_mmd2(real[i.to(real.device)].to(device), fake[j.to(device)]).reshape(1) for i, j in subsets
    ]
    distances = torch.cat(values)
    return float(distances.mean()), float(distances.std(correction=0))


class KID(Metric[Reference]):
    """KID of ``fid_n_fake`` generated images: ``kid_subsets`` subsets of ``kid_subset_size`` images.

    The rows of a subset depend on the protocol's seed and the counts only, not on the device.
    """

    names = ("kid", "kid_std")
    better = "lower"
    needs = frozenset({"features", "real"})

    def n_fake(self, protocol: Protocol) -> int:
        return protocol.fid_n_fake

    def check(self, protocol: Protocol, real: Real) -> None:
        least = protocol.kid_subset_size
        for n, what in ((protocol.fid_n_fake, "generated"), (min(real.n, protocol.kid_n_real), "reference")):
            if n < least:
                raise MetricError(f"kid_subset_size={least} needs at least {least} {what} images, not {n}")

    def start(self, real: Reference, protocol: Protocol) -> Accumulator:
        self.check(protocol, Real(n=len(real.pool)))
        return Collected("pool", protocol.fid_n_fake, lambda pool: self.score(real, pool, protocol))

    def score(self, real: Reference, pool: Tensor, protocol: Protocol) -> dict[str, float]:
        """The values for the features ``pool`` (``fid_n_fake``, D) of generated images."""

        def rows(n: int, *counters: int) -> Tensor:
            generator = rng.generator("cpu", protocol.seed, "metric", *counters)
            return torch.randperm(n, generator=generator)[: protocol.kid_subset_size]

        # reference_stats.py draws the reference images with counters 0 and 1
        subsets = ((rows(len(real.pool), 2, i), rows(len(pool), 3, i)) for i in range(protocol.kid_subsets))
        mean, std = kernel_distance(real.pool, pool, subsets)
        if not math.isfinite(mean):
            raise MetricError("features are not finite")
        return {"kid": mean, "kid_std": std}
