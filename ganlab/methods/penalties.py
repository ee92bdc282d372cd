"""Weighted penalties added to D's loss, computed in float32, outside autocast.

Each names its source; D is called in training mode, on its own batch.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganlab.distributed import collectives
from ganlab.methods.base import Method, Player, Scene
from ganlab.methods.weights import (
    CONVOLUTIONS,
    as_matrix,
    opaque_power_iteration,
    out_dim,
    raw_weight,
    weighted_layers,
)
from ganlab.schema import Count, NonNegative, Positive, checked
from ganlab.types import Batch


def gradients(d: nn.Module, x: Tensor, y: Tensor | None) -> Tensor:
    """The gradient of each sample's score by its own x (B, ...), as (B, N); differentiable again.

    It is that of a sample alone only where D judges each by itself: batch norm couples them.
    """
    if (
        torch.compiler.is_compiling()
    ):  # it refuses a double backward, and traces this; eagerly they cost the same
        gradient = torch.func.grad(lambda at: d(at, y).score.sum())(x.detach())
    else:
        x = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(d(x, y).score.sum(), x, create_graph=True)
    flat: Tensor = gradient.flatten(1)
    return flat


def gradient_norms(d: nn.Module, x: Tensor, y: Tensor | None) -> Tensor:
    """L2 norms (B,) of ``gradients``; the norm's own gradient is 0 where the norm is."""
    norms: Tensor = gradients(d, x, y).norm(dim=1)
    return norms


class GradientPenalty(Method):
    """weight * mean (||grad D(x~)|| - target)^2, x~ = a x + (1 - a) G(z), a ~ U(0, 1) per sample.

    Source: Gulrajani et al. 2017, arXiv:1704.00028, equation 3, Algorithm 1. ``sides=one`` penalises only
    norms above the target (appendix C). The gradient is of the raw score, for every loss. With labels
    x~ bears that of its real image; in WGAN-GP's code (fake_labels=data) that is the label of G(z) too.
    """

    needs = frozenset({"per_sample_d"})
    schedulable = frozenset({"weight", "target"})

    @checked
    def __init__(
        self, weight: NonNegative = 10.0, target: NonNegative = 1.0, sides: Literal["two", "one"] = "two"
    ) -> None:
        self.weight, self.target, self.sides = weight, target, sides

    def d_term(self, scene: Scene) -> Tensor:
        d, real, fake = scene.gan.discriminator, scene.real, scene.fake
        shape, x = [len(real.x), *[1] * (real.x.dim() - 1)], real.x
        a = collectives.current().rand_shard(*shape, device=x.device, dtype=x.dtype)
        between = torch.lerp(fake.x, real.x, a)
        excess = gradient_norms(d, between, real.y) - self.target
        if self.sides == "one":
            excess = excess.clamp_min(0)
        return self.weight * excess.square().mean()


class Drift(Method):
    """weight * mean D(x)^2 of real samples, which keeps a Wasserstein critic's scores near 0.

    Source: Karras et al. 2018, arXiv:1710.10196, appendix A.1: 0.001.
    """

    schedulable = frozenset({"weight"})

    @checked
    def __init__(self, weight: NonNegative = 0.001) -> None:
        self.weight = weight

    def d_term(self, scene: Scene) -> Tensor:
        return self.weight * scene.d_real.score.square().mean()


class _ZeroCentered(Method):
    needs = frozenset({"per_sample_d"})
    schedulable = frozenset({"gamma"})

    @checked
    def __init__(self, gamma: NonNegative = 10.0) -> None:
        self.gamma = gamma

    def on(self, d: nn.Module, batch: Batch) -> Tensor:
        return self.gamma / 2 * gradients(d, *batch).square().sum(1).mean()


class R1(_ZeroCentered):
    """(gamma / 2) * mean ||grad D(x)||^2 on real images; the gradient is of the raw score.

    Source: Mescheder, Geiger & Nowozin 2018, arXiv:1801.04406; gamma 10 as in their experiments. With ``R2``
    beside it, ``normalization=[r1,r2]``, R3GAN's (arXiv:2501.05441), whose gamma goes from 0.005 to 150 with
    the data set.
    """

    def d_term(self, scene: Scene) -> Tensor:
        return self.on(scene.gan.discriminator, scene.real)


class R2(_ZeroCentered):
    """(gamma / 2) * mean ||grad D(G(z))||^2: as ``R1``, on generated images."""

    def d_term(self, scene: Scene) -> Tensor:
        return self.on(scene.gan.discriminator, scene.fake)


Scope = Literal["all", "convolutions"]


def _layers(d: nn.Module, scope: Scope) -> list[nn.Module]:
    kinds: tuple[type, ...] = (nn.Module,) if scope == "all" else CONVOLUTIONS
    return [m for _, m in weighted_layers(d) if isinstance(m, kinds)]


def _matrix(layer: nn.Module) -> Tensor:
    return as_matrix(raw_weight(layer), out_dim(layer))


class SpectralNormRegularization(Method):
    """(weight / 2) * sum over layers of sigma(W)^2, sigma the largest singular value of the trained weight.

    Source: Yoshida & Miyato 2017, arXiv:1705.10941, equation 3 and Algorithm 1, weight 0.01 as there: a pull
    on the largest singular value alone, where spectral normalisation fixes it (SNGAN, section 2.1). One power
    iteration an update of D; u and v are constants for the gradient, weight * sigma u v^T. u (d_out,) is kept
    as the buffer ``snr_u`` of each layer, and saved with D. ``scope``: ``all`` weights or ``convolutions``.
    """

    schedulable = frozenset({"weight"})

    @checked
    def __init__(
        self, weight: Positive = 1e-2, iterations: Count = 1, scope: Scope = "all", eps: Positive = 1e-12
    ) -> None:
        self.weight, self.iterations, self.scope, self.eps = weight, iterations, scope, eps
        self._vectors: dict[nn.Module, tuple[Tensor, Tensor]] | None = None  # of this update of D

    def before_round(self, gan: Any) -> None:
        self._vectors = {}

    def after_update(self, gan: Any, player: Player) -> None:
        self._vectors = {}

    def prepare(self, gan: Any, data: Any = None) -> None:
        for layer in _layers(gan.discriminator, self.scope):
            matrix = _matrix(layer).detach()
            u = matrix.new_empty(matrix.shape[0]).normal_()
            layer.register_buffer("snr_u", F.normalize(u, dim=0, eps=self.eps))

    def d_term(self, scene: Scene) -> Tensor:
        total = scene.real.x.new_zeros(())
        for layer in _layers(scene.gan.discriminator, self.scope):
            matrix, kept = _matrix(layer), layer.get_buffer("snr_u")
            if self._vectors is None or layer not in self._vectors:  # not again for each micro batch
                u, v = opaque_power_iteration(matrix.detach(), kept, self.iterations, self.eps)
                kept.copy_(u)
                if self._vectors is not None:
                    self._vectors[layer] = u, v
            else:
                u, v = self._vectors[layer]
            total = total + torch.dot(u, matrix.mv(v)).square()
        return self.weight / 2 * total


class Orthonormal(Method):
    """weight * sum over layers of ||W^T W - I||_F^2, and an orthonormal start.

    Source: Brock et al. 2016, arXiv:1609.07093, as SNGAN's section 4 lists it. W is the (d_out, d_in *
    kernel) matrix; where it is wide the rows are made orthonormal (W W^T), for its columns cannot be. No
    paper gives the coefficient: ``weight`` is ganlab's choice; 0: the start alone. ``init=false`` keeps the
    architecture's own start, or what a normalization before this one made of it. ``scope``: ``all`` weights
    or only ``convolutions``. Raises ValueError if both are off.
    """

    schedulable = frozenset({"weight"})

    @checked
    def __init__(self, weight: NonNegative = 1e-2, init: bool = True, scope: Scope = "all") -> None:
        if not weight and not init:
            raise ValueError("weight: 0 with init=false does nothing; set one of them")
        self.weight, self.init, self.scope = weight, init, scope
        self.has_term = weight > 0

    def prepare(self, gan: Any, data: Any = None) -> None:
        if self.init:
            with torch.no_grad():
                for layer in _layers(gan.discriminator, self.scope):
                    rows = raw_weight(layer).movedim(out_dim(layer), 0)  # a view, as the matrix need not be
                    fresh = nn.init.orthogonal_(rows.new_empty(rows.flatten(1).shape))
                    rows.copy_(fresh.view(rows.shape))

    def d_term(self, scene: Scene) -> Tensor | None:
        if not self.has_term:
            return None
        total = scene.real.x.new_zeros(())
        for w in (_matrix(layer) for layer in _layers(scene.gan.discriminator, self.scope)):
            gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
            total = total + (gram - torch.eye(len(gram), device=w.device, dtype=w.dtype)).square().sum()
        return self.weight * total


class WeightDecay(Method):
    """weight * sum |w|, or (weight / 2) * sum w^2, over all parameters w of D, as a term of its loss.

    The soft weight constraints of WGAN-GP's section 3 (Gulrajani et al. 2017, arXiv:1704.00028): "L1 and L2
    weight decay", without their weights. ``d_optimizer={weight_decay: ...}`` adds the gradient of the
    second to D's at the optimiser, with the same step; this one is seen in the losses.
    """

    schedulable = frozenset({"weight"})

    @checked
    def __init__(self, weight: Positive = 1e-3, norm: Literal["l1", "l2"] = "l2") -> None:
        self.weight, self.norm = weight, norm

    def d_term(self, scene: Scene) -> Tensor:
        parameters = scene.gan.discriminator.parameters()
        if self.norm == "l1":
            return self.weight * torch.stack([p.abs().sum() for p in parameters]).sum()
        return self.weight / 2 * torch.stack([p.square().sum() for p in parameters]).sum()
