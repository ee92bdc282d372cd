"""A run's checkpoints as the frames of an animated GIF."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError
from ganlab.runs.checkpoint import Checkpoints
from ganlab.runs.folder import RunFolder

LEAST = 3  # frames
FRAME_MS, LAST_MS = 200, 2000  # the last one stays
COLORS = 64
DPI = 100


def steps(subject: Subject) -> list[int]:
    """Steps of the checkpoints there are, in order. Raises DataError for too few."""
    folder = RunFolder(subject.run.folder)
    found = Checkpoints(folder.checkpoints, folder.run_id).steps()
    if len(found) < LEAST:
        there = ", ".join(f"{s:,}" for s in found) or "none"
        what = f"{subject.run.label} has too few checkpoints (steps {there}); a film wants {LEAST} or more"
        raise DataError("frames", what, "train it with keep_every=N, a multiple of save_every")
    return found


def gif(frames: Iterable[Figure]) -> bytes:
    """Figures of one size as an animated GIF that repeats; the same figures give the same bytes."""
    pictures = [_picture(figure) for figure in frames]
    # one palette for all, of the last frame: colours do not flicker
    palette = pictures[-1].quantize(COLORS, dither=Image.Dither.NONE)
    first, *rest = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    times = [FRAME_MS] * len(rest) + [LAST_MS]
    out = io.BytesIO()
    first.save(out, "gif", save_all=True, append_images=rest, duration=times, loop=0, optimize=True)
    return out.getvalue()


def _picture(figure: Figure) -> Image.Image:
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
