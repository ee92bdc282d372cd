"""The exact Wasserstein-1 distance between generated and real points, by optimal transport."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganlab import rng
from ganlab.metrics.base import Accumulator, Collected, Metric, MetricError, Protocol, Real
from ganlab.schema import Count, checked
from ganlab.system import packages

DRAWS = 8  # pairs of samples of real points


class Wasserstein1(Metric[Real]):
    """W1 (Euclidean cost) between ``n`` generated points and as many real ones, in the points' units.

    The empirical distance, by POT's network simplex (Bonneel et al. 2011; Flamary et al. 2021). Two samples
    of one distribution are not at 0 either: for 1,000 points of the toy sets the mean is 0.08 to 0.09, the
    range over 20 draws 0.04 to 0.15. ``among_real`` is the minimum over ``DRAWS`` pairs of real samples.
    """

    names = ("w1",)
    better = "lower"
    kinds = ("points",)
    needs = frozenset({"samples", "real"})

    @checked
    def __init__(self, n: Count = 1000) -> None:
        self.n = n

    def n_fake(self, protocol: Protocol) -> int:
        return self.n

    def check(self, protocol: Protocol, real: Real) -> None:
        packages.require("ot")
        if len(real.samples) < self.n:
            raise MetricError(f"needs {self.n} real points, there are {len(real.samples)}")

    def among_real(self, real: Real, protocol: Protocol) -> dict[str, float]:
        if len(real.samples) < 2 * self.n:
            return {}
        distances = []
        for i in range(DRAWS):
            random = rng.generator("cpu", 0, "metric", 8, i)
            a, b = torch.randperm(len(real.samples), generator=random)[: 2 * self.n].numpy().reshape(2, -1)
            distances.append(distance(real.samples[a], real.samples[b]))
        return {"w1": min(distances)}

    def start(self, real: Real, protocol: Protocol) -> Accumulator:
        def score(fake: Tensor) -> dict[str, float]:
            random = rng.generator("cpu", protocol.seed, "metric", 6)
            rows = torch.randperm(len(real.samples), generator=random)[: self.n]
            return {"w1": distance(fake.cpu().numpy(), real.samples[rows.numpy()])}

        return Collected("samples", self.n, score)


def distance(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """W1 between empirical distributions of points (n, d) and (m, d). Raises MetricError if not finite."""
    import ot  # imported late: it takes a second

    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise MetricError("the points are not finite")
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(ot.emd2([], [], ot.dist(a, b, metric="euclidean"), numItermax=10_000_000))
