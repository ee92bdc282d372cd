"""Previews of samples during training: a grid of images, a map of points, or lines of text."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ganlab import rng
from ganlab.data.base import SampleSet
from ganlab.samples import images as images_module
from ganlab.samples.base import SampleSource
from ganlab.samples.images import Picture
from ganlab.system.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 1000  # real and as many generated ones in a map
REAL, FAKE = "#0072b2", "#d55e00"  # Okabe and Ito's blue for real samples, vermilion for generated ones


class RenderedPreview(NamedTuple):
    """A picture (H, W, 3) or lines of text. collapsed: whether all samples are identical."""

    picture: Picture | None
    text: str | None
    collapsed: bool

    def write(self, path: Path) -> None:
        """Write to a file, atomically. Raises EnvError."""
        if self.picture is not None:
            images_module.write_png(path, self.picture)
        else:
            write_atomic(path, (self.text or "").encode(), durable=False)


class Preview(ABC):
    """Renders samples of one kind. count: latents to generate from; suffix: of its files."""

    count, suffix = 64, "png"

    @abstractmethod
    def __call__(self, source: SampleSource, z: Tensor, y: Tensor | None) -> RenderedPreview:
        """Render samples of the EMA or G for latents z (n, Z) and labels y (n,). Raises MetricError."""


class Images(Preview):
    """A grid, row by row."""

    def __call__(self, source: SampleSource, z: Tensor, y: Tensor | None) -> RenderedPreview:
        images = images_module.images(source.ema_or_generator, z, y)
        return RenderedPreview(images_module.grid(images), None, bool((images == images[:1]).all()))


class Points(Preview):
    """Generated points over real ones in the plane; histograms for points on a line."""

    count = POINTS

    def __init__(self, images: SampleSet, seed: int) -> None:
        drawn = torch.randperm(len(images), generator=rng.generator("cpu", seed, "samples", 3))[:POINTS]
        self.real = np.asarray(images.images)[drawn.numpy()]

    def __call__(self, source: SampleSource, z: Tensor, y: Tensor | None) -> RenderedPreview:
        if source.fixed:
            noise = torch.randn(self.real.shape, generator=rng.generator("cpu", 0, "samples", 4))
            fake = source.fixed.moved(torch.from_numpy(self.real), noise)
        else:
            fake = generate(source, z, y)
        return RenderedPreview(point_map(self.real, fake.numpy()), None, bool((fake == fake[:1]).all()))


class Text(Preview):
    """Lines, one per sample, without the padding at the end."""

    suffix = "txt"

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = symbols

    def __call__(self, source: SampleSource, z: Tensor, y: Tensor | None) -> RenderedPreview:
        rows = generate(source, z, y)
        text = "".join(f"{line}\n" for line in lines(rows, self.symbols))
        return RenderedPreview(None, text, bool((rows == rows[:1]).all()))


def preview_of(images: SampleSet, seed: int) -> Preview:
    """The preview for samples of this kind."""
    kind = images.shape.kind
    if kind == "points":
        return Points(images, seed)
    return Text(images.manifest["vocabulary"]) if kind == "text" else Images()


def generate(source: SampleSource, z: Tensor, y: Tensor | None) -> Tensor:
    """Samples of ``source.ema_or_generator`` as stored, on the CPU; NaN becomes 0."""
    return images_module.images(source.ema_or_generator, z, y, kind=source.shape.kind).cpu()


def lines(rows: Tensor, symbols: Sequence[str], pad: str = "`") -> list[str]:
    """Symbols (n, L) as lines of text, without the padding at the end."""
    return ["".join(symbols[int(i)] for i in row).rstrip(pad) for row in rows]


def point_map(real: npt.NDArray[Any], fake: npt.NDArray[Any], side: float = 5.0) -> Picture:
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
