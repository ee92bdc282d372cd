"""Generated images as bytes, for scores and pictures, leaving the generator as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from ganlab import layers
from ganlab.metrics.base import MetricError, Protocol
from ganlab.types import ImageShape

CHUNK = 500  # generated images per random stream: changing it moves every score
T = TypeVar("T")
Generate = Callable[[int, int, torch.Generator], Tensor]
OfClass = Callable[[int], Generate]  # the ``Generate`` of images of one class
Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]]


class Pieces:
    """Runs a function over the first axis in pieces of at most ``size``; halves them when memory runs out."""

    def __init__(self, size: int, warn: Callable[[str], None] | None = None) -> None:
        self.size, self.warn = size, warn

    def __call__(self, function: Callable[[Tensor], T], x: Tensor) -> Iterator[T]:
        """``function`` of each piece of ``x``, in order. Raises MetricError if one row is too much."""
        start = 0
        while start < len(x):
            piece, found = x[start : start + self.size], None
            # not handled in here: the exception would keep the memory it ran out of
            with contextlib.suppress(torch.OutOfMemoryError):
                found = function(piece)
            if found is not None:
                start += len(piece)
                yield found
                continue
            if len(piece) == 1:
                raise MetricError("the device has no memory for one image")
            self.size = len(piece) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if self.warn:
                self.warn(f"out of memory while scoring; batches of {self.size} from here on")


def fakes(
    g: nn.Module, draw: Draw, protocol: Protocol, batch_size: int = CHUNK, label: int | None = None
) -> Generate:
    """A ``generate`` for ``Evaluator.score`` from G and ``draw(n, random) -> (z, y or None)``.

    G runs in evaluation mode in batches of at most ``batch_size``, halved when memory runs out (with
    ``bn=batch`` in whole chunks: the statistics are theirs), and is left as it was. ``label``: all images of
    this class, whatever labels were drawn. Raises MetricError then if ``draw`` gives none.
    """
    pieces = Pieces(CHUNK if protocol.bn == "batch" else batch_size)

    def generate(n: int, start: int, random: torch.Generator) -> Tensor:
        z, y = draw(n, random)
        if label is not None:
            if y is None:
                raise MetricError("needs class labels, and this generator is unconditional")
            y = torch.full_like(y, label)

        def some(rows: Tensor) -> Tensor:
            return to_bytes(g(z[rows], None if y is None else y[rows]), protocol.quantize)

        with torch.no_grad(), evaluating(g, protocol.bn):
            if protocol.bn == "batch":
                return some(torch.arange(n, device=z.device))
            return torch.cat(list(pieces(some, torch.arange(n, device=z.device))))

    return generate


def chunk(generate: Generate, start: int, random: torch.Generator) -> Tensor:
    """``CHUNK`` images, uint8: always as many, or the last ones would differ by rounding."""
    images = generate(CHUNK, start, random)
    if images.dtype != torch.uint8 or len(images) != CHUNK:
        raise TypeError(f"wanted {CHUNK} uint8 images, got {images.dtype} {tuple(images.shape)}")
    return images


def generators(g: nn.Module, draw: Draw, protocol: Protocol, shape: ImageShape) -> tuple[Generate, OfClass]:
    """What ``Evaluator.score`` takes, of images of ``shape``: of all, and of one class c: ``of_class(c)``.

    Above 64x64 G makes fewer images at a time than a chunk: 500 of 128x128 are 2 GB in every layer.
    """
    rows = max(1, min(CHUNK, CHUNK * 64 * 64 // (shape.height * shape.width)))
    return fakes(g, draw, protocol, rows), lambda label: fakes(g, draw, protocol, rows, label)


def to_bytes(x: Tensor, how: Literal["round", "truncate"] = "round") -> Tensor:
    """[-1, 1] to 0..255, uint8: 127.5 x + 127.5, clipped. Raises MetricError if ``x`` is not finite."""
    if not bool(torch.isfinite(x).all()):
        raise MetricError("the generator's images are not finite")
    x = (x.float() * 127.5 + 127.5).clamp(0, 255)
    return (x.round() if how == "round" else x).to(torch.uint8)


@contextlib.contextmanager
def evaluating(net: nn.Module, bn: Literal["running", "batch"] = "running") -> Iterator[None]:
    """Inside: ``net`` in evaluation mode; ``batch``: batch normalisation by the batch's own statistics.

    Modes and running averages are as before afterwards.
    """
    norms = (
        [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if bn == "batch" else []
    )
    running = [(m, m.running_mean, m.running_var) for m in norms]
    try:
        with layers.evaluating(net):
            for m in norms:
                m.running_mean = m.running_var = None  # without averages, evaluation mode uses the batch's
            yield
    finally:
        for m, mean, var in running:
            m.running_mean, m.running_var = mean, var
