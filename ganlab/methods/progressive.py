"""The timetable of networks that grow (Karras et al. 2018, arXiv:1710.10196, appendix A)."""

from __future__ import annotations

import bisect
from typing import Annotated, Any, NamedTuple

from ganlab.methods.timetable import Round, Timetable
from ganlab.schema import MAX_COUNT, Count, Positive, Range, Steps, checked


class Phase(NamedTuple):
    """Updates at one resolution: their number, whether a finer scale fades in, and the counts before."""

    level: int
    fades: bool
    batch: int
    updates: int
    first_update: int
    first_sample: int


class Progressive(Timetable):
    """From 4x4 pixels to the data's resolution, doubling: a fade of ``fade`` images, then a stable stretch.

    The first resolution has no fade, the last one lasts until the run ends. Optimizers start anew at both
    ends of a fade.

    Args:
        phase: real images at each resolution, the fade included: 1.2 million by default in the code, 1.6
            million for CelebA-HQ, LSUN and the ablation, 800,000 for CIFAR-10.
        fade: real images during which a resolution fades in; half of ``phase`` there.
        batch: real images of an update by resolution, where it is not ``batch_size``: the paper has
            {"256": 14, "512": 6, "1024": 3}.
        first: the resolution to begin with; that of the data: no growth.
        rate: factor of the learning rates by resolution, where it is not 1.

    Raises ValueError for a fade longer than its phase, and for unknown resolutions.
    """

    @checked
    def __init__(
        self,
        phase: Count = 1_200_000,
        fade: Steps = 600_000,
        first: Annotated[int, Range(ge=4, le=1024)] = 4,
        batch: dict[str | int, Count] | None = None,
        rate: dict[str | int, Positive] | None = None,
    ) -> None:
        if fade >= phase:
            raise ValueError(f"fade: {fade} images are not less than the {phase} of a phase; lower it")
        for key, part in (("batch", batch), ("rate", rate)):
            if unknown := {str(k) for k in part or ()} - {str(4 << level) for level in range(9)}:
                raise ValueError(f"{key}: {min(unknown)!r} is no resolution; use 4, 8, 16, ..., 1024")
        self.stable, self.fade, self.start = phase - fade, fade, first
        self.batch, self.rate = ({str(k): v for k, v in (part or {}).items()} for part in (batch, rate))
        self.phases: list[Phase] = []

    def prepare(self, e: Any) -> None:
        if not e.architecture.grows:
            raise ValueError("timetable: this architecture does not grow; use architecture=progan")
        first, self.last = self.start.bit_length() - 3, e.shape[-1].bit_length() - 3
        if self.start & (self.start - 1) or first > self.last:
            what = f"{self.start} is no power of two up to the images' {e.shape[-1]} pixels"
            raise ValueError(f"timetable.first: {what}; set it to 4")
        self.phases, self.d_steps, self.extra, update, sample = [], e.d_steps, e.extra_batches, 0, 0
        for level in range(first, self.last + 1):
            size = self.batch.get(str(4 << level), e.batch_size)
            for fades, images in ((True, 0 if level == first else self.fade), (False, self.stable)):
                endless = level == self.last and not fades
                count = MAX_COUNT if endless else -(-images // (size * self.d_steps))
                if count:
                    self.phases.append(Phase(level, fades, size, count, update, sample))
                update, sample = update + count, sample + count * size * (self.d_steps + self.extra)
        if self.rate:
            e.schedules["optimizer.lr"] = lambda step: self.rate.get(str(4 << self._phase(step).level), 1.0)

    def _phase(self, step: int) -> Phase:
        return self.phases[bisect.bisect([p.first_update for p in self.phases], step) - 1]

    def round(self, step: int) -> Round:
        phase = self._phase(step)
        done = step - phase.first_update
        first = phase.first_sample + done * phase.batch * (self.d_steps + self.extra)
        stage = phase.level - 1 + (done + 1) / phase.updates if phase.fades else phase.level
        return Round(self.d_steps, phase.batch, phase.batch, first, stage / self.last)

    def boundary(self, step: int) -> bool:
        return step > 0 and self._phase(step).first_update == step

    def pictured(self, step: int) -> bool:
        """Whether a phase ends with ``step`` updates, or a fade is half done."""
        phase = self._phase(step)
        return self.boundary(step) or (phase.fades and step == phase.first_update + phase.updates // 2)

    def stretches(self, steps: int) -> list[tuple[int, float]]:
        begun = [p for p in self.phases if p.first_update < steps]
        return [(p.first_update, min(p.updates, steps - p.first_update)) for p in begun]
