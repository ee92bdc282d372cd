"""WGAN (arXiv:1701.07875), Figure 1: Wasserstein and JS distances between parallel lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from ganlab.analysis import drawing
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject
from ganlab.schema import Positive, Range


class ParallelLines(Analysis):
    """Wasserstein distance and JS divergence between two parallel lines (WGAN, Figure 1); needs no run

    Compares the distributions of (0, Z) and (theta, Z) with Z uniform on [0, 1]: W = |theta|, while JS is
    log 2 (in nats) for every theta except 0, where it is 0. Only the Wasserstein distance provides a gradient
    towards theta = 0.

    Args:
        reach: theta ranges from -reach to reach.
        places: number of values of theta; an odd number includes 0.
    """

    runs = (0, 1000)
    reach: Positive = 1.0
    places: Annotated[int, Range(ge=3, le=100_001)] = 201

    def make(self, runs: Sequence[Subject]) -> Finding:
        thetas = [float(t) for t in np.linspace(-self.reach, self.reach, self.places)]
        rows = [{"theta": t, "wasserstein": abs(t), "js": math.log(2) * (t != 0)} for t in thetas]
        with drawing.Picture("Distances between two parallel lines", 7.2, 3.0) as picture:
            left, right = picture.panels(2, 2)
            left.plot(thetas, [abs(t) for t in thetas], lw=1.6)
            left.set(xlabel="theta", ylabel="Wasserstein-1 distance")
            for side in ([t for t in thetas if t < 0], [t for t in thetas if t > 0]):
                right.plot(side, [math.log(2)] * len(side), color="C0", lw=1.6)
            right.plot(0, 0, "o", color="C0", ms=4)
            right.set(xlabel="theta", ylabel="Jensen-Shannon divergence (nats)", ylim=(-0.03, 0.75))
        return Finding(picture.png, rows, [f"W = |theta|; JS = {math.log(2):.4f}, except 0 at theta = 0"])
