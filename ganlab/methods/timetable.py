"""What each step of a run does, and settings that change during it: pure functions of the step."""

from __future__ import annotations

from typing import Any, NamedTuple

from ganlab.schema import Count, NonNegative, Steps, checked


class Round(NamedTuple):
    """One step: D's updates, real samples of each, samples of G's update, the run's real samples before it,
    and progress, from 0 to 1, for networks that have ``set_progress``."""

    d_steps: int
    batch: int
    g_batch: int
    first_sample: int
    progress: float = 1.0


class Timetable:
    """The rounds of a run. Batch sizes are global; ranks and micro batches must divide them.

    Rounds with the config's ``d_steps`` are recorded where the engine records, the others run eagerly.
    """

    def prepare(self, e: Any) -> None:
        """Called with the ``Experiment`` once it is built. Raises ValueError("key: problem; fix")."""

    def round(self, step: int) -> Round:
        """The round of update number ``step``, counted from 0."""
        raise NotImplementedError

    def boundary(self, step: int) -> bool:
        """Whether a phase begins with ``step``: optimizers start anew, updates are recorded anew."""
        return False

    def pictured(self, step: int) -> bool:
        """Whether samples are drawn after ``step`` updates, beside every ``sample_every``."""
        return self.boundary(step)

    def stretches(self, steps: int) -> list[tuple[int, float]]:
        """The first ``steps`` updates by what they cost: steps to time, warm-ups of D apart, and how many
        updates each stands for."""
        return [(0, steps)]


class Steady(Timetable):
    """``d_steps`` in every round; ``warmup`` in the first ``updates`` and in every ``every``-th.

    extra: batches of real samples per round beside D's, for G.
    """

    def __init__(
        self, d_steps: int, batch: int, g_batch: int, extra: int, warmup: int, updates: int, every: int
    ) -> None:
        self.d_steps, self.batch, self.g_batch, self.extra = d_steps, batch, g_batch, extra
        self.warmup, self.updates, self.every = warmup or d_steps, updates, every

    def round(self, step: int) -> Round:
        first, every = min(step, self.updates), self.every
        warm = first + (-(-step // every) - -(-first // every) if every else 0)  # rounds before this one
        batches = step * (self.d_steps + self.extra) + warm * (self.warmup - self.d_steps)
        warming = step < self.updates or (every and step % every == 0)
        d_steps = self.warmup if warming else self.d_steps
        return Round(d_steps, self.batch, self.g_batch, batches * self.batch)

    def stretches(self, steps: int) -> list[tuple[int, float]]:
        batches = self.round(steps).first_sample / self.batch
        extra = batches - steps * (self.d_steps + self.extra)  # D's updates beyond d_steps: warm-ups
        return [(0, steps + extra / (self.d_steps + 1))]  # a G step counts as a D step


class Schedule:
    """The factor of a configured value at each step."""

    def __call__(self, step: int) -> float:
        raise NotImplementedError


class Halving(Schedule):
    """Half of the last value at every multiple of ``every``, never less than ``least``."""

    @checked
    def __init__(self, every: Count, least: NonNegative = 0.0) -> None:
        self.every, self.least = every, least

    def __call__(self, step: int) -> float:
        return max(0.5 ** (step // self.every), self.least)


class Linear(Schedule):
    """From ``first`` at step ``start`` to ``last`` at step ``end``, on a line; constant before and after.

    Raises ValueError unless start < end.
    """

    @checked
    def __init__(self, end: Steps, start: Steps = 0, first: float = 1.0, last: float = 0.0) -> None:
        if start >= end:
            raise ValueError(f"start: {start} is not below end={end}; lower it")
        self.end, self.start, self.first, self.last = end, start, first, last

    def __call__(self, step: int) -> float:
        share = (min(max(step, self.start), self.end) - self.start) / (self.end - self.start)
        return self.first - (self.first - self.last) * share
