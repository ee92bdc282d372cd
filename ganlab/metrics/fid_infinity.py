"""FID extrapolated to infinitely many generated images, lower is better.

Source: Chong & Forsyth 2020, arXiv:1911.07023, with 15 counts and random subsets as in its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from ganlab import rng
from ganlab.metrics.base import (
    Accumulator,
    Collected,
    Metric,
    MetricError,
    Protocol,
    Real,
    Reference,
    moments,
)
from ganlab.metrics.fid import to_reference
from ganlab.schema import Range, checked


def intercept(counts: Sequence[int], distances: Sequence[float]) -> float:
    """The value at 1 / N = 0 of the least-squares line through the distances at N images."""
    return float(np.polyfit(1 / np.asarray(counts, float), distances, 1)[1])


class FIDInfinity(Metric[Reference]):
    """FID at ``points`` counts N from a tenth of ``fid_n_fake`` to all: the intercept of its line in 1 / N.

    Each N takes another random subset of the same generated images, drawn by the protocol's seed. The real
    images are those of FID: the bias of their number remains. Slightly negative where FID is all bias. No
    value where the smallest N is not above the number of features: FID is no line in 1 / N there.
    """

    names = ("fid_infinity",)
    better = "lower"
    needs = frozenset({"features", "real"})

    @checked
    def __init__(self, points: Annotated[int, Range(ge=2, le=1000)] = 15) -> None:
        self.points = points

    def n_fake(self, protocol: Protocol) -> int:
        return protocol.fid_n_fake

    def check(self, protocol: Protocol, real: Real) -> None:
        if protocol.fid_n_fake < 20 or real.n < 2:
            n = protocol.fid_n_fake
            raise MetricError(f"needs at least 20 generated and 2 real images, not {n} and {real.n}")

    def start(self, real: Reference, protocol: Protocol) -> Accumulator:
        if protocol.fid_n_fake // 10 <= len(real.mean):
            features = len(real.mean)
            raise MetricError(f"{features} features need at least {10 * (features + 1)} generated images")
        return Collected("pool", protocol.fid_n_fake, lambda pool: self.score(real, pool, protocol))

    def score(self, real: Reference, pool: Tensor, protocol: Protocol) -> dict[str, float]:
        """The value for the features ``pool`` (n, D) of generated images."""
        counts = [int(n) for n in np.linspace(len(pool) // 10, len(pool), self.points)]
        distances = []
        for i, n in enumerate(counts):
            rows = torch.randperm(len(pool), generator=rng.generator("cpu", protocol.seed, "metric", 9, i))
            distances.append(to_reference(real, *moments(pool[rows[:n].to(pool.device)])))
        return {"fid_infinity": intercept(counts, distances)}
