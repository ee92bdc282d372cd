"""WGAN-GP (arXiv:1704.00028), Figure 1b right: histograms of a critic's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch

from ganlab import text
from ganlab.analysis import drawing
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject
from ganlab.methods.weights import raw_weight, weighted_layers
from ganlab.schema import Range
from ganlab.training.gan import GAN

EDGE = 0.99  # weights above this fraction of the largest magnitude count as at the bound
Vector = npt.NDArray[np.float64]


class WeightHistograms(Analysis):
    """histograms of D's trained weights: clipping pushes them to +-c (WGAN-GP, Figure 1b)

    Includes the weights of convolutions, linear layers and embeddings as the optimizer stores them, before
    any weight normalization, without biases. The summary gives the share of weights within 1 % of the
    largest magnitude; under weight clipping, that is the share at the bound.

    Args:
        checkpoint: last, best, or a step.
        bins: number of bins between minus and plus the largest magnitude.
        log: plot counts on a logarithmic axis.
    """

    runs = (1, 12)
    checkpoint: str | int = "last"
    bins: Annotated[int, Range(ge=2, le=2000)] = 81
    log: bool = True

    def make(self, runs: Sequence[Subject]) -> Finding:
        histograms: dict[Subject, tuple[Vector, Vector]] = {}
        heading = "share of the weights within 1 % of the largest magnitude; that magnitude"
        result = Finding(report=[heading], tables={"summary": []})
        for subject in runs:
            gan, step = subject.restore(self.checkpoint)
            columns = {**subject.columns, "step": step}
            values = weights(gan)
            counts, edges = histograms[subject] = histogram(values, self.bins)
            result.rows += [
                {**columns, "from": float(a), "to": float(b), "count": int(n)}
                for a, b, n in zip(edges, edges[1:], counts, strict=False)
            ]
            facts = summarize(values)
            result.tables["summary"].append({**columns, **facts})
            result.report.append(f"  {subject.label}: {facts['at_the_edge']:.2%}; {facts['largest']:.4g}")
        result.png = self._draw(histograms)
        return result

    def _draw(self, histograms: Mapping[Subject, tuple[Vector, Vector]]) -> bytes:
        runs = list(histograms)
        across = min(len(runs), 4 if len(runs) > 6 else 2 if len(runs) in (2, 4) else 3)
        styles = drawing.run_styles(runs)
        with drawing.grid("Trained weights of D", runs, across, (2.9, 2.0), (0, 0.8), least=4.5) as picture:
            for ax, subject in zip(picture.panels(len(runs), across), runs, strict=True):
                counts, edges = histograms[subject]
                ax.stairs(counts, edges, fill=True, color=styles[subject]["color"], alpha=0.75)
                ax.set_xlim(1.02 * edges[0], 1.02 * edges[-1])
                ax.set_xticks([edges[0], 0, edges[-1]], [f"{edges[0]:.3g}", "0", f"{edges[-1]:.3g}"])
                if self.log:
                    ax.set_yscale("log")
                    drawing.set_log_scale(ax.yaxis)
                    ax.set_ylim(bottom=0.7)
                ax.set_title(text.plain(subject.label, 60))
            picture.figure.supxlabel("weight", fontsize=8)
            picture.figure.supylabel("count", fontsize=8)
        return picture.png


@torch.no_grad()
def weights(gan: GAN) -> Vector:
    """All trained weights of D's layers, concatenated."""
    layers = weighted_layers(gan.discriminator)
    values = [raw_weight(layer).double().cpu().flatten() for _, layer in layers]
    return np.asarray(torch.cat(values).numpy())


def histogram(values: Vector, bins: int) -> tuple[Vector, Vector]:
    """(counts, edges) between minus and plus the largest finite magnitude."""
    finite = values[np.isfinite(values)]
    reach = float(np.abs(finite).max()) if len(finite) else 0.0
    counts, edges = np.histogram(finite, bins=bins, range=(-reach or -1.0, reach or 1.0))
    return counts.astype(np.float64), edges


def summarize(values: Vector) -> dict[str, float]:
    """Summary statistics of weights (n,), with the largest magnitude and the share of weights near it."""
    sizes = np.abs(values)
    largest = float(sizes.max())
    return {
        "weights": len(values),
        "mean": float(values.mean()),
        "std": float(values.std()),
        "largest": largest,
        "at_the_edge": float((sizes >= EDGE * largest).mean()),
    }
