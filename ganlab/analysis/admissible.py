"""SNGAN (arXiv:1802.05957), Figure 14: singular values that each normalization admits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ganlab.analysis import drawing
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject
from ganlab.report.draw import style
from ganlab.schema import Range

DECAYS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)  # s_i^2 proportional to i^-decay
NAMES = {"wn": "weight norm / sqrt(d_out)", "sn": "spectral norm"}
COLORS = {name: style.METHOD_COLORS[name] for name in NAMES}


class Admissible(Analysis):
    """singular values that weight and spectral normalization admit (SNGAN, Figure 14); needs no run

    A (d_out, d_in) weight whose rows have unit norm has squared singular values that sum to d_out, and every
    such spectrum is attained by some weight (Schur-Horn theorem). Divided by d_out they sum to 1, so one
    large value forces the others to be small. Spectral normalization constrains only the largest value. The
    left panel shows d = 2; the right panel shows spectra s_i^2 ~ i^-a scaled to satisfy each constraint.

    Args:
        d: number of singular values in the right panel.
    """

    runs = (0, 1000)
    d: Annotated[int, Range(ge=2, le=1000)] = 16

    def make(self, runs: Sequence[Subject]) -> Finding:
        rows = [
            {"norm": norm, "decay": decay, "index": i, "squared": float(v)}
            for norm in NAMES
            for decay in DECAYS
            for i, v in enumerate(spectrum(norm, self.d, decay), 1)
        ]
        report = [
            f"largest of {self.d} squared singular values, over all decay rates: "
            f"{NAMES['wn']} {1 / self.d:.4g} to 1, spectral norm always 1",
            f"sum of squares: {NAMES['wn']} always 1, spectral norm 1 to {self.d}",
        ]
        with drawing.Picture("Singular values that each normalization admits", 7.6, 3.5) as picture:
            left, right = picture.panels(2, 2)
            _plane(left)
            ranks = range(1, self.d + 1)
            for norm, color in COLORS.items():
                for decay in DECAYS:
                    right.plot(ranks, spectrum(norm, self.d, decay), "o-", color=color, lw=1, ms=2.2)
            right.set(xlabel="rank", ylabel="squared singular value")
            right.set_title(f"d = {self.d}: spectra ~ rank^-a, a = {', '.join(f'{a:g}' for a in DECAYS)}")
            picture.legend([Line2D([], [], color=COLORS[k], lw=1.6, label=NAMES[k]) for k in NAMES])
        return Finding(picture.png, rows, report)


def spectrum(norm: str, d: int, decay: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Squared singular values (d,) proportional to rank^-decay: ``wn`` sums to 1, ``sn`` starts at 1."""
    values = np.arange(1, d + 1, dtype=np.float64) ** -decay
    return values / values.sum() if norm == "wn" else values


def _plane(ax: Axes) -> None:
    """Draw the admissible sets for d = 2 in the plane of (s_1, s_2), s_1 >= s_2."""
    angle = np.linspace(0, np.pi / 4, 100)
    ax.fill_between([0, 1.15], [0, 1.15], 1.15, color="#f2f2f2", lw=0)
    ax.plot(np.cos(angle), np.sin(angle), color=COLORS["wn"], lw=2)
    ax.plot([1, 1], [0, 1], color=COLORS["sn"], lw=2)
    ax.text(0.32, 0.72, "s1 < s2", color=style.GREY, fontsize=7)
    ax.set(xlim=(0, 1.15), ylim=(0, 1.15), xlabel="largest singular value s1", ylabel="s2", aspect="equal")
    ax.set_title("d = 2")
