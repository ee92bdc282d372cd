"""The source of the samples in previews and exports."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from ganlab.types import Shape


class MovedSamples(Protocol):
    """Samples (B, ...) from real ones and noise ~ N(0, 1) (``training/fakes.Moved``)."""

    def moved(self, x: Tensor, noise: Tensor) -> Tensor: ...


class SampleSource(Protocol):
    """A generator, during or after training.

    ema_or_generator: G, or its moving average where there is one. fixed: what moves real samples, where G
    is fixed and they take the place of generated ones.
    """

    @property
    def ema_or_generator(self) -> nn.Module: ...

    @property
    def shape(self) -> Shape: ...

    @property
    def fixed(self) -> MovedSamples | None: ...
