"""Weight-normalized layers with data-dependent start (Salimans & Kingma 2016, arXiv:1602.07868)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganlab.distributed import collectives
from ganlab.methods.base import StartsFromData

EPS = 1e-6  # under the root, as in the code of arXiv:1606.03498 (nn.py)


class _WeightNormed(StartsFromData):
    """A layer whose weight is g v / sqrt(eps + |v|^2), a gain g and a bias for each output channel.

    ``start`` sets g and the bias so that on the first samples each channel has mean 0 and deviation
    ``start_std``; None: it starts with g = 1 and no bias. trained: whether g is trained; if not it stays as
    the start left it. Mixed into torch's layers, whose ``weight`` is v.
    """

    weight: Any
    bias: Any
    axis = 0  # of v's output channels

    def set_up(self, start_std: float | None, trained: bool, std: float) -> None:
        self.start_std = start_std
        g = torch.ones(self.weight.shape[self.axis])
        if trained:
            self.g = nn.Parameter(g)
        else:
            self.register_buffer("g", g)
        nn.init.normal_(self.weight, 0, std)
        nn.init.zeros_(self.bias)

    def normed(self) -> Tensor:
        rest = [i for i in range(self.weight.dim()) if i != self.axis]
        shape = [-1 if i == self.axis else 1 for i in range(self.weight.dim())]
        v: Tensor = self.weight
        return v * (self.g.view(shape) * (EPS + v.square().sum(rest, keepdim=True)).rsqrt())

    def apply_weight(self, x: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_weight(x, self.bias)

    def start(self, x: Tensor) -> None:
        if self.start_std is None:
            return
        t = self.apply_weight(x, None)
        axes = [0, *range(2, t.dim())]
        scale = self.start_std / t.var(axes, correction=0).sqrt().clamp_min(1e-12)
        self.bias.copy_(-t.mean(axes) * scale)
        self.g.mul_(scale)


class WNLinear(_WeightNormed, nn.Linear):
    """A dense layer."""

    def __init__(
        self, n_in: int, n_out: int, start_std: float | None = 1.0, trained: bool = False, std: float = 0.05
    ) -> None:
        nn.Linear.__init__(self, n_in, n_out)
        self.set_up(start_std, trained, std)

    def apply_weight(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.normed(), bias)


class WNConv(_WeightNormed, nn.Conv2d):
    """A convolution."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        nn.Conv2d.__init__(self, c_in, c_out, kernel, stride, padding)
        self.set_up(1.0, False, 0.05)

    def apply_weight(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, self.normed(), bias, self.stride, self.padding)


class WNDeconv(_WeightNormed, nn.ConvTranspose2d):
    """A 5x5 transposed convolution to twice the side, whose gains are trained."""

    axis = 1

    def __init__(self, c_in: int, c_out: int, start_std: float) -> None:
        nn.ConvTranspose2d.__init__(self, c_in, c_out, 5, 2, 2, output_padding=1)
        self.set_up(start_std, True, 0.05)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.apply_weight(x, self.bias)

    def apply_weight(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv_transpose2d(x, self.normed(), bias, 2, 2, 1)


class GaussianNoise(nn.Module):
    """x + N(0, std^2), drawn anew in each pass; x in evaluation mode."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x + self.std * collectives.current().drawn_like(x, torch.randn_like)


class Dropout(nn.Dropout):
    """``nn.Dropout`` whose ranks drop what one process would."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or collectives.current().size == 1:
            return super().forward(x)
        return x * collectives.current().drawn_like(x, lambda like: F.dropout(torch.ones_like(like), self.p))
