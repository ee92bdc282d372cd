"""The source of the samples in previews and exports."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from ganlab.types import Shape


class SampleSource(Protocol):
    """A generator, during or after training.

    ema_or_generator: G, or its moving average if the run has one. fixed: whether G is not trained and its
    samples are real ones, changed by ``moved``.
    """

    @property
    def ema_or_generator(self) -> nn.Module: ...

    @property
    def shape(self) -> Shape: ...

    @property
    def fixed(self) -> bool: ...

    def moved(self, x: Tensor, noise: Tensor) -> Tensor: ...
