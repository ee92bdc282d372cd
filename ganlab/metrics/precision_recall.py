"""Improved precision and recall: fraction of generated images in the real manifold, and vice versa.

A manifold is the union of balls around the samples, each with the distance of the k-th neighbor as radius.
Source: Kynkäänniemi et al. 2019, arXiv:1904.06991, section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ganlab.metrics.base import Accumulator, Collected, Metric, MetricError, Protocol, Real, Reference
from ganlab.schema import Count, checked

ROWS = 1000  # of the distance matrix at a time: 80 MB beside 10,000 samples


def radii(pool: Tensor, neighbours: int) -> Tensor:
    """Distance of each row of (N, D) to its k-th nearest other row: (N,)."""
    return torch.cat([torch.cdist(rows, pool).kthvalue(neighbours + 1).values for rows in pool.split(ROWS)])


def share_inside(points: Tensor, pool: Tensor, radius: Tensor) -> float:
    """The fraction of ``points`` (M, D) that lie in a ball around some row of ``pool`` (N, D)."""
    inside = [(torch.cdist(rows, pool) <= radius).any(1) for rows in points.split(ROWS)]
    return float(torch.cat(inside).double().mean())


def precision_recall(real: Tensor, fake: Tensor, neighbours: int) -> tuple[float, float]:
    """Precision and recall of features ``real`` (N, D) and ``fake`` (M, D), in float64.

    Raises MetricError unless both sets hold more than ``neighbours`` images.
    """
    least = neighbours + 1
    if min(len(real), len(fake)) < least:
        raise MetricError(
            f"{neighbours} neighbours need at least {least} images, not {min(len(real), len(fake))}"
        )
    real, fake = real.double(), fake.double()
    precision = share_inside(fake, real, radii(real, neighbours))
    return precision, share_inside(real, fake, radii(fake, neighbours))


class PrecisionRecall(Metric[Reference]):
    """Precision and recall of at most ``n`` images each: the first generated, evenly spaced real ones."""

    names = ("precision", "recall")
    better = "higher"
    needs = frozenset({"features", "real"})
    score = staticmethod(precision_recall)

    @checked
    def __init__(self, neighbours: Count = 3, n: Count = 10_000) -> None:
        self.neighbours, self.n = neighbours, n

    def n_fake(self, protocol: Protocol) -> int:
        return min(protocol.fid_n_fake, self.n)

    def check(self, protocol: Protocol, real: Real) -> None:
        least, n = self.neighbours + 1, min(real.n, protocol.kid_n_real, protocol.fid_n_fake, self.n)
        if n < least:
            raise MetricError(f"{self.neighbours} neighbours need at least {least} images, there are {n}")

    def start(self, real: Reference, protocol: Protocol) -> Accumulator:
        def score(pool: Tensor) -> dict[str, float]:
            n = min(len(real.pool), self.n)
            rows = torch.arange(n) * len(real.pool) // n  # reference sets are often sorted by class
            values = self.score(real.pool[rows].to(pool.device), pool, self.neighbours)
            return dict(zip(self.names, values, strict=True))

        return Collected("pool", self.n_fake(protocol), score)
