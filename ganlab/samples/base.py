"""What previews and exports draw samples from."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from ganlab.types import Shape


class SampleSource(Protocol):
    """A trained or training generator, as pictures and files of samples need it.

    ema_or_generator: G, or its moving average where there is one. fixed: whether G is fixed and its samples
    are real ones, ``moved``.
    """

    @property
    def ema_or_generator(self) -> nn.Module: ...

    @property
    def shape(self) -> Shape: ...

    @property
    def fixed(self) -> bool: ...

    def moved(self, x: Tensor, noise: Tensor) -> Tensor: ...
