"""Density and coverage: precision and recall by the neighborhoods of real images alone, robust to outliers.

Source: Naeem et al. 2020, arXiv:2002.09797, equations 4 and 6, and its code (k = 5, open balls).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ganlab.metrics.base import MetricError
from ganlab.metrics.precision_recall import ROWS, PrecisionRecall, radii
from ganlab.schema import Count, checked


def density_coverage(real: Tensor, fake: Tensor, neighbours: int) -> tuple[float, float]:
    """Density and coverage of features ``real`` (N, D) and ``fake`` (M, D), in float64.

    Density is the mean number of real neighborhoods around a generated image, divided by k: 1 for the real
    distribution, and not bounded by it. Coverage is the fraction of real images with a generated one in their
    neighborhood. Raises MetricError for at most ``neighbours`` real images.
    """
    if len(real) <= neighbours:
        raise MetricError(f"{neighbours} neighbours need at least {neighbours + 1} images, not {len(real)}")
    real, fake = real.double(), fake.double()
    count, covered, radius = 0, 0, radii(real, neighbours)
    for rows, limit in zip(real.split(ROWS), radius.split(ROWS), strict=True):
        inside = torch.cdist(rows, fake) < limit[:, None]
        count, covered = count + int(inside.sum()), covered + int(inside.any(1).sum())
    return count / (neighbours * len(fake)), covered / len(real)


class DensityCoverage(PrecisionRecall):
    """Density and coverage of at most ``n`` images each: the first generated, evenly spaced real ones."""

    names = ("density", "coverage")
    score = staticmethod(density_coverage)

    @checked
    def __init__(self, neighbours: Count = 5, n: Count = 10_000) -> None:
        super().__init__(neighbours, n)
