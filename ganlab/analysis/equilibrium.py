"""BEGAN (arXiv:1703.10717), Figure 2 and its gamma: the two losses, their ratio, k and M_global."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from ganlab import text
from ganlab.analysis import drawing
from ganlab.analysis.base import Analysis, Finding, Row
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.report.draw import style

LINES = {"real": ("L(x)", "#0072b2"), "fake": ("L(G(z))", "#d55e00"), "m_global": ("M_global", "#000000")}
OTHERS = {"ratio": ("L(G(z)) / L(x)", "#009e73"), "k": ("k", "#882255")}


class Equilibrium(Analysis):
    """BEGAN's losses L(x) and L(G(z)), their ratio beside gamma, k and M_global over updates

    One column per run. L is the error of D's reconstruction; k moves until L(G(z)) / L(x) is gamma, and
    M_global = L(x) + |gamma L(x) - L(G(z))| falls as the run converges. The losses are means since the last
    log line, k and M_global those of its update. The report gives means over the last quarter of the lines.
    """

    runs = (1, 6)

    def make(self, runs: Sequence[Subject]) -> Finding:
        tables = {subject: _rows(subject) for subject in runs}
        report = ["means over the last quarter: L(x), L(G(z)), their ratio (gamma), k, M_global"]
        for subject, rows in tables.items():
            last = rows[-(len(rows) // 4 or 1) :]
            real, fake, k, m = (fmean(row[key] for row in last) for key in ("real", "fake", "k", "m_global"))
            ratio = f"{fake / real:.3g} ({_gamma(subject):g})"
            report.append(f"  {subject.label}: {real:.4g}, {fake:.4g}, {ratio}, {k:.3g}, {m:.4g}")
        return Finding(_draw(tables), [row for rows in tables.values() for row in rows], report)


def _gamma(subject: Subject) -> float:
    return float(subject.run.config["loss.gamma"])


def _rows(subject: Subject) -> list[Row]:
    """Losses, ratio, k and M_global at each log line. Raises DataError if the run is not BEGAN's."""
    curves = {name: curve.finite() for (name, protocol), curve in subject.run.curves.items() if not protocol}
    names = ("loss/d_real", "loss/g", "began/k", "began/m_global")
    if "loss.gamma" not in subject.run.config or not all(curves.get(name) for name in names):
        problem = f"{subject.run.label} has no log of BEGAN's k and M_global"
        raise DataError("equilibrium", problem, "choose runs with loss=began and log_every=N")
    d_real, fake, k, m = (curves[name] for name in names)
    return [
        {**subject.columns, "step": step, "real": -real, "fake": fake[step], "ratio": fake[step] / -real,
         "k": k[step], "m_global": m[step]}
        for step, real in d_real.items() if step in fake.keys() & k.keys() & m.keys()
    ]  # fmt: skip


def _draw(tables: dict[Subject, list[Row]]) -> bytes:
    n = len(tables)
    with drawing.Picture("BEGAN's equilibrium", max(5.0, 3.4 * n + 1), 6.0, tables) as picture:
        axes = picture.panels(3 * n, n, sharex="col", sharey="row")
        for i, (subject, rows) in enumerate(tables.items()):
            losses, ratio, k = axes[i::n]
            steps = [row["step"] for row in rows]
            for ax, names in ((losses, LINES), (ratio, ("ratio",)), (k, ("k",))):
                for name in names:
                    label, color = (LINES | OTHERS)[name]
                    ax.plot(steps, [row[name] for row in rows], color=color, lw=1.0, label=label)
            ratio.axhline(_gamma(subject), color=style.GREY, ls=":", lw=1, label="gamma")
            run = [text.plain(subject.label, 60)] if n > 1 else []
            losses.set_title(style.wrap(", ".join([*run, f"gamma = {_gamma(subject):g}"]), 48, 2))
            losses.set_ylim(bottom=0)
            ratio.set_ylim(bottom=0)
            k.set_ylim(-0.02, 1.02)
            style.updates_axis(k, 5)
        for ax, label in zip(axes[::n], ("error of D's reconstruction", "L(G(z)) / L(x)", "k"), strict=True):
            ax.set_ylabel(label)
        drawing.outer_labels(axes, n, "generator updates")
        picture.legend([*axes[0].get_lines(), *axes[n].get_lines(), *axes[2 * n].get_lines()])
    return picture.png
