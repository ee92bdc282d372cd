"""Animated GIFs with one frame per checkpoint of a run."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ganlab.analysis.subjects import Subject
from ganlab.errors import DataError

MIN_FRAMES = 3
FRAME_MS, LAST_MS = 200, 2000  # the last frame stays longer
COLORS = 64
DPI = 100


def steps(subject: Subject) -> list[int]:
    """Steps of the run's checkpoints, ascending. Raises DataError if there are fewer than MIN_FRAMES."""
    steps = subject.checkpoints()
    if len(steps) < MIN_FRAMES:
        available = ", ".join(f"{s:,}" for s in steps) or "none"
        problem = f"{subject.run.label} has too few checkpoints (steps {available})"
        fix = f"a film needs at least {MIN_FRAMES}; train with keep_every=N, a multiple of save_every"
        raise DataError("frames", problem, fix)
    return steps


def gif(frames: Iterable[Figure]) -> bytes:
    """Encode figures of one size as a looping GIF; the bytes are deterministic."""
    pictures = [_picture(figure) for figure in frames]
    # one palette for all frames, from the last one, so that colors do not flicker
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
