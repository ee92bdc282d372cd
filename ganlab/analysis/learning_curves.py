"""Figures 5 and 13 of the SNGAN paper (arXiv:1802.05957): a score over the updates, per method."""

from __future__ import annotations

from collections.abc import Sequence

from ganlab.analysis import series, subjects
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.schema import checked


class LearningCurves(Analysis):
    """a score over the generator updates, a line per method, a band over seeds (SNGAN, Figures 5 and 13)

    The scores during training, under the protocol that most runs have. ``ganlab report`` draws every run of
    its own, and the losses; here seeds are averaged.

    Args:
        score: as in metrics.jsonl; null: the first of IS, FID, KID that there is.
    """

    @checked
    def __init__(self, score: str | None = None) -> None:
        self.score = score

    def make(self, runs: Sequence[Subject]) -> Finding:
        score, protocol, found = series.choose(runs, self.score, "learning_curves")
        if len({m.step for m in found}) < 2:
            what = f"the runs have one {score} each, no curve"
            raise DataError("learning_curves", what, "train with eval_every=N")

        def curve(subject: Subject) -> dict[float, float]:
            own = (m for m in series.measures(subject) if (m.score, m.protocol) == (score, protocol))
            return {m.step: m.value for m in own}

        lines = series.lines(runs, "", curve)
        words = (f"Learning curves: {subjects.common(runs)}", "generator updates", "scores during training")
        return series.finding(lines, "step", words, score, protocol)
