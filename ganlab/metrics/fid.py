"""Fréchet Inception Distance: squared distance of Gaussians fitted to features, lower is better.

Source: Heusel et al. 2017, arXiv:1706.08500, equation 6.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ganlab import rng
from ganlab.metrics.base import (
    BLOCK,
    Accumulator,
    Fakes,
    LinAlgError,
    Metric,
    MetricError,
    Moments,
    Protocol,
    Real,
    Reference,
    require_count,
    square_root,
)


def frechet_distance(mean: Tensor, cov: Tensor, root: Tensor, mean_2: Tensor, cov_2: Tensor) -> float:
    """|m - m2|^2 + tr(C + C2 - 2 (C C2)^(1/2)), for means (D,) and covariances (D, D) in float64.

    ``root`` is the symmetric square root of ``cov``. C C2 has the eigenvalues of the symmetric root C2 root,
    which are real and three times faster to compute. Raises MetricError if the result is not finite.
    """
    return distance(mean - mean_2, cov.trace() + cov_2.trace(), root @ cov_2 @ root)


def distance(gap: Tensor, traces: Tensor, product: Tensor) -> float:
    """|gap|^2 + traces - 2 tr(product^(1/2)) of a symmetric ``product``. Raises MetricError if not finite."""
    try:
        eigenvalues = torch.linalg.eigvalsh(product)
    except LinAlgError as e:
        raise MetricError(f"the eigenvalues of the covariances do not converge: {e}") from e
    value = float(gap.square().sum() + (traces - 2 * eigenvalues.clamp(min=0).sqrt().sum()))
    if not abs(value) < float("inf"):
        raise MetricError("features are not finite")
    return max(value, 0.0)  # a squared distance; rounding leaves about -1e-9 between equal sets


def to_reference(real: Reference, mean: Tensor, cov: Tensor) -> float:
    """``frechet_distance`` from the real images to a Gaussian, on the device of ``cov``."""
    real_mean, real_cov, root = (t.to(cov.device) for t in (real.mean, real.cov, real.root))
    return frechet_distance(real_mean, real_cov, root, mean, cov)


class RunningFID(Accumulator):
    """``distance(mean, cov)`` of the Gaussian fitted to the features of the first ``n`` images."""

    def __init__(self, name: str, n: int, distance: Callable[[Tensor, Tensor], float]) -> None:
        self.name, self.n, self.distance, self.moments = name, n, distance, Moments()

    def add(self, fakes: Fakes) -> None:
        self.moments.add(fakes.pool[: self.n - self.moments.n])

    def value(self) -> dict[str, float]:
        require_count(self.moments.n, self.n)
        return {self.name: self.distance(*self.moments.result())}


class FID(Metric[Reference]):
    """FID of the first ``fid_n_fake`` generated images against ``fid_n_real`` real ones."""

    names = ("fid",)
    better = "lower"
    needs = frozenset({"features", "real"})

    def n_fake(self, protocol: Protocol) -> int:
        return protocol.fid_n_fake

    def check(self, protocol: Protocol, real: Real) -> None:
        if real.n < 2:
            raise MetricError(f"a covariance needs at least 2 reference images, there are {real.n}")

    def start(self, real: Reference, protocol: Protocol) -> Accumulator:
        return RunningFID("fid", protocol.fid_n_fake, partial(to_reference, real))

    def among_real(self, real: Reference, protocol: Protocol) -> dict[str, float]:
        """FID of two disjoint parts of the kept reference images, drawn by the protocol's seed.

        One part has ``fid_n_fake`` images, or half of them; the other has the rest. The bias of the FID of
        two samples of n and m images falls as 1/n + 1/m (Chong & Forsyth 2020, arXiv:1911.07023); the value
        is scaled to the protocol's counts accordingly.
        """
        available = len(real.pool)
        n = min(protocol.fid_n_fake, available // 2)
        if n < 2:
            return {}
        rows = torch.randperm(available, generator=rng.generator("cpu", protocol.seed, "metric", 7))
        parts = []
        for part in (rows[:n], rows[n:]):
            collected = Moments()
            for chunk in part.split(BLOCK):
                collected.add(real.pool[chunk])
            parts.append(collected.result())
        (mean, cov), (mean_2, cov_2) = parts
        fid = frechet_distance(mean, cov, square_root(cov), mean_2, cov_2)
        return {"fid": fid * (1 / protocol.fid_n_fake + 1 / real.n) / (1 / n + 1 / (available - n))}
