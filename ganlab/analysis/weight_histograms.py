"""Figure 1b of the WGAN-GP paper (arXiv:1704.00028), right: where clipping leaves a critic's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from ganlab import text
from ganlab.analysis import drawing, subjects
from ganlab.analysis.base import Analysis, Finding, Row
from ganlab.analysis.subjects import Subject
from ganlab.methods.weights import raw_weight, weighted_layers
from ganlab.schema import Range, checked
from ganlab.training.gan import GAN

MOST = 12  # runs in one figure
EDGE = 0.99  # of the largest: from there on a weight counts as lying at the bound
Vector = npt.NDArray[np.float64]


class WeightHistograms(Analysis):
    """histograms of the trained weights of D: clipping piles them up at +-c (WGAN-GP, Figure 1b)

    Weights of convolutions, linear layers and embeddings as the optimizer has them, under any weight norm;
    no biases. The summary tells the share within 1 % of the largest magnitude: of clipped weights, of those
    at the bound.

    Args:
        checkpoint: last, best, or a step.
        bins: of each histogram, between minus and plus the largest magnitude.
        log: true: counts on a logarithmic axis.
    """

    runs = (1, MOST)

    @checked
    def __init__(
        self,
        checkpoint: str | int = "last",
        bins: Annotated[int, Range(ge=2, le=2000)] = 81,
        log: bool = True,
    ) -> None:
        self.checkpoint, self.bins, self.log = str(checkpoint), bins, log

    def make(self, runs: Sequence[Subject]) -> Finding:
        rows: list[Row] = []
        summary: list[Row] = []
        counted: dict[Subject, tuple[Vector, Vector]] = {}
        says = ["share of the weights within 1 % of the largest magnitude; that magnitude"]
        for subject in runs:
            game, step = subject.restore(self.checkpoint)
            told = {**subject.columns, "step": step}
            values = weights(game)
            counts, edges = counted[subject] = histogram(values, self.bins)
            rows += [
                {**told, "from": float(a), "to": float(b), "count": int(n)}
                for a, b, n in zip(edges, edges[1:], counts, strict=False)
            ]
            facts = summed(values)
            summary.append({**told, **facts})
            says.append(f"  {subject.label}: {facts['at_the_edge']:.2%}; {facts['largest']:.4g}")
        return Finding(self._draw(counted), rows, says, {"summary": summary})

    def _draw(self, counted: dict[Subject, tuple[Vector, Vector]]) -> bytes:
        runs = list(counted)
        across = min(len(runs), 4 if len(runs) > 6 else 2 if len(runs) in (2, 4) else 3)
        down = -(-len(runs) // across)
        styles = drawing.run_styles(runs)
        with drawing.style():
            figure = Figure(figsize=(max(4.5, 2.9 * across), 2.0 * down + 0.8), layout="constrained")
            for ax, subject in zip(drawing.panels(figure, len(runs), across), runs, strict=True):
                counts, edges = counted[subject]
                color = styles[subject]["color"]
                ax.stairs(counts, edges, fill=True, color=color, alpha=0.75)
                ax.set_xlim(1.02 * edges[0], 1.02 * edges[-1])
                ax.set_xticks([edges[0], 0, edges[-1]], [f"{edges[0]:.3g}", "0", f"{edges[-1]:.3g}"])
                if self.log:
                    ax.set_yscale("log")
                    drawing.logarithmic(ax.yaxis)
                    ax.set_ylim(bottom=0.7)
                ax.set_title(text.plain(subject.label, 60))
            figure.supxlabel("weight", fontsize=8)
            figure.supylabel("count", fontsize=8)
            drawing.titled(figure, f"Trained weights of D: {subjects.common(runs)}")
            return drawing.png(figure)


@torch.no_grad()
def weights(game: GAN) -> Vector:
    """All trained weights of D's layers, one after the other."""
    layers = weighted_layers(game.discriminator)
    found = [raw_weight(layer).double().cpu().flatten() for _, layer in layers]
    return np.asarray(torch.cat(found).numpy())


def histogram(values: Vector, bins: int) -> tuple[Vector, Vector]:
    """(counts, edges) between minus and plus the largest finite magnitude."""
    finite = values[np.isfinite(values)]
    reach = float(np.abs(finite).max()) if len(finite) else 0.0
    counts, edges = np.histogram(finite, bins=bins, range=(-reach or -1.0, reach or 1.0))
    return counts.astype(np.float64), edges


def summed(values: Vector) -> dict[str, float]:
    """Of weights (n,): how many, their spread, the largest magnitude, the share that lies there."""
    sizes = np.abs(values)
    largest = float(sizes.max())
    return {
        "weights": len(values),
        "mean": float(values.mean()),
        "std": float(values.std()),
        "largest": largest,
        "at_the_edge": float((sizes >= EDGE * largest).mean()),
    }
