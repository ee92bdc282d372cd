"""A score over updates or time: SNGAN's Figures 5, 13 (arXiv:1802.05957), WGAN-GP's 3 (arXiv:1704.00028)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Literal

from ganlab.analysis import series, subjects
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.schema import checked

UNITS = (("seconds", 1.0, 120.0), ("minutes", 60.0, 7200.0), ("hours", 3600.0, float("inf")))


class LearningCurves(Analysis):
    """a score over updates or over time, a line per method, a band over seeds (SNGAN, 5 and 13; WGAN-GP, 3)

    The scores during training, under the protocol that most runs have. ``ganlab report`` draws every run of
    its own, and the losses; here seeds are averaged. The time is that of the updates alone, added up from
    the speeds in metrics.jsonl: evaluations, sample grids and checkpoints are not in it; at a score it is the
    mean over the seeds. It compares runs only where all had the machine alike.

    Args:
        score: as in metrics.jsonl; null: the first of IS, FID, KID that there is.
        x: updates, time, or both, side by side.
    """

    @checked
    def __init__(self, score: str | None = None, x: Literal["updates", "time", "both"] = "updates") -> None:
        self.score, self.x = score, x

    def make(self, runs: Sequence[Subject]) -> Finding:
        score, protocol, found = series.choose(runs, self.score, "learning_curves")
        timed = self.x != "updates"
        if len({m.step for m in found}) < 2:
            what = f"the runs have one {score} each, no curve"
            raise DataError("learning_curves", what, "train with eval_every=N")

        def curve(subject: Subject) -> dict[float, float]:
            own = (m for m in series.measures(subject) if (m.score, m.protocol) == (score, protocol))
            return {m.step: m.value for m in own if not timed or subject.run.train_s(m.step) is not None}

        def seconds(subject: Subject) -> dict[float, float]:
            return {step: subject.run.train_s(int(step)) or 0.0 for step in curve(subject)}

        lines = series.lines(runs, "", curve)
        if not lines:
            what = "the runs do not tell their speed, so no time is known"
            raise DataError("x", what, "train with log_every=N, or draw x=updates")
        clock = series.lines(runs, "", seconds) if timed else None
        axes = [series.Axis("generator updates", lines)] if self.x != "time" else []
        axes += [_over_time(lines, clock)] if clock else []
        words = series.Words(f"Learning curves: {subjects.common(runs)}", "scores during training")
        optimizers = series.optimizers(runs)
        return series.finding(lines, "step", axes, words, score, protocol, clock, optimizers)


def _over_time(lines: series.Lines, clock: series.Lines) -> series.Axis:
    """The lines with the time of each of their steps, mean over seeds, in the place of the step."""
    spent = {line: {step: fmean(p.values) for step, p in places.items()} for line, places in clock.items()}
    longest = max(t for times in spent.values() for t in times.values())
    unit, size, _ = next(u for u in UNITS if longest < u[2])
    over = {
        line: {spent[line][step] / size: p for step, p in places.items()} for line, places in lines.items()
    }
    return series.Axis(f"training time without evaluations ({unit})", over)
