"""SNGAN (arXiv:1802.05957), Figure 3: squared singular values of D's convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal

from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ganlab import text
from ganlab.analysis import drawing
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.methods import singular_values

MAX_LAYERS = 40
MEANS = ("area", "share_of_largest", "effective_rank_share")


class SingularValues(Analysis):
    """squared singular values of D's layers, scaled so that the largest is 1 (SNGAN, Figure 3)

    Shows whether spectra are concentrated or spread out. Weights are used as applied: under spectral or
    weight normalization, the normalized weights. The tables list the values and, per layer, the share of the
    largest in the sum of squares, the area under the curve and the effective rank.

    Args:
        checkpoint: last, best, or a step.
        layers: convolutions, or all weights of D.
    """

    checkpoint: str | int = "last"
    layers: Literal["convolutions", "all"] = "convolutions"

    def make(self, runs: Sequence[Subject]) -> Finding:
        values: dict[Subject, dict[str, Tensor]] = {}
        heading = "means over layers of: area under the curve; share of the largest; effective rank / values"
        result = Finding(report=[heading], tables={"layers": []})
        for subject in runs:
            gan, step = subject.restore(self.checkpoint)
            matrices = singular_values.matrices(gan.discriminator, self.layers == "convolutions")
            values[subject] = {name: singular_values.singular_values(m) for name, m in matrices.items()}
            for layer, s in values[subject].items():
                columns = {**subject.columns, "step": step, "layer": layer}
                result.tables["layers"].append({**columns, **concentration(s)})
                result.rows += [
                    {**columns, "index": i, "squared": float(v), "scaled": float(v / s[0].square())}
                    for i, v in enumerate(s.square(), 1)
                ]
        layers = list(dict.fromkeys(layer for matrices in values.values() for layer in matrices))
        if not 0 < len(layers) <= MAX_LAYERS:
            problem = f"{len(layers)} distinct layers, but the figure fits 1 to {MAX_LAYERS}"
            raise DataError("singular_values", problem, "choose runs of one architecture")
        for subject in runs:
            facts = [concentration(s) for s in values[subject].values() if len(s) > 1]
            means = "; ".join(f"{fmean(f[k] for f in facts):.3f}" for k in MEANS)
            result.report.append(f"  {subject.label}: {means}")
        result.png = _draw(values, layers)
        return result


def _draw(values: Mapping[Subject, dict[str, Tensor]], layers: Sequence[str]) -> bytes:
    styles = drawing.run_styles(values)
    across, n = min(4, len(layers)), len(layers)
    title = "Squared singular values of D"
    with drawing.grid(title, list(values), across, (2.3, 1.75), (0.6, 1.5), n=n) as picture:
        for i, (ax, layer) in enumerate(zip(picture.panels(n, across, sharey=True), layers, strict=True)):
            for subject, matrices in values.items():
                if (s := matrices.get(layer)) is not None:
                    scaled = (s / s[0]).square()
                    (line,) = ax.plot(range(1, len(s) + 1), scaled, lw=1.2, **styles[subject])
                    if len(s) == 1:  # a single point has no line
                        line.set(marker="o", clip_on=False)
            ax.set_ylim(0, 1.03)
            ax.set_xlim(1, max(2, ax.get_xlim()[1]))
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            ax.set_title(text.plain(f"{i + 1}: {layer}", 30))
        picture.figure.supylabel("squared singular value / largest, by rank", fontsize=8)
        picture.run_legend(styles)
    return picture.png


def concentration(s: Tensor) -> dict[str, float]:
    """Measure how concentrated singular values (n,), largest first, are.

    area: area under the figure's curve, the mean of s_i^2 / s_1^2, which equals the stable rank over n.
    effective_rank_share: the effective rank over n.
    """
    rank, share = singular_values.effective_rank(s), singular_values.share_of_largest(s)
    return {
        "values": len(s),
        "largest": float(s[0]),
        "smallest": float(s[-1]),
        "share_of_largest": share,
        "area": 1 / share / len(s),
        "effective_rank": rank,
        "effective_rank_share": rank / len(s),
    }
