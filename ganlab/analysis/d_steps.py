"""SNGAN (arXiv:1802.05957), Figure 11: score against D updates per G update."""

from __future__ import annotations

from collections.abc import Sequence

from ganlab.analysis import series
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject
from ganlab.schema import Count


class DSteps(Analysis):
    """score after a fixed number of G updates against d_steps (n_dis), band over seeds (SNGAN, Figure 11)

    One line per method, with the mean and standard deviation over seeds. The paper uses CIFAR-10, setting D
    with n_dis 1, 2, 5, 10 and 20, after 10,000 generator updates: weight normalization gets worse with more D
    updates, spectral normalization does not.

    Args:
        updates: generator updates at which to compare; null: the latest step that most runs have.
        score: a name in result.json; null: the first available of IS, FID, KID.
    """

    runs = (2, 1000)
    updates: Count | None = None
    score: str | None = None

    def make(self, runs: Sequence[Subject]) -> Finding:
        against = series.Against(
            "d_steps", "d_steps", "D updates per G update", grid="sngan_fig11", number=int
        )
        return series.against(runs, against, self.score, self.updates, "D updates per G update")
