"""Learning curves: SNGAN (arXiv:1802.05957), Figures 5, 13; WGAN-GP (arXiv:1704.00028), Figure 3."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Literal

from ganlab.analysis import series
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError

UNITS = (("seconds", 1.0, 120.0), ("minutes", 60.0, 7200.0), ("hours", 3600.0, float("inf")))


class LearningCurves(Analysis):
    """score over updates or time, one line per method, band over seeds (SNGAN, 5 and 13; WGAN-GP, 3)

    Plots the scores recorded during training under the protocol that most runs share. Seeds are averaged;
    ganlab report plots single runs and losses. Time is training time only, summed from the speeds in
    metrics.jsonl, without evaluations, sample grids and checkpoints, and averaged over seeds. Compare times
    only between runs on the same hardware under the same load.

    Args:
        score: a name in metrics.jsonl; null: the first available of IS, FID, KID.
        x: updates, time, or both (side by side).
    """

    score: str | None = None
    x: Literal["updates", "time", "both"] = "updates"

    def make(self, runs: Sequence[Subject]) -> Finding:
        score, protocol, _ = series.choose(runs, self.score, "learning_curves", curves=True)
        needs_time = self.x != "updates"

        def curve(subject: Subject) -> dict[float, float]:
            own = (m for m in series.measures(subject) if (m.score, m.protocol) == (score, protocol))
            return {m.step: m.value for m in own if not needs_time or subject.run.train_s(m.step) is not None}

        def seconds(subject: Subject) -> dict[float, float]:
            return {step: subject.run.train_s(int(step)) or 0.0 for step in curve(subject)}

        lines = series.lines(runs, "", curve)
        if not lines:
            problem = "the runs have no recorded speeds, so their time is unknown"
            raise DataError("x", problem, "train with log_every=N, or plot x=updates")
        clock = series.lines(runs, "", seconds) if needs_time else None
        axes = [series.Axis("generator updates", lines)] if self.x != "time" else []
        axes += [_over_time(lines, clock)] if clock else []
        caption = series.Caption("Learning curves", "scores during training", score, protocol)
        return series.finding(runs, lines, "step", axes, caption, clock, series.optimizers(runs))


def _over_time(lines: series.Lines, clock: series.Lines) -> series.Axis:
    """The lines with each step replaced by its training time, the mean over seeds."""
    seconds = {line: {step: fmean(p.values) for step, p in places.items()} for line, places in clock.items()}
    longest = max(t for times in seconds.values() for t in times.values())
    unit, size, _ = next(u for u in UNITS if longest < u[2])
    by_time = {
        line: {seconds[line][step] / size: p for step, p in places.items()} for line, places in lines.items()
    }
    return series.Axis(f"training time without evaluations ({unit})", by_time)
