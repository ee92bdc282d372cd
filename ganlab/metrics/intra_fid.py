"""Intra-FID: the FID of each class, averaged over the classes; lower is better.

Unlike FID it notices a conditional generator that ignores its labels, or that collapses within classes.
Source: Miyato & Koyama 2018, arXiv:1802.05637, section 4: all training images of a class against 5,000
generated ones.
"""

from __future__ import annotations

from torch import Tensor

from ganlab.metrics.base import (
    Accumulator,
    ClassReference,
    Metric,
    MetricError,
    Protocol,
    Real,
    moments,
    require_finite,
    square_root,
)
from ganlab.metrics.fid import RunningFID, distance


def factored(pool: Tensor) -> ClassReference:
    """The Gaussian of features (N, D) with N >= 2; see ``ClassReference``. Raises MetricError.

    With N <= D the factor is the centered rows divided by sqrt(N - 1): no eigenvalues needed.
    """
    n, d = pool.shape
    if n > d:
        mean, cov = moments(pool)
        return ClassReference(n, mean, square_root(cov))
    if n < 2:
        raise MetricError(f"a covariance needs at least 2 images, there are {n}")
    rows = pool.double()
    mean = rows.mean(0)
    require_finite(mean)
    return ClassReference(n, mean, (rows - mean) / (n - 1) ** 0.5)


def factored_distance(real: ClassReference, mean: Tensor, cov: Tensor) -> float:
    """``fid.frechet_distance`` of a factored Gaussian and another, in float64.

    With C = F^T F, C C2 has the non-zero eigenvalues of the symmetric F C2 F^T (r, r): with 1,300 images of
    2,048 features the rank-deficient C is never computed. Raises MetricError if it is not finite.
    """
    product = real.factor @ cov @ real.factor.T
    return distance(real.mean - mean, real.factor.square().sum() + cov.trace(), product)


class IntraFID(Metric[ClassReference]):
    """Mean over the classes of the FID of ``intra_n_fake`` generated images against all real ones."""

    names = ("intra_fid",)
    better = "lower"
    needs = frozenset({"features", "labels", "real"})
    per_class = own_record = True
    protocol_fields = ("intra_n_fake", "intra_classes")

    def n_fake(self, protocol: Protocol) -> int:
        return protocol.intra_n_fake

    def check(self, protocol: Protocol, real: Real) -> None:
        if few := [f"{name!r} has {n}" for name, n in real.class_counts.items() if n < 2]:
            more = f" and {len(few) - 3} more" if len(few) > 3 else ""
            classes = ", ".join(few[:3]) + more
            raise MetricError(f"a covariance needs at least 2 reference images of each class, {classes}")

    def start(self, real: ClassReference, protocol: Protocol) -> Accumulator:
        def of_real(mean: Tensor, cov: Tensor) -> float:
            n, *gaussian = real
            return factored_distance(ClassReference(n, *(t.to(cov.device) for t in gaussian)), mean, cov)

        return RunningFID("intra_fid", protocol.intra_n_fake, of_real)
