"""Terms added to D's loss, weight included. They are computed in float32, outside autocast.

Each names its source; D is called in training mode, on its own batch.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ganlab.layers import CONVOLUTIONS, as_matrix, out_dim, raw_weight, weighted_layers
from ganlab.schema import NonNegative, Positive, checked
from ganlab.types import Batch, Stabiliser


def gradient_norms(d: nn.Module, x: Tensor, y: Tensor | None) -> Tensor:
    """L2 norm (B,) of the gradient of each sample's score by its own x (B, ...); differentiable again."""
    x = x.detach().requires_grad_(True)
    score = d(x, y).score
    (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    norms: Tensor = gradient.flatten(1).norm(dim=1)
    return norms


class GradientPenalty(Stabiliser):
    """weight * mean (||grad D(x~)|| - target)^2, x~ = a x + (1 - a) G(z), a ~ U(0, 1) per sample.

    Source: Gulrajani et al. 2017, arXiv:1704.00028, equation 3, Algorithm 1. ``sides=one`` penalises only
    norms above the target (appendix C). The gradient is of the raw score, for every loss.
    """

    has_penalty = True

    @checked
    def __init__(
        self, weight: NonNegative = 10.0, target: NonNegative = 1.0, sides: Literal["two", "one"] = "two"
    ) -> None:
        self.weight, self.target, self.sides = weight, target, sides

    def penalty(self, d: nn.Module, real: Batch, fake: Batch) -> Tensor:
        a = torch.rand(len(real.x), *[1] * (real.x.dim() - 1), device=real.x.device, dtype=real.x.dtype)
        between = torch.lerp(fake.x, real.x, a)
        excess = gradient_norms(d, between, real.y) - self.target
        if self.sides == "one":
            excess = excess.clamp_min(0)
        return self.weight * excess.square().mean()


class Orthonormal(Stabiliser):
    """weight * sum over layers of ||W^T W - I||_F^2, and an orthonormal start.

    Source: Brock et al. 2016, arXiv:1609.07093, as SNGAN's section 4 lists it. W is the (d_out, d_in *
    kernel) matrix; where it is wide the rows are made orthonormal (W W^T), for its columns cannot be. No
    paper gives the coefficient: ``weight`` is ganlab's choice. ``init=false`` keeps the architecture's own
    start. ``scope``: ``all`` weights or only ``convolutions``.
    """

    has_penalty = True

    @checked
    def __init__(
        self, weight: Positive = 1e-2, init: bool = True, scope: Literal["all", "convolutions"] = "all"
    ) -> None:
        self.weight, self.init, self.scope = weight, init, scope

    def _matrices(self, d: nn.Module) -> list[Tensor]:
        kinds: tuple[type, ...] = (nn.Module,) if self.scope == "all" else CONVOLUTIONS
        return [as_matrix(raw_weight(m), out_dim(m)) for _, m in weighted_layers(d) if isinstance(m, kinds)]

    def prepare(self, d: nn.Module) -> None:
        if self.init:
            with torch.no_grad():
                for matrix in self._matrices(d):
                    fresh = torch.empty_like(matrix, memory_format=torch.contiguous_format)
                    matrix.copy_(nn.init.orthogonal_(fresh).view_as(matrix))

    def penalty(self, d: nn.Module, real: Batch, fake: Batch) -> Tensor:
        total = real.x.new_zeros(())
        for w in self._matrices(d):
            gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
            total = total + (gram - torch.eye(len(gram), device=w.device, dtype=w.dtype)).square().sum()
        return self.weight * total
