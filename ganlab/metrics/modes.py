"""Mode coverage of a mixture: modes hit, and the fraction of points that lie in one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ganlab.metrics.base import MetricError, Protocol, Real, SampleMetric
from ganlab.schema import Positive, checked


class Modes(SampleMetric):
    """``modes``: number with a high-quality sample; ``high_quality``: the fraction of such samples.

    A sample is of high quality within ``deviations`` standard deviations of the nearest mode's centre (L2).
    Source: Srivastava et al. 2017 (VEEGAN), arXiv:1705.07761, section 4.1, with 3; of real points of a
    Gaussian in the plane 98.9 % are. Of ``fid_n_fake`` samples.
    """

    names = ("modes", "high_quality")
    better = "higher"
    kinds = ("points",)

    @checked
    def __init__(self, deviations: Positive = 3.0) -> None:
        self.deviations = deviations

    def options(self) -> dict[str, Any]:
        return {"deviations": self.deviations}

    def n_fake(self, protocol: Protocol) -> int:
        return protocol.fid_n_fake

    def not_applicable(self, real: Real) -> str:
        return "" if "modes" in real.facts else f"{real.facts.get('name')} has no modes to count"

    def __call__(self, real: Real, fake: Tensor, protocol: Protocol) -> dict[str, float]:
        if reason := self.not_applicable(real):
            raise MetricError(reason)
        mixture = real.facts["modes"]
        return coverage(fake, torch.tensor(mixture["centres"]), self.deviations * mixture["std"])


def coverage(points: Tensor, centers: Tensor, radius: float) -> dict[str, float]:
    """Modes hit by points (n, 2), with centers (K, 2), and the fraction of points that hit one."""
    distances = torch.cdist(points.double(), centers.double())
    nearest, mode = distances.min(1)
    hit = nearest <= radius
    return {"modes": float(mode[hit].unique().numel()), "high_quality": float(hit.double().mean())}
