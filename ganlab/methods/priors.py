"""Priors of the latent z."""

from __future__ import annotations

import torch
from torch import Tensor

from ganlab.schema import Positive, checked


class Prior:
    """Draws z (n, dim), float32. ``generator=None`` uses torch's default one on ``device``."""

    def __call__(
        self, n: int, dim: int, device: torch.device, generator: torch.Generator | None = None
    ) -> Tensor:
        raise NotImplementedError


class Normal(Prior):
    """z ~ N(0, std^2 I); the SNGAN and WGAN-GP papers' prior."""

    @checked
    def __init__(self, std: Positive = 1.0) -> None:
        self.std = std

    def __call__(
        self, n: int, dim: int, device: torch.device, generator: torch.Generator | None = None
    ) -> Tensor:
        z = torch.randn(n, dim, device=device, generator=generator)
        return z if self.std == 1 else z * self.std


class Uniform(Prior):
    """z ~ U(-bound, bound)^dim; DCGAN's and chainer-gan-lib's prior."""

    @checked
    def __init__(self, bound: Positive = 1.0) -> None:
        self.bound = bound

    def __call__(
        self, n: int, dim: int, device: torch.device, generator: torch.Generator | None = None
    ) -> Tensor:
        return (torch.rand(n, dim, device=device, generator=generator) * 2 - 1) * self.bound
