"""Intra-FID: the FID of each class by itself, averaged over the classes; lower is better.

It sees what FID does not: a conditional generator that ignores its labels, or that collapses within classes.
Source: Miyato & Koyama 2018, arXiv:1802.05637, section 4: all training images of a class against 5,000
generated ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ganlab.metrics.base import (
    ClassReference,
    Group,
    GroupMetric,
    LinAlgError,
    MetricError,
    Protocol,
    moments,
    square_root,
    take,
)
from ganlab.types import ImageShape


def factored(pool: Tensor) -> ClassReference:
    """The Gaussian of features (N, D), of which N >= 2; see ``ClassReference``. Raises MetricError.

    With N <= D the factor is the centred rows themselves, divided by sqrt(N - 1): no eigenvalues needed.
    """
    n, d = pool.shape
    if n > d:
        mean, cov = moments(pool)
        return ClassReference(n, mean, square_root(cov))
    if n < 2:
        raise MetricError(f"a covariance needs at least 2 images, there are {n}")
    rows = pool.double()
    mean = rows.mean(0)
    if not bool(torch.isfinite(mean).all()):
        raise MetricError("features are not finite")
    return ClassReference(n, mean, (rows - mean) / (n - 1) ** 0.5)


def factored_distance(real: ClassReference, mean: Tensor, cov: Tensor) -> float:
    """The Fréchet distance of ``fid.frechet_distance``, of a factored Gaussian and another, in float64.

    With C = F^T F, C C2 has the non-zero eigenvalues of F C2 F^T, which is symmetric and (r, r): with 1,300
    images of 2,048 features the rank-deficient C is never made. Raises MetricError if it is not finite.
    """
    try:
        eigenvalues = torch.linalg.eigvalsh(real.factor @ cov @ real.factor.T)
    except LinAlgError as e:
        raise MetricError(f"the covariances have no eigenvalues: {e}") from e
    trace = real.factor.square().sum() + cov.trace() - 2 * eigenvalues.clamp(min=0).sqrt().sum()
    distance = float((real.mean - mean).square().sum() + trace)
    if not abs(distance) < float("inf"):
        raise MetricError("features are not finite")
    return max(distance, 0.0)


class IntraFID(GroupMetric):
    """Mean over the classes of the FID of ``intra_n_fake`` fakes of a class against all its real images."""

    names = ("intra_fid",)
    better = "lower"
    needs_labels = True
    protocol_fields = ("intra_n_fake", "intra_classes")

    def n_fake(self, protocol: Protocol) -> int:
        return protocol.intra_n_fake

    def check(self, protocol: Protocol, shape: ImageShape, n_real: dict[str, int]) -> None:
        if few := [f"{name!r} has {n}" for name, n in n_real.items() if n < 2]:
            more = f" and {len(few) - 3} more" if len(few) > 3 else ""
            told = ", ".join(few[:3]) + more
            raise MetricError(f"a covariance needs at least 2 reference images of each class, {told}")

    def __call__(self, group: Group, protocol: Protocol) -> float:
        assert group.pool is not None
        assert group.real is not None
        mean, cov = moments(take(group.pool, protocol.intra_n_fake))
        n, *of_real = group.real
        return factored_distance(ClassReference(n, *(t.to(cov.device) for t in of_real)), mean, cov)
