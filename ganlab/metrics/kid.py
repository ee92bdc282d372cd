"""Kernel Inception Distance: unbiased squared MMD of features under a cubic kernel, lower is better.

Unlike FID it has no bias in the number of images; it may come out slightly negative.
Source: Binkowski et al. 2018, arXiv:1801.01401, section 4; subsets as in the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ganlab import rng
from ganlab.metrics.base import Metric, MetricError, Protocol, Reference, take
from ganlab.types import Features


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
    found = [
        cubic_mmd2(real[i.to(real.device)].to(device), fake[j.to(device)]).reshape(1) for i, j in subsets
    ]
    values = torch.cat(found)
    return float(values.mean()), float(values.std(correction=0))


class KID(Metric):
    """KID of the first ``fid_n_fake`` fakes: ``kid_subsets`` subsets of ``kid_subset_size`` images.

    Which rows make a subset is a function of the protocol's seed and the counts, on every device.
    """

    names = ("kid", "kid_std")
    better = "lower"
    keeps = ("pool",)

    def n_fake(self, protocol: Protocol) -> int:
        return protocol.fid_n_fake

    def check(self, protocol: Protocol, n_real: int) -> None:
        least = protocol.kid_subset_size
        for n, what in ((protocol.fid_n_fake, "generated"), (min(n_real, protocol.kid_n_real), "reference")):
            if n < least:
                raise MetricError(f"kid_subset_size={least} needs at least {least} {what} images, not {n}")

    def __call__(self, real: Reference | None, fake: Features, protocol: Protocol) -> dict[str, float]:
        assert real is not None
        pool = take(fake.pool, protocol.fid_n_fake)
        self.check(protocol, len(real.pool))

        def rows(n: int, *counters: int) -> Tensor:
            generator = rng.generator("cpu", protocol.seed, "metric", *counters)
            return torch.randperm(n, generator=generator)[: protocol.kid_subset_size]

        # counters 0 and 1 draw the reference images (reference.py)
        subsets = ((rows(len(real.pool), 2, i), rows(len(pool), 3, i)) for i in range(protocol.kid_subsets))
        mean, std = kernel_distance(real.pool, pool, subsets)
        if not math.isfinite(mean):
            raise MetricError("features are not finite")
        return {"kid": mean, "kid_std": std}
