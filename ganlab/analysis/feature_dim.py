"""Figure 4 of the SNGAN paper (arXiv:1802.05957): does a wider last feature map help or hurt?"""

from __future__ import annotations

from collections.abc import Sequence

from ganlab.analysis import series, subjects
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.schema import checked

KEY = "architecture.last_factor"


class FeatureDim(Analysis):
    """score against the width of D's last convolution, a band over seeds (SNGAN, Figure 4)

    Runs of several ``architecture.last_factor`` (the CNN's): the factor on the input and output dimension of
    its 7th convolution. The paper: STL-10, setting C, factors 0.5 to 8; orthonormal regularisation degrades,
    spectral normalisation does not. The latest step that most runs have counts.

    Args:
        score: as in result.json; null: the first of IS, FID, KID that there is.
    """

    runs = (2, 1000)

    @checked
    def __init__(self, score: str | None = None) -> None:
        self.score = score

    def make(self, runs: Sequence[Subject]) -> Finding:
        score, protocol, found = series.choose(runs, self.score, "feature_dim")
        step = series.commonest_step(found)
        at = series.at_step(score, protocol, step)
        factors = {factor(s) for s in runs if at(s) is not None}
        if len(factors) < 2:
            there = ", ".join(f"{f:g}" for f in sorted(factors)) or "none"
            what = f"the runs with a {score} at step {step} have one {KEY}: {there}"
            raise DataError("feature_dim", what, "give runs of several, as grid=sngan_fig4 makes")
        lines = series.lines(runs, KEY, lambda s: {} if (v := at(s)) is None else {factor(s): v})
        title = f"Width of D's last convolution: {subjects.common(runs)}"
        words = series.Words(title, f"after {step:,} updates")
        axis = series.Axis("factor on the dimensions of D's last convolution", lines, ticks=True)
        return series.finding(lines, "last_factor", [axis], words, score, protocol)


def factor(subject: Subject) -> float:
    """The run's ``architecture.last_factor``; 1 where it was not set."""
    value = subject.run.config.get(KEY)
    return float(value) if isinstance(value, (int, float)) else 1.0
