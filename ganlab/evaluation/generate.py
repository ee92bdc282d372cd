"""Generate samples as stored, for scores and previews, without changing the generator's state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from ganlab.methods import modes
from ganlab.metrics.base import MetricError, Protocol
from ganlab.samples.base import sample_kind
from ganlab.samples.images import quantize
from ganlab.schema import Quantize
from ganlab.types import Shape

CHUNK = 500  # generated images per random stream: changing it moves every score
NOT_FINITE = "the generator's images are not finite"
STORED = (torch.uint8, torch.float32, torch.int16)
T = TypeVar("T")
Generate = Callable[[int, int, torch.Generator], Tensor]
OfClass = Callable[[int], Generate]  # the ``Generate`` of images of one class
Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]]


class MicroBatcher:
    """Runs a function over the first axis in pieces of at most ``size``; halves them when memory runs out."""

    def __init__(self, size: int, warn: Callable[[str], None] | None = None) -> None:
        self.size, self.warn = size, warn

    def __call__(self, function: Callable[[Tensor], T], x: Tensor) -> Iterator[T]:
        """``function`` of each piece of ``x``, in order. Raises MetricError if one row does not fit."""
        start = 0
        while start < len(x):
            piece, result = x[start : start + self.size], None
            # not handled inside: the exception would keep the memory alive
            with contextlib.suppress(torch.OutOfMemoryError):
                result = function(piece)
            if result is not None:
                start += len(piece)
                yield result
                continue
            if len(piece) == 1:
                raise MetricError("not enough device memory for a single image")
            self.size = len(piece) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if self.warn:
                self.warn(f"out of memory while scoring; continuing with batches of {self.size}")


class SampleGenerator:
    """A ``generate`` for ``Evaluator.score`` from G and ``draw(n, random) -> (z, y or None)``.

    G runs in evaluation mode in batches of at most ``batch_size``, halved when memory runs out (with
    ``bn=batch`` in whole chunks: the statistics are theirs), and is left as it was. ``label``: all images of
    this class, whatever labels were drawn. Raises MetricError then if ``draw`` gives none.
    """

    def __init__(
        self,
        g: nn.Module,
        draw: Draw,
        protocol: Protocol,
        batch_size: int = CHUNK,
        label: int | None = None,
        to_stored: Callable[[Tensor, Quantize], Tensor] = quantize,
    ) -> None:
        self.g, self.draw, self.protocol, self.label = g, draw, protocol, label
        self.to_stored = to_stored
        self._pieces = MicroBatcher(CHUNK if protocol.bn == "batch" else batch_size)
        self._finite: Tensor | None = None  # on the device: reading it makes the host wait
        self._ready: torch.cuda.Event | None = None

    def __call__(self, n: int, start: int, random: torch.Generator) -> Tensor:
        z, y = self.draw(n, random)
        if self.label is not None:
            if y is None:
                raise MetricError("needs class labels, and this generator is unconditional")
            y = torch.full_like(y, self.label)

        def generate_rows(rows: Tensor) -> Tensor:
            x = self.g(z[rows], None if y is None else y[rows])
            finite = torch.isfinite(x).all()
            self._finite = finite if self._finite is None else self._finite & finite
            return self.to_stored(x, self.protocol.quantize)

        with torch.no_grad(), evaluating(self.g, self.protocol.bn):
            rows = torch.arange(n, device=z.device)
            parts = (
                [generate_rows(rows)] if self.protocol.bn == "batch" else [*self._pieces(generate_rows, rows)]
            )
            images = torch.cat(parts)
        if images.is_cuda:
            self._ready = torch.cuda.current_stream(images.device).record_event()
        return images

    def settle(self) -> None:
        """Wait for the images generated since the last call. Raises MetricError unless all were finite."""
        finite, self._finite = self._finite, None
        if self._ready is not None:
            self._ready.synchronize()  # they may come from another stream
        if finite is not None and not bool(finite):
            raise MetricError(NOT_FINITE)


def settle(generate: Generate) -> None:
    """Call ``SampleGenerator.settle``; other generate functions check their images themselves."""
    if isinstance(generate, SampleGenerator):
        generate.settle()


def chunk(generate: Generate, start: int, random: torch.Generator) -> Tensor:
    """``CHUNK`` samples as stored: always a full chunk, or the last samples would differ by rounding."""
    images = generate(CHUNK, start, random)
    if images.dtype not in STORED or len(images) != CHUNK:
        raise TypeError(f"expected {CHUNK} stored samples, got {images.dtype} {tuple(images.shape)}")
    return images


def generators(g: nn.Module, draw: Draw, protocol: Protocol, shape: Shape) -> tuple[Generate, OfClass]:
    """The ``generate`` and ``of_class`` arguments of ``Evaluator.score`` for samples of ``shape``.

    Above 64x64 G runs in batches smaller than a chunk: 500 images of 128x128 take 2 GB per layer.
    """
    kind = sample_kind(shape)
    rows = max(1, min(CHUNK, CHUNK * 64 * 64 // kind.pixels))

    def of(label: int | None) -> Generate:
        return SampleGenerator(g, draw, protocol, rows, label, kind.to_stored)

    return of(None), of


@torch.no_grad()
def stored_samples(
    net: nn.Module,
    z: Tensor,
    y: Tensor | None = None,
    to_stored: Callable[[Tensor], Tensor] = quantize,
    batch_size: int = 256,
) -> Tensor:
    """Samples for latents z (n, Z) and labels y (n,) or None, as stored, on the CPU; NaN becomes 0 (gray).

    to_stored: of a kind of samples. G runs in evaluation mode, in smaller batches if memory runs out,
    and is not changed. Raises MetricError if there is not enough memory for one sample.
    """

    def generate_rows(rows: Tensor) -> Tensor:
        return to_stored(net(z[rows], None if y is None else y[rows]).float().nan_to_num(0.0))

    with evaluating(net):
        parts = [*MicroBatcher(batch_size)(generate_rows, torch.arange(len(z), device=z.device))]
    return torch.cat(parts).cpu()


@contextlib.contextmanager
def evaluating(net: nn.Module, bn: Literal["running", "batch"] = "running") -> Iterator[None]:
    """Inside: ``net`` in evaluation mode; ``batch``: batch norm with the batch's own statistics.

    Modes and running averages are as before afterwards.
    """
    norms = (
        [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if bn == "batch" else []
    )
    running = [(m, m.running_mean, m.running_var) for m in norms]
    try:
        with modes.evaluating(net):
            for m in norms:
                m.running_mean = m.running_var = None  # without averages, evaluation mode uses the batch's
            yield
    finally:
        for m, mean, var in running:
            m.running_mean, m.running_var = mean, var
