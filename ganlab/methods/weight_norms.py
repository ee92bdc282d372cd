"""Normalised weights: parametrisations put on a built D from outside; no architecture knows of them.

A normaliser divides the trained weight by something at each forward pass; the optimiser moves the weight
underneath. The maths stays in float32 under autocast. With ``gamma`` a learned factor follows the normaliser:
SNGAN's appendix E, equation 38. It begins at the norm that is divided by, so that D starts as it would
without (exactly where that is one number): so does the authors' code for the spectral norm, by its SVD. For
the other two it is our choice: paper and code say nothing of them.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ganlab.methods.base import Method, Player
from ganlab.methods.spectral_norm import AtOnce, SpectralNormalized
from ganlab.methods.weights import as_matrix, out_dim, raw_weight, weighted_layers
from ganlab.schema import Count, Positive, Steps, checked

Gamma = Literal["fixed", "learned"]


class WeightNormalized(nn.Module):
    """Each row of the (d_out, d_in * kernel) matrix divided by its own L2 norm."""

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


class FrobeniusNormalized(nn.Module):
    """The weight divided by the L2 norm of all its entries."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            norm: Tensor = torch.linalg.vector_norm(weight).clamp_min(self.eps)
            return weight / norm

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class LearnedScale(nn.Module):
    """gamma * weight, behind a normaliser. gamma: a parameter of D, () or (d_out,) for one a channel."""

    def __init__(self, start: Tensor, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.gamma = nn.Parameter(start.detach().clone())

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            if not self.gamma.dim():
                return weight * self.gamma
            shape = [1] * weight.dim()
            shape[self.axis] = -1
            return weight * self.gamma.view(shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class _WeightNormalization(Method):
    """Puts a normaliser, and the learned scale if there is one, on every weighted layer of D."""

    name: str
    gamma: str
    normalizes_weights = True

    def normalizer(self, weight: Tensor, axis: int) -> nn.Module:
        raise NotImplementedError

    def norm(self, matrix: Tensor) -> Tensor:
        """Where gamma begins: the norm of the (d_out, d_in * kernel) matrix, () or (d_out,) for its rows'."""
        raise NotImplementedError

    def prepare(self, gan: Any, data: Any = None) -> None:
        for name, layer in list(weighted_layers(gan.discriminator)):
            weight, axis = raw_weight(layer), out_dim(layer)
            if parametrize.is_parametrized(layer, "weight"):
                raise ValueError(
                    f"normalization.{self.name}: layer {name!r} already has a normalized weight; choose one"
                )
            if self.name != "wn" and not weight.any():
                raise ValueError(
                    f"normalization.{self.name}: layer {name!r} has an all-zero weight, whose norm is 0"
                )
            module = self.normalizer(weight, axis)
            parametrize.register_parametrization(layer, "weight", module, unsafe=True)
            if self.gamma != "fixed":
                start = self.norm(as_matrix(weight.detach(), axis))
                parametrize.register_parametrization(layer, "weight", LearnedScale(start, axis), unsafe=True)


class SpectralNorm(_WeightNormalization):
    """Spectral normalisation of every convolution, linear layer and embedding of D.

    Source: Miyato et al. 2018, arXiv:1802.05957, Algorithm 1; as in the authors' code u starts as random
    noise, without warm-up, and one iteration runs at every forward pass of D in training.

    Args:
        iterations: power iterations each time.
        update: ``per_forward`` (the paper's code: twice per D step, once per G step) or ``per_update``
            (once for each new set of D's weights, the first included: as Algorithm 1 is usually read).
        scale: the spectral norm that the weights are brought to.
        eps: added safety of the vectors' norms.
        method: ``power``, or ``svd``: the exact first singular vectors at the same moments, to check the
            approximation by (``iterations`` and ``warmup`` then play no part). On a CPU a read of the CNN's
            weights takes 10 times as long at a quarter of its width, 70 times at full width.
        warmup: power iterations before the first step (torch's own spectral norm: 15).
        gamma: ``learned``: the weight is gamma * W / sigma(W), gamma a scalar of D for each layer that begins
            at the first singular value of the initial W, by exact SVD (appendix E). The layer is then no
            longer bound: meant for use with a gradient penalty.
    Raises ValueError for a ``scale`` beside a learned gamma; in ``prepare`` for a layer whose weight is all
    zeros (its norm is 0) or normalised already.
    """

    name = "sn"

    @checked
    def __init__(
        self,
        iterations: Count = 1,
        update: Literal["per_forward", "per_update"] = "per_forward",
        scale: Positive = 1.0,
        eps: Positive = 1e-12,
        method: Literal["power", "svd"] = "power",
        warmup: Steps = 0,
        gamma: Gamma = "fixed",
    ) -> None:
        if gamma == "learned" and scale != 1:
            raise ValueError(f"scale: {scale:g} conflicts with a learned gamma; leave it at 1")
        self.iterations, self.update, self.scale, self.eps = iterations, update, scale, eps
        self.method, self.warmup, self.gamma = method, warmup, gamma
        self.needs = frozenset({"fresh_forward"} if update == "per_forward" else ())
        self.graph_safe = method == "power"  # an SVD asks the host whether it converged

    def normalizer(self, weight: Tensor, axis: int) -> nn.Module:
        per_forward, exact = self.update == "per_forward", self.method == "svd"
        return SpectralNormalized(
            weight, self.iterations, axis, per_forward, self.eps, self.scale, exact, self.warmup
        )

    def norm(self, matrix: Tensor) -> Tensor:
        sigma: Tensor = torch.linalg.matrix_norm(matrix, 2)
        return sigma

    def prepare(self, gan: Any, data: Any = None) -> None:
        super().prepare(gan, data)
        if self.method == "power":
            d = gan.discriminator
            at_once = d.spectral_at_once = AtOnce([layer for _, layer in weighted_layers(d)])
            d.register_forward_pre_hook(at_once.before)
            d.register_forward_hook(at_once.after, always_call=True)

    def before_round(self, gan: Any) -> None:
        if isinstance(at_once := getattr(gan.discriminator, "spectral_at_once", None), AtOnce):
            at_once.known = None  # where an update is replayed, that would be of the time it was recorded

    def after_update(self, gan: Any, player: Player) -> None:
        if player == "g":
            return
        d = gan.discriminator
        self.before_round(gan)  # a fused optimiser moves weights and leaves their versions as they were
        if self.update == "per_forward":
            return
        if self.method == "power":
            at_once = d.spectral_at_once
            assert isinstance(at_once, AtOnce)
            with torch.no_grad():
                at_once.renew(self.iterations)
            return
        for _, layer in weighted_layers(d):
            layer.parametrizations.weight[0].renew(raw_weight(layer))  # type: ignore[index, union-attr]


class WeightNorm(_WeightNormalization):
    """Weight normalisation of every layer of D.

    Source: Salimans & Kingma 2016, arXiv:1602.07868. SNGAN's comparison (section 4, appendix D) has gamma
    ``fixed`` to 1: the squared singular values of each normalised matrix sum to d_out. ``learned``: one
    scalar a layer, from the mean norm of the initial W's rows on (appendix E). ``per_channel``: Salimans &
    Kingma's own, one for each output channel, so that D starts exactly as it would without.
    """

    name = "wn"

    @checked
    def __init__(
        self, eps: Positive = 1e-12, gamma: Literal["fixed", "learned", "per_channel"] = "fixed"
    ) -> None:
        self.eps, self.gamma = eps, gamma

    def normalizer(self, weight: Tensor, axis: int) -> nn.Module:
        return WeightNormalized(axis, self.eps)

    def norm(self, matrix: Tensor) -> Tensor:
        rows: Tensor = matrix.norm(dim=1)
        return rows if self.gamma == "per_channel" else rows.mean()


class FrobeniusNorm(_WeightNormalization):
    """W / ||W||_F on every layer of D: the squared singular values of each matrix sum to 1.

    Source: SNGAN's appendices D and E, where WGAN-GP with it collapsed early (gamma ``learned``: a scalar a
    layer, from the initial ||W||_F on). Raises ValueError (in ``prepare``) for a layer of zeros or one
    normalised already.
    """

    name = "fn"

    @checked
    def __init__(self, eps: Positive = 1e-12, gamma: Gamma = "fixed") -> None:
        self.eps, self.gamma = eps, gamma

    def normalizer(self, weight: Tensor, axis: int) -> nn.Module:
        return FrobeniusNormalized(self.eps)

    def norm(self, matrix: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.matrix_norm(matrix)
        return norm
