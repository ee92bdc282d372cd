"""Interpolations between latents: smooth changes suggest that G generalizes, jumps that it memorizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from ganlab.analysis import drawing, subjects
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject, as_bytes, generate
from ganlab.report.draw import sheet
from ganlab.samples.latents import interpolate
from ganlab.schema import Count, Range, Steps


class Interpolations(Analysis):
    """images interpolated between pairs of latents, one pair per row, and the pixel change of each step

    The path is spherical (slerp), which preserves the norm of a Gaussian z. In conditional runs, all images
    of a row have the same class.

    Args:
        checkpoint: last, best, or a step.
        pairs: rows for each run; null: 6 for a single run, 2 each for several.
        columns: images per row, including both ends.
        seed: random seed of the latents; runs with equal z_dim share them.
    """

    kinds = ("images",)
    runs = (1, 12)
    checkpoint: str | int = "last"
    pairs: Count | None = None
    columns: Annotated[int, Range(ge=2, le=64)] = 10
    seed: Steps = 0

    def make(self, runs: Sequence[Subject]) -> Finding:
        cells = {}
        result = Finding(
            report=["root mean square pixel change (range 2) per interpolation step: mean, largest"]
        )
        pairs = self.pairs or (6 if len(runs) == 1 else 2)
        for i, subject in enumerate(runs):
            gan, step = subject.restore(self.checkpoint)
            z, y = subject.draw(gan, 2 * pairs, self.seed)
            latents = interpolate(z[:pairs], z[pairs:], self.columns)
            labels = None if y is None else y[:pairs].repeat_interleave(self.columns)
            x = generate(gan, latents, labels)
            cells[i, 0] = sheet.Tile(drawing.block(as_bytes(x), self.columns), f"step {step:,}")
            changes = x.reshape(pairs, self.columns, -1).diff(dim=1).square().mean(2).sqrt()
            result.report.append(f"  {subject.label}: {changes.mean():.4f}, {changes.max():.4f}")
            result.rows += [
                {**subject.columns, "step": step, "pair": p, "from": c, "to": c + 1, "rms_change": float(v)}
                for p, steps in enumerate(changes)
                for c, v in enumerate(steps)
            ]
        names = [s.label for s in runs] if len(runs) > 1 else [""]
        title = f"Interpolations: {runs[0].label + ', ' if len(runs) == 1 else ''}{subjects.common(runs)}"
        result.png = sheet.png(title, names, [""], cells)
        return result
