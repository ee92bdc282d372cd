"""Normalised weights: parametrisations put on a built D from outside; no architecture knows of them.

A normaliser divides the trained weight by something at each forward pass; the optimiser moves the weight
underneath. The maths stays in float32 under autocast.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ganlab.layers import as_matrix, out_dim, raw_weight, weighted_layers
from ganlab.schema import Positive, Range, checked
from ganlab.types import Stabiliser


class SpectralNormalized(nn.Module):
    """W / (sigma(W) / scale), sigma the largest singular value, tracked by power iteration.

    W is the weight as a (d_out, d_in * kernel) matrix. Buffers: u (d_out,) and v (d_in * kernel,), unit L2
    norm, constants for the gradient: sigma = u^T W v, so dW follows SNGAN's equation 12. In training mode
    with ``per_forward`` every read of the weight iterates; in evaluation mode nothing changes.
    """

    u: Tensor
    v: Tensor

    def __init__(
        self, weight: Tensor, iterations: int, axis: int, per_forward: bool, eps: float, scale: float
    ) -> None:
        super().__init__()
        self.iterations, self.axis, self.per_forward = iterations, axis, per_forward
        self.eps, self.scale = eps, scale
        matrix = as_matrix(weight.detach(), axis)
        u = matrix.new_empty(matrix.shape[0]).normal_()
        self.register_buffer("u", F.normalize(u, dim=0, eps=eps))
        self.register_buffer("v", F.normalize(matrix.T.mv(self.u), dim=0, eps=eps))

    @torch.no_grad()
    def iterate(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """One set of power iterations on ``weight``; stores and returns the new (u, v)."""
        matrix = as_matrix(weight, self.axis)
        u, v = self.u, self.v
        with torch.autocast(weight.device.type, enabled=False):
            for _ in range(self.iterations):
                v = F.normalize(matrix.T.mv(u), dim=0, eps=self.eps)
                u = F.normalize(matrix.mv(v), dim=0, eps=self.eps)
        self.u.copy_(u)
        self.v.copy_(v)
        return u, v

    def forward(self, weight: Tensor) -> Tensor:
        if self.training and self.per_forward:
            u, v = self.iterate(weight)  # fresh tensors: the next pass may overwrite the buffers
        else:
            u, v = self.u, self.v
        with torch.autocast(weight.device.type, enabled=False):
            sigma = torch.dot(u, as_matrix(weight, self.axis).mv(v))
            return weight * (self.scale / sigma)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class WeightNormalized(nn.Module):
    """Each row of the (d_out, d_in * kernel) matrix divided by its own L2 norm; gamma fixed to 1."""

    def __init__(self, axis: int, eps: float) -> None:
        super().__init__()
        self.axis, self.eps = axis, eps

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            rows = weight.movedim(self.axis, 0)
            norm = rows.flatten(1).norm(dim=1).clamp_min(self.eps)
            unit: Tensor = rows / norm.view(-1, *[1] * (rows.dim() - 1))
            return unit.movedim(0, self.axis)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class SpectralNorm(Stabiliser):
    """Spectral normalisation of every convolution, linear layer and embedding of D.

    Source: Miyato et al. 2018, arXiv:1802.05957, Algorithm 1; as in the authors' code u starts as random
    noise, without warm-up, and one iteration runs at every forward pass of D in training.

    Args:
        iterations: power iterations each time.
        update: ``per_forward`` (the paper's code: twice per D step, once per G step) or ``per_update``
            (once for each new set of D weights, as Algorithm 1 is usually read).
        scale: the spectral norm that the weights are brought to.
        eps: added safety of the vectors' norms.
    Raises ValueError (in ``prepare``) for a layer whose weight is all zeros: its norm is 0.
    """

    @checked
    def __init__(
        self,
        iterations: Annotated[int, Range(ge=1)] = 1,
        update: Literal["per_forward", "per_update"] = "per_forward",
        scale: Positive = 1.0,
        eps: Positive = 1e-12,
    ) -> None:
        self.iterations, self.update, self.scale, self.eps = iterations, update, scale, eps

    def prepare(self, d: nn.Module) -> None:
        for name, layer in list(weighted_layers(d)):
            if not raw_weight(layer).any():
                raise ValueError(
                    f"normalization.sn: layer {name!r} has a weight of zeros, its spectral norm is 0"
                )
            module = SpectralNormalized(
                raw_weight(layer),
                self.iterations,
                out_dim(layer),
                self.update == "per_forward",
                self.eps,
                self.scale,
            )
            parametrize.register_parametrization(layer, "weight", module, unsafe=True)

    def before_update(self, d: nn.Module) -> None:
        if self.update == "per_update":
            for _, layer in weighted_layers(d):
                for module in layer.parametrizations.weight:  # type: ignore[union-attr]
                    if isinstance(module, SpectralNormalized):
                        module.iterate(raw_weight(layer))


class WeightNorm(Stabiliser):
    """Weight normalisation of every layer of D, gamma fixed to 1.

    Source: Salimans & Kingma 2016, arXiv:1602.07868, as SNGAN's section 4 and appendix D use it: the squared
    singular values of each normalised matrix sum to d_out.
    """

    @checked
    def __init__(self, eps: Positive = 1e-12) -> None:
        self.eps = eps

    def prepare(self, d: nn.Module) -> None:
        for _, layer in list(weighted_layers(d)):
            parametrize.register_parametrization(
                layer, "weight", WeightNormalized(out_dim(layer), self.eps), unsafe=True
            )
