"""Operator norms of D's layers, compared with the norms that spectral normalization divides by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from ganlab import text
from ganlab.analysis import drawing, subjects
from ganlab.analysis.base import Analysis, Finding, Row
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.methods.operator_norm import LayerNorms, layer_norms
from ganlab.report.draw import style
from ganlab.schema import checked

BARS = {
    "reshaped": ("(d_out, d_in k k) matrix", "#bdbdbd"),
    "exact": ("layer, with its stride and padding", "#0072b2"),
    "circular": ("layer, wrap-around padding", "#56b4e9"),
}


class OperatorNorms(Analysis):
    """operator norm of each layer of D, including stride and padding, and of its reshaped weight matrix

    Spectral normalization sets the norm of the (d_out, d_in * kernel) matrix to 1 and ignores stride and
    padding (arXiv:1802.05957, footnote 3). The operator norm of the layer as a map between feature maps is
    different; a tick marks its upper bound. Weights are used as applied, after any normalization. The product
    of the norms bounds the Lipschitz constant of a network without branches and feature norms.

    Args:
        checkpoint: last, best, or a step.
    """

    runs = (1, 8)

    @checked
    def __init__(self, checkpoint: str | int = "last") -> None:
        self.checkpoint = str(checkpoint)

    def make(self, runs: Sequence[Subject]) -> Finding:
        by_run: dict[Subject, list[LayerNorms]] = {}
        rows: list[Row] = []
        report = [
            "exact / reshaped norm, smallest to largest over layers; product over layers: exact, reshaped"
        ]
        for subject in runs:
            gan, step = subject.restore(self.checkpoint)
            y = torch.zeros(1, dtype=torch.long, device=subject.device) if gan.num_classes else None
            norms = layer_norms(gan.discriminator, tuple(gan.shape), y)
            by_run[subject] = norms
            rows += [{**subject.columns, "step": step, **_flat(n)} for n in norms]
            ratios = [n["ratio"] for n in norms if n["kernel"]]
            products = [math.prod(n[k] for n in norms) for k in ("exact", "reshaped")]
            report.append(
                f"  {subject.label}: {min(ratios, default=1):.3f} to {max(ratios, default=1):.3f}; "
                f"{products[0]:.4g}, {products[1]:.4g}"
            )
        if not rows:
            raise DataError("operator_norms", "D has no weighted layer", "choose other runs")
        return Finding(_draw(by_run), rows, report)


def _flat(norms: LayerNorms) -> dict[str, object]:
    """A row of the table, with sizes formatted as 3x3."""
    sizes = {"kernel": norms["kernel"], "stride": norms["stride"], "input": norms["input"]}
    return {**norms, **{key: "x".join(map(str, size)) for key, size in sizes.items()}}


def _draw(by_run: dict[Subject, list[LayerNorms]]) -> bytes:
    across = min(len(by_run), 2)
    down = -(-len(by_run) // across)
    num_layers = max(len(norms) for norms in by_run.values())
    width = max(5.5, min(13.0, across * (0.42 * num_layers + 1.2)))
    with drawing.style():
        figure = Figure(figsize=(width, 2.3 * down + 1.1), layout="constrained")
        panels = drawing.panels(figure, len(by_run), across)
        for ax, (subject, norms) in zip(panels, by_run.items(), strict=True):
            at = np.arange(len(norms))
            for i, (key, (label, color)) in enumerate(BARS.items()):
                heights = [math.nan if (v := n[key]) is None else v for n in norms]  # type: ignore[literal-required]
                ax.bar(at + (i - 1) * 0.27, heights, 0.27, color=color, label=label, lw=0)
            bounds = [math.nan if n["bound"] is None else n["bound"] for n in norms]
            ax.plot(
                at,
                bounds,
                ls="",
                marker="_",
                ms=9,
                mew=1.2,
                color=style.ALARM,
                label="upper bound for the layer",
            )
            ax.set_xticks(at, [text.plain(_short(n), 28) for n in norms])
            if num_layers > 6:
                ax.tick_params(axis="x", rotation=45)
                for tick in ax.get_xticklabels():
                    tick.set_horizontalalignment("right")
            ax.tick_params(axis="x", length=0)
            ax.grid(axis="x", visible=False)
            values = [h for n in norms for h in (n["reshaped"], n["exact"]) if h > 0 and math.isfinite(h)]
            if values and max(values) > 20 * min(values):
                style.log_axis(ax, values)
            ax.set_title(text.plain(subject.label, 60))
            ax.set_ylabel("norm" if ax in panels[::across] else "")
        handles, labels = panels[0].get_legend_handles_labels()
        handles, labels = [*handles[1:], handles[0]], [*labels[1:], labels[0]]  # upper bound last
        fit = style.columns(labels, width)
        figure.legend(handles, labels, loc="outside lower center", ncols=fit)
        drawing.set_title(figure, f"Operator norms of D's layers: {subjects.common(list(by_run))}")
        return drawing.png(figure)


def _short(norms: LayerNorms) -> str:
    """Short layer label: name, kernel and stride, such as ``convs.1 4x4/2``."""
    if not norms["kernel"]:
        return norms["layer"]
    stride = max(norms["stride"])
    return f"{norms['layer']} {'x'.join(map(str, norms['kernel']))}{f'/{stride}' if stride > 1 else ''}"
