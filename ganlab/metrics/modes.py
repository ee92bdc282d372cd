"""Mode coverage of a mixture: number of modes hit, and fraction of points within one."""

from __future__ import annotations

import torch
from torch import Tensor

from ganlab.metrics.base import Accumulator, Collected, Metric, NotApplicable, Protocol, Real
from ganlab.schema import Positive, checked


class Modes(Metric[Real]):
    """``modes``: number with a high-quality sample; ``high_quality``: the fraction of such samples.

    Of ``fid_n_fake`` samples. High quality: within ``deviations`` standard deviations of the nearest mode's
    center (L2), as are 98.9 % of the points of a plane Gaussian with 3.
    Source: Srivastava et al. 2017 (VEEGAN), arXiv:1705.07761, section 4.1.
    """

    names = ("modes", "high_quality")
    better = "higher"
    kinds = ("points",)
    needs = frozenset({"samples", "real"})

    @checked
    def __init__(self, deviations: Positive = 3.0) -> None:
        self.deviations = deviations

    def n_fake(self, protocol: Protocol) -> int:
        return protocol.fid_n_fake

    def check(self, protocol: Protocol, real: Real) -> None:
        if "modes" not in real.facts:
            raise NotApplicable(f"{real.facts.get('name')} has no modes to count")

    def start(self, real: Real, protocol: Protocol) -> Accumulator:
        self.check(protocol, real)
        mixture = real.facts["modes"]
        centers, radius = torch.tensor(mixture["centres"]), self.deviations * mixture["std"]
        return Collected("samples", self.n_fake(protocol), lambda x: coverage(x.cpu(), centers, radius))


def coverage(points: Tensor, centers: Tensor, radius: float) -> dict[str, float]:
    """Modes hit by points (n, 2), with centers (K, 2), and the fraction of points that hit one."""
    distances = torch.cdist(points.double(), centers.double())
    nearest, mode = distances.min(1)
    hit = nearest <= radius
    return {"modes": float(mode[hit].unique().numel()), "high_quality": float(hit.double().mean())}
