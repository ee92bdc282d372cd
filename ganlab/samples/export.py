"""Samples of a run as files: a grid and single pictures, lines of text, or points in the plane."""

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


class Drawn(NamedTuple):
    """Latents of samples (n, Z) with their labels; and of ways between two, ``columns`` to each, or None."""

    z: Tensor
    y: Tensor | None
    way: Tensor | None
    way_y: Tensor | None
    columns: int
    singles: bool


def write(place: Path, folder: RunFolder, dataset: Dataset, source: SampleSource, drawn: Drawn) -> None:
    """Into the folder ``place``. Raises EnvError; DataError where a run's text and vocabulary are gone.

    Images: ``grid.png``, ``00000.png`` ... with ``singles``, ``interpolation.png``. Text: ``samples.txt``, a
    line each, and ``interpolation.txt``, an empty line after each way. Points: ``points.csv``, ``grid.png``
    (a map, real ones too) and ``interpolation.csv``. Raises ConfigError for a G that is not trained.
    """
    if source.fixed:
        raise ConfigError("fixed_generator", "is set, or fixed_shift: this run trains no G", "name another")
    {"images": _images, "text": _text, "points": _points}[source.shape.kind](
        place, folder, dataset, source, drawn
    )


def _images(place: Path, folder: RunFolder, dataset: Dataset, source: SampleSource, drawn: Drawn) -> None:
    made = images.images(source.ema_or_generator, drawn.z, drawn.y)
    images.write_png(place / "grid.png", images.grid(made, drawn.columns))
    if drawn.singles:
        for i, image in enumerate(made.permute(0, 2, 3, 1).cpu().numpy()):
            images.write_png(place / f"{i:05d}.png", image)
    if drawn.way is not None:
        there = images.images(source.ema_or_generator, drawn.way, drawn.way_y)
        images.write_png(place / "interpolation.png", images.grid(there, drawn.columns))


def _text(place: Path, folder: RunFolder, dataset: Dataset, source: SampleSource, drawn: Drawn) -> None:
    symbols = vocabulary.symbols(folder, dataset, source.shape[0])
    lines = previews.lines(previews.generate(source, drawn.z, drawn.y), symbols)
    _write_lines(place / "samples.txt", lines)
    if drawn.way is not None:
        there = previews.lines(previews.generate(source, drawn.way, drawn.way_y), symbols)
        ways = [there[i : i + drawn.columns] for i in range(0, len(there), drawn.columns)]
        _write_lines(place / "interpolation.txt", [line for way in ways for line in [*way, ""]])


def _points(place: Path, folder: RunFolder, dataset: Dataset, source: SampleSource, drawn: Drawn) -> None:
    made = previews.generate(source, drawn.z, drawn.y).numpy()
    _write_points(place / "points.csv", made)
    real = np.asarray(dataset.load().images)[: previews.POINTS]
    images.write_png(place / "grid.png", previews.point_map(real, made))
    if drawn.way is not None:
        there = previews.generate(source, drawn.way, drawn.way_y).numpy()
        _write_points(place / "interpolation.csv", there, drawn.columns)


def _write_lines(path: Path, lines: list[str]) -> None:
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode(), durable=False)


def _write_points(path: Path, points: npt.NDArray[np.float32], way: int = 0) -> None:
    """A row for each point; ``way``: how many belong to one way, whose number stands first."""
    out = io.StringIO()
    out.write(("way," if way else "") + ",".join("xyz"[i] for i in range(points.shape[1])) + "\n")
    for i, point in enumerate(points.tolist()):
        first = [str(i // way)] if way else []
        out.write(",".join([*first, *(f"{value:.6g}" for value in point)]) + "\n")
    write_atomic(path, out.getvalue().encode(), durable=False)
