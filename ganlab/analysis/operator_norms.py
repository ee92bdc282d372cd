"""Operator norms of D's layers, compared with the norms that spectral normalization divides by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ganlab import text
from ganlab.analysis import drawing
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.methods.operator_norm import LayerNorms, layer_norms
from ganlab.report.draw import style

BARS = {
    "reshaped": ("(d_out, d_in k k) matrix", "#bdbdbd"),
    "exact": ("layer, with its stride and padding", "#0072b2"),
    "circular": ("layer, wrap-around padding", "#56b4e9"),
}
BOUND: Any = {"ls": "", "marker": "_", "ms": 9, "mew": 1.2, "color": style.ALARM}


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
    checkpoint: str | int = "last"

    def make(self, runs: Sequence[Subject]) -> Finding:
        by_run: dict[Subject, list[LayerNorms]] = {}
        heading = (
            "exact / reshaped norm, smallest to largest over layers; product over layers: exact, reshaped"
        )
        result = Finding(report=[heading])
        for subject in runs:
            gan, step = subject.restore(self.checkpoint)
            y = torch.zeros(1, dtype=torch.long, device=subject.device) if gan.num_classes else None
            norms = by_run[subject] = layer_norms(gan.discriminator, tuple(gan.shape), y)
            result.rows += [{**subject.columns, "step": step, **_flat(n)} for n in norms]
            ratios = [n["ratio"] for n in norms if n["kernel"]]
            products = [math.prod(n[k] for n in norms) for k in ("exact", "reshaped")]
            result.report.append(
                f"  {subject.label}: {min(ratios, default=1):.3f} to {max(ratios, default=1):.3f}; "
                f"{products[0]:.4g}, {products[1]:.4g}"
            )
        if not result.rows:
            raise DataError("operator_norms", "D has no weighted layer", "choose other runs")
        result.png = _draw(by_run)
        return result


def _flat(norms: LayerNorms) -> dict[str, object]:
    """A row of the table, with sizes formatted as 3x3."""
    sizes = {"kernel": norms["kernel"], "stride": norms["stride"], "input": norms["input"]}
    return {**norms, **{key: "x".join(map(str, size)) for key, size in sizes.items()}}


def _draw(by_run: dict[Subject, list[LayerNorms]]) -> bytes:
    across = min(len(by_run), 2)
    num_layers = max(len(norms) for norms in by_run.values())
    width = max(5.5, min(13.0, across * (0.42 * num_layers + 1.2)))
    size = (width / across, 2.3)
    with drawing.grid("Operator norms of D's layers", list(by_run), across, size, (0, 1.1)) as picture:
        panels = picture.panels(len(by_run), across)
        for ax, (subject, norms) in zip(panels, by_run.items(), strict=True):
            at = np.arange(len(norms))
            bars = [
                ax.bar(at + (i - 1) * 0.27, _heights(norms, key), 0.27, color=color, label=label, lw=0)
                for i, (key, (label, color)) in enumerate(BARS.items())
            ]
            marks = ax.plot(at, _heights(norms, "bound"), label="upper bound for the layer", **BOUND)
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
        drawing.outer_labels(panels, across, y="norm")
        picture.legend([*bars, *marks])
    return picture.png


def _heights(norms: Sequence[LayerNorms], key: str) -> list[float]:
    return [math.nan if (v := n[key]) is None else v for n in norms]  # type: ignore[literal-required]


def _short(norms: LayerNorms) -> str:
    """Short layer label: name, kernel and stride, such as ``convs.1 4x4/2``."""
    if not norms["kernel"]:
        return norms["layer"]
    stride = max(norms["stride"])
    return f"{norms['layer']} {'x'.join(map(str, norms['kernel']))}{f'/{stride}' if stride > 1 else ''}"
