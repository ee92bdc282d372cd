"""Figure 11 of the SNGAN paper (arXiv:1802.05957): what more D updates per G update do to the score."""

from __future__ import annotations

from collections.abc import Sequence

from ganlab.analysis import series, subjects
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.schema import Count, checked


class DSteps(Analysis):
    """score after a number of generator updates against d_steps (n_dis), a band over seeds (SNGAN, Figure 11)

    The paper: CIFAR-10, setting D with n_dis 1, 2, 5, 10, 20, after 10,000 updates; weight normalisation
    falls with more D updates, spectral normalisation does not.

    Args:
        updates: generator updates after which the score is taken; null: the latest that most runs have.
        score: as in result.json; null: the first of IS, FID, KID that there is.
    """

    runs = (2, 1000)

    @checked
    def __init__(self, updates: Count | None = None, score: str | None = None) -> None:
        self.updates, self.score = updates, score

    def make(self, runs: Sequence[Subject]) -> Finding:
        score, protocol, found = series.choose(runs, self.score, "d_steps")
        step = self.updates or series.commonest_step(found)
        at = series.at_step(score, protocol, step)
        if not any(at(s) is not None for s in runs):
            steps = ", ".join(map(str, sorted({m.step for m in found})[-8:]))
            raise DataError("updates", f"no run has a {score} at step {step}", f"there are {steps}")
        counts = {d_steps(s) for s in runs if at(s) is not None}
        if len(counts) < 2:
            what = f"the runs with a {score} at step {step} have one d_steps: {', '.join(map(str, counts))}"
            raise DataError("d_steps", what, "give runs of several, as grid=sngan_fig11 makes")
        lines = series.lines(runs, "d_steps", lambda s: {} if (v := at(s)) is None else {d_steps(s): v})
        title = f"D updates per G update: {subjects.common(runs)}"
        words = series.Words(title, f"after {step:,} generator updates")
        axis = series.Axis("D updates per G update", lines, ticks=True)
        return series.finding(lines, "d_steps", [axis], words, score, protocol)


def d_steps(subject: Subject) -> int:
    """D updates per G update; 1 where the run does not say."""
    value = subject.run.config.get("d_steps")
    return int(value) if isinstance(value, (int, float)) else 1
