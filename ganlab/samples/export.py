"""Export samples of a run to files: a grid and single images, lines of text, or points."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ganlab.data.base import Dataset
from ganlab.errors import ConfigError
from ganlab.runs.folder import RunFolder
from ganlab.samples import images, previews, vocabulary
from ganlab.samples.base import SampleSource
from ganlab.system.files import write_atomic


class Latents(NamedTuple):
    """Latents z (n, Z) with labels y (n,); path: of interpolations, ``columns`` steps each, or None.

    singles: whether to write each image to a file too.
    """

    z: Tensor
    y: Tensor | None
    path: Tensor | None
    path_y: Tensor | None
    columns: int
    singles: bool


def write(out: Path, folder: RunFolder, dataset: Dataset, source: SampleSource, latents: Latents) -> None:
    """Write samples into the folder ``out``.

    Images: ``grid.png``, ``00000.png`` ... with ``singles``, ``interpolation.png``. Text: ``samples.txt``, a
    line each, and ``interpolation.txt``, an empty line after each path. Points: ``points.csv``, ``grid.png``
    (a map with real points too) and ``interpolation.csv``. Raises EnvError; DataError if both vocabulary and
    text of the run are missing; ConfigError for a G that is not trained.
    """
    if source.fixed:
        what = "this run trains no G to sample from (fixed_generator or fixed_shift is set)"
        raise ConfigError("fixed_generator", what, "choose another run")
    {"images": _images, "text": _text, "points": _points}[source.shape.kind](
        out, folder, dataset, source, latents
    )


def _images(out: Path, folder: RunFolder, dataset: Dataset, source: SampleSource, latents: Latents) -> None:
    samples = images.images(source.ema_or_generator, latents.z, latents.y)
    images.write_png(out / "grid.png", images.grid(samples, latents.columns))
    if latents.singles:
        for i, image in enumerate(samples.permute(0, 2, 3, 1).cpu().numpy()):
            images.write_png(out / f"{i:05d}.png", image)
    if latents.path is not None:
        path = images.images(source.ema_or_generator, latents.path, latents.path_y)
        images.write_png(out / "interpolation.png", images.grid(path, latents.columns))


def _text(out: Path, folder: RunFolder, dataset: Dataset, source: SampleSource, latents: Latents) -> None:
    symbols = vocabulary.symbols(folder, dataset, source.shape[0])
    lines = previews.lines(previews.generate(source, latents.z, latents.y), symbols)
    _write_lines(out / "samples.txt", lines)
    if latents.path is not None:
        lines = previews.lines(previews.generate(source, latents.path, latents.path_y), symbols)
        paths = [lines[i : i + latents.columns] for i in range(0, len(lines), latents.columns)]
        _write_lines(out / "interpolation.txt", [line for path in paths for line in [*path, ""]])


def _points(out: Path, folder: RunFolder, dataset: Dataset, source: SampleSource, latents: Latents) -> None:
    fake = previews.generate(source, latents.z, latents.y).numpy()
    _write_points(out / "points.csv", fake)
    real = np.asarray(dataset.load().images)[: previews.POINTS]
    images.write_png(out / "grid.png", previews.point_map(real, fake))
    if latents.path is not None:
        path = previews.generate(source, latents.path, latents.path_y).numpy()
        _write_points(out / "interpolation.csv", path, latents.columns)


def _write_lines(path: Path, lines: list[str]) -> None:
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode(), durable=False)


def _write_points(path: Path, points: npt.NDArray[np.float32], steps: int = 0) -> None:
    """A row for each point. ``steps``: points per interpolation, whose number is the first column."""
    out = io.StringIO()
    out.write(("way," if steps else "") + ",".join("xyz"[i] for i in range(points.shape[1])) + "\n")
    for i, point in enumerate(points.tolist()):
        first = [str(i // steps)] if steps else []
        out.write(",".join([*first, *(f"{value:.6g}" for value in point)]) + "\n")
    write_atomic(path, out.getvalue().encode(), durable=False)
