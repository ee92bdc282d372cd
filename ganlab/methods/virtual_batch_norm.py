"""Virtual batch normalization of G (Salimans et al. 2016, arXiv:1606.03498, section 3.5)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ganlab.methods.base import FeatureNorm, Method, Player
from ganlab.schema import MAX_COUNT, Positive, Range, checked


class VirtualBatchNorm(Method):
    """G's batch norms use a fixed reference batch, and of the live samples each its own statistics alone.

    Latents (and labels) of ``size`` reference samples are drawn once, kept in G's state, and pass G behind
    every batch, in training, evaluation and sampling; their outputs are dropped. So an image depends on its
    own latent only, and a batch of 1 is as good as any.

    With n reference samples and the means m and mean squares q over batch and space of the reference, and of
    a live sample over its own space: mean = (m_x + n m_ref) / (n + 1), q alike, std^2 = eps + q - mean^2; the
    reference itself by m_ref and q_ref. Then a scale ~ N(1, 0.02) and an offset 0, learned. Source: the
    paper's ImageNet code (ops.py), with eps 1e-5.
    """

    @checked
    def __init__(self, size: Annotated[int, Range(ge=2, le=MAX_COUNT)] = 64, eps: Positive = 1e-5) -> None:
        self.size, self.eps = size, eps

    def mistakes(self, e: Any, data: Any = None) -> Iterator[str]:
        if e.fixed_generator or e.fixed_shift:
            yield "G is not trained; leave it out"
        if data is not None and not data.is_stream and self.size > len(data):
            n = len(data)
            yield f"size={self.size} is more than the {n} samples of the data; use at most {n}"

    def feature_norm(self, player: Player = "d") -> FeatureNorm | None:
        return FeatureNorm(partial(VirtualNorm, self.size, self.eps)) if player == "g" else None

    def prepare(self, gan: Any, data: Any = None) -> None:
        g = gan.generator
        g.register_buffer("reference_z", gan.prior(self.size, gan.z_dim, torch.device("cpu")))
        if gan.num_classes:
            g.register_buffer("reference_y", torch.arange(self.size) % gan.num_classes)
        g.register_forward_pre_hook(_add_reference)
        g.register_forward_hook(_drop_reference)


def _add_reference(g: nn.Module, inputs: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    z, y = (*inputs, None)[:2]
    y = None if y is None else torch.cat([y, g.get_buffer("reference_y")])
    return torch.cat([z, g.get_buffer("reference_z").to(z.dtype)]), y


def _drop_reference(g: nn.Module, inputs: object, x: Tensor) -> Tensor:
    return x[: -len(g.get_buffer("reference_z"))]


class VirtualNorm(nn.Module):
    """x (B + n, C, ...), the last n rows the reference; see ``VirtualBatchNorm``. y is ignored."""

    def __init__(self, n: int, eps: float, channels: int) -> None:
        super().__init__()
        self.n, self.eps = n, eps
        self.weight = nn.Parameter(1 + 0.02 * torch.randn(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            h = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
            return self._normalized(h).to(x.dtype)

    def _normalized(self, x: Tensor) -> Tensor:
        n, per_channel = self.n, (1, -1, *[1] * (x.dim() - 2))
        space = tuple(range(2, x.dim()))
        means, squares = x, x.square()  # of each sample, (B + n, C, 1, ...)
        if space:
            means, squares = means.mean(space, keepdim=True), squares.mean(space, keepdim=True)
        m_ref, q_ref = means[-n:].mean(0, keepdim=True), squares[-n:].mean(0, keepdim=True)
        m_live, q_live = (means[:-n] + n * m_ref) / (n + 1), (squares[:-n] + n * q_ref) / (n + 1)
        mean = torch.cat([m_live, m_ref.expand_as(means[-n:])])
        square = torch.cat([q_live, q_ref.expand_as(means[-n:])])
        scale = self.weight.view(per_channel) * (self.eps + square - mean.square()).rsqrt()
        return (x - mean) * scale + self.bias.view(per_channel)
