"""Virtual batch norm in G (Salimans et al. 2016, arXiv:1606.03498): statistics of a fixed reference batch."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ganlab.methods.base import FeatureNorm, Method, Player


class Norm(nn.Module):
    """Normalizes all rows (B + n, C, ...) by mean and variance of the last n; then a scale and an offset."""

    def __init__(self, n: int, channels: int) -> None:
        super().__init__()
        self.n, self.weight = n, nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        axes, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        var, mean = torch.var_mean(x[-self.n :], axes, correction=0, keepdim=True)
        return (x - mean) * (var + 1e-5).rsqrt() * self.weight.view(shape) + self.bias.view(shape)


class VirtualBatchNorm(Method):
    """The reference latents pass G behind each batch, and their images are dropped."""

    def __init__(self, n: int = 8) -> None:
        self.n = n

    def feature_norm(self, player: Player = "d") -> FeatureNorm | None:
        return FeatureNorm(partial(Norm, self.n)) if player == "g" else None

    def prepare(self, gan: Any, data: Any = None) -> None:
        g = gan.generator
        g.register_buffer("reference", gan.prior(self.n, gan.z_dim, torch.device("cpu")))
        g.register_forward_pre_hook(lambda g, args: (torch.cat([args[0], g.reference]), *args[1:]))
        g.register_forward_hook(lambda g, args, x: x[: -len(g.reference)])
