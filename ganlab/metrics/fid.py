"""Fréchet Inception Distance: squared distance of Gaussians fitted to features, lower is better.

Source: Heusel et al. 2017, arXiv:1706.08500, equation 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ganlab import rng
from ganlab.metrics.base import (
    BLOCK,
    LinAlgError,
    MetricError,
    Moments,
    Protocol,
    Reference,
    Running,
    Streamed,
    enough,
    square_root,
)
from ganlab.types import Features


def frechet_distance(mean: Tensor, cov: Tensor, root: Tensor, mean_2: Tensor, cov_2: Tensor) -> float:
    """|m - m2|^2 + tr(C + C2 - 2 (C C2)^(1/2)), of means (D,) and covariances (D, D) in float64.

    ``root`` is the symmetric square root of ``cov``. C C2 has the eigenvalues of root C2 root, which is
    symmetric: real eigenvalues, three times faster than the general ones, and no complex part to drop.
    Raises MetricError if the result is not finite.
    """
    try:
        eigenvalues = torch.linalg.eigvalsh(root @ cov_2 @ root)
    except LinAlgError as e:
        raise MetricError(f"the covariances have no eigenvalues: {e}") from e
    trace = cov.trace() + cov_2.trace() - 2 * eigenvalues.clamp(min=0).sqrt().sum()
    distance = float((mean - mean_2).square().sum() + trace)
    if not abs(distance) < float("inf"):
        raise MetricError("features are not finite")
    return max(distance, 0.0)  # a squared distance; rounding leaves about -1e-9 between equal sets


class FID(Streamed):
    """FID of the first ``fid_n_fake`` fakes against ``fid_n_real`` reference images."""

    names = ("fid",)
    better = "lower"

    def n_fake(self, protocol: Protocol) -> int:
        return protocol.fid_n_fake

    def check(self, protocol: Protocol, n_real: int) -> None:
        if n_real < 2:
            raise MetricError(f"a covariance needs at least 2 reference images, there are {n_real}")

    def running(self, protocol: Protocol) -> Running:
        return RunningFID(protocol.fid_n_fake)

    def among_real(self, real: Reference, protocol: Protocol) -> dict[str, float]:
        """FID of two disjoint parts of the kept reference images, drawn by the protocol's seed.

        One part is as large as ``fid_n_fake``, or half of all; the other is what remains. What the counts n
        and m add to the FID of equal distributions falls as 1/n + 1/m (Chong & Forsyth 2020,
        arXiv:1911.07023); the value is brought to the protocol's counts by that.
        """
        there = len(real.pool)
        n = min(protocol.fid_n_fake, there // 2)
        if n < 2:
            return {}
        rows = torch.randperm(there, generator=rng.generator("cpu", protocol.seed, "metric", 7))
        parts = []
        for part in (rows[:n], rows[n:]):
            collected = Moments()
            for some in part.split(BLOCK):
                collected.add(real.pool[some])
            parts.append(collected.result())
        (mean, cov), (mean_2, cov_2) = parts
        fid = frechet_distance(mean, cov, square_root(cov), mean_2, cov_2)
        return {"fid": fid * (1 / protocol.fid_n_fake + 1 / real.n) / (1 / n + 1 / (there - n))}


class RunningFID(Running):
    """FID of the first ``n`` images shown, from the sums of their features."""

    def __init__(self, n: int) -> None:
        self.n, self.moments = n, Moments()

    def add(self, features: Features) -> None:
        self.moments.add(features.pool[: self.n - self.moments.n])

    def value(self, real: Reference | None) -> dict[str, float]:
        assert real is not None
        enough(self.moments.n, self.n)
        mean, cov = self.moments.result()
        of_real = [t.to(cov.device) for t in (real.mean, real.cov, real.root)]
        return {"fid": frechet_distance(of_real[0], of_real[1], of_real[2], mean, cov)}
