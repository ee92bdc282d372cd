"""Points: float32 (B, 2), or (B, 1) on a line, as stored and as model input; maps for people."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ganlab import rng
from ganlab.samples.base import (
    Context,
    Export,
    Picture,
    RealSamples,
    Rendered,
    SampleKind,
    write_png,
)
from ganlab.schema import Quantize
from ganlab.system.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COUNT = 1000  # real and as many generated ones in a map
REAL, FAKE = "#0072b2", "#d55e00"  # Okabe and Ito's blue for real samples, vermilion for generated ones


class Points(SampleKind):
    """``shape`` is a ``PointShape``."""

    noun, architecture, metrics = "points", "mlp", "modes,wasserstein1"
    count = COUNT

    def describe(self) -> str:
        return f"points in {self.shape.dim} dimensions"

    def to_stored(self, x: Tensor, how: Quantize = "round") -> Tensor:
        return x.float()

    def context(self, data: RealSamples, seed: int) -> Context:
        order = torch.randperm(len(data.images), generator=rng.generator("cpu", seed, "samples", 3))
        return Context(np.asarray(data.images)[order[:COUNT].numpy()])

    def saved_context(self, folder: Path, load: Callable[[], RealSamples]) -> Context:
        return Context(np.asarray(load().images)[:COUNT])

    def preview(self, samples: Tensor, context: Context) -> Rendered:
        """Generated points over real ones in the plane; histograms for points on a line."""
        assert context.real is not None
        return Rendered(point_map(context.real, samples.numpy()))

    def export(self, out: Path, samples: Export, context: Context) -> None:
        """``points.csv``, ``grid.png`` (a map with real points too) and ``interpolation.csv``."""
        _write_points(out / "points.csv", samples.samples.numpy())
        write_png(out / "grid.png", point_map(context.real, samples.samples.numpy()))
        if samples.path is not None:
            _write_points(out / "interpolation.csv", samples.path.numpy(), samples.columns)


KIND = Points


def _write_points(path: Path, points: npt.NDArray[np.float32], steps: int = 0) -> None:
    """A row for each point. ``steps``: points per interpolation, whose number is the first column."""
    out = io.StringIO()
    out.write(("way," if steps else "") + ",".join("xyz"[i] for i in range(points.shape[1])) + "\n")
    for i, point in enumerate(points.tolist()):
        first = [str(i // steps)] if steps else []
        out.write(",".join([*first, *(f"{value:.6g}" for value in point)]) + "\n")
    write_atomic(path, out.getvalue().encode(), durable=False)


def point_map(real: Any, fake: npt.NDArray[Any], side: float = 5.0) -> Picture:
    """A scatter plot of points (n, 2) in the square around the real ones; histograms of points (n, 1)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    ax = figure.add_subplot()
    if real.shape[1] == 1:
        bins = np.histogram_bin_edges(np.concatenate([real, fake]), 80).tolist()
        for points, color, label in ((real, REAL, "real"), (fake, FAKE, "generated")):
            ax.hist(points[:, 0], bins, color=color, alpha=0.6, label=label)
        return _picture(figure, ax)
    ax.scatter(real[:, 0], real[:, 1], s=5, c=REAL, lw=0, alpha=0.6, label="real")
    ax.scatter(fake[:, 0], fake[:, 1], s=5, c=FAKE, lw=0, alpha=0.6, label="generated")
    center = (real.max(0) + real.min(0)) / 2
    radius = 0.75 * float((real.max(0) - real.min(0)).max())
    ax.set(xlim=(center[0] - radius, center[0] + radius), ylim=(center[1] - radius, center[1] + radius))
    ax.set_aspect("equal")
    outside = float((np.abs(fake - center) > radius).any(1).mean())
    if outside:
        ax.set_title(f"{outside:.0%} of the generated points are outside", fontsize=8)
    return _picture(figure, ax)


def _picture(figure: Figure, ax: Axes) -> Picture:
    """The pixels of the figure, with a legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    ax.legend(loc="upper right", fontsize=8)
    FigureCanvasAgg(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return np.asarray(Image.open(out).convert("RGB"))
