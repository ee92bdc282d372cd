"""SNGAN (arXiv:1802.05957), Figure 4: score against the width of D's last convolution."""

from __future__ import annotations

from collections.abc import Sequence

from ganlab.analysis import series, subjects
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.schema import checked

KEY = "architecture.last_factor"


class FeatureDim(Analysis):
    """score against the width of D's last convolution, band over seeds (SNGAN, Figure 4)

    Needs runs with several values of architecture.last_factor, which scales the input and output channels of
    the CNN's seventh convolution. Scores are compared at the latest step that most runs have. The paper uses
    STL-10, setting C, factors 0.5 to 8: orthonormal regularization degrades, spectral normalization does not.

    Args:
        score: a name in result.json; null: the first available of IS, FID, KID.
    """

    runs = (2, 1000)

    @checked
    def __init__(self, score: str | None = None) -> None:
        self.score = score

    def make(self, runs: Sequence[Subject]) -> Finding:
        score, protocol, measures = series.choose(runs, self.score, "feature_dim")
        step = series.commonest_step(measures)
        at = series.at_step(score, protocol, step)
        factors = {factor(s) for s in runs if at(s) is not None}
        if len(factors) < 2:
            values = ", ".join(f"{f:g}" for f in sorted(factors)) or "none"
            problem = f"all runs with {score} at step {step} have the same {KEY}: {values}"
            raise DataError("feature_dim", problem, "pass runs with several values, as from grid=sngan_fig4")
        lines = series.lines(runs, KEY, lambda s: {} if (v := at(s)) is None else {factor(s): v})
        title = f"Width of D's last convolution: {subjects.common(runs)}"
        caption = series.Caption(title, f"after {step:,} updates")
        axis = series.Axis("factor on the dimensions of D's last convolution", lines, ticks=True)
        return series.finding(lines, "last_factor", [axis], caption, score, protocol)


def factor(subject: Subject) -> float:
    """The run's ``architecture.last_factor``; 1 if unset."""
    value = subject.run.config.get(KEY)
    return float(value) if isinstance(value, (int, float)) else 1.0
