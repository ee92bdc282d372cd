"""SNGAN (arXiv:1802.05957), Figure 4: score against the width of D's last convolution."""

from __future__ import annotations

from collections.abc import Sequence

from ganlab.analysis import series
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject


class FeatureDim(Analysis):
    """score against the width of D's last convolution, band over seeds (SNGAN, Figure 4)

    Needs runs with several values of architecture.last_factor, which scales the input and output channels of
    the CNN's seventh convolution. Scores are compared at the latest step that most runs have. The paper uses
    STL-10, setting C, factors 0.5 to 8: orthonormal regularization degrades, spectral normalization does not.

    Args:
        score: a name in result.json; null: the first available of IS, FID, KID.
    """

    runs = (2, 1000)
    score: str | None = None

    def make(self, runs: Sequence[Subject]) -> Finding:
        label = "factor on the dimensions of D's last convolution"
        against = series.Against("architecture.last_factor", "last_factor", label, grid="sngan_fig4")
        return series.against(runs, against, self.score, None, "Width of D's last convolution")
