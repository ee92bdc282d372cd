"""SNGAN (arXiv:1802.05957), Figure 11: score against D updates per G update."""

from __future__ import annotations

from collections.abc import Sequence

from ganlab.analysis import series, subjects
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.schema import Count, checked


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

    @checked
    def __init__(self, updates: Count | None = None, score: str | None = None) -> None:
        self.updates, self.score = updates, score

    def make(self, runs: Sequence[Subject]) -> Finding:
        score, protocol, measures = series.choose(runs, self.score, "d_steps")
        step = self.updates or series.commonest_step(measures)
        at = series.at_step(score, protocol, step)
        if not any(at(s) is not None for s in runs):
            steps = ", ".join(map(str, sorted({m.step for m in measures})[-8:]))
            raise DataError("updates", f"no run has {score} at step {step}", f"available steps: {steps}")
        counts = {d_steps(s) for s in runs if at(s) is not None}
        if len(counts) < 2:
            problem = (
                f"all runs with {score} at step {step} have the same d_steps: {', '.join(map(str, counts))}"
            )
            raise DataError("d_steps", problem, "pass runs with several values, as from grid=sngan_fig11")
        lines = series.lines(runs, "d_steps", lambda s: {} if (v := at(s)) is None else {d_steps(s): v})
        title = f"D updates per G update: {subjects.common(runs)}"
        caption = series.Caption(title, f"after {step:,} generator updates")
        axis = series.Axis("D updates per G update", lines, ticks=True)
        return series.finding(lines, "d_steps", [axis], caption, score, protocol)


def d_steps(subject: Subject) -> int:
    """D updates per G update; 1 if the config has no such key."""
    value = subject.run.config.get("d_steps")
    return int(value) if isinstance(value, (int, float)) else 1
