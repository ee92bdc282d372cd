"""Adaptive augmentation before D (after arXiv:2006.06676): brightness, with probability p."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ganlab.distributed import collectives
from ganlab.methods.base import Method


class Brightness(Method):
    """D sees x + U(-1/2, 1/2) in a share p of samples; p rises while D's mean real score is > 0."""

    def __init__(self, rate: float = 0.05) -> None:
        self.rate = rate
        self.register_buffer("p", torch.full((), 0.5))

    def augment(self, x: Tensor) -> Tensor:
        shape = [len(x), *[1] * (x.dim() - 1)]
        shift, draw = (collectives.current().rand_shard(*shape, device=x.device) for _ in range(2))
        return x + (shift - 0.5) * (draw < self.p)

    def after_round(self, gan: Any, means: Mapping[str, Tensor]) -> None:
        self.p.add_(self.rate * means["d_real"].sign()).clamp_(0, 1)
