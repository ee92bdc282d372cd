"""Constraints on D's weights, applied after each of its optimizer steps."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ganlab.methods.base import Method, Player
from ganlab.methods.weights import CONVOLUTIONS, raw_weight, weighted_layers
from ganlab.schema import Positive, checked


class WeightClip(Method):
    """Clip weights to [-bound, bound] after each D step.

    ``scope``: ``convolutions``: their weights only, as in SNGAN's weight-clipping baseline (arXiv:1802.05957,
    section 4); ``weights``: those of linear layers and embeddings too; ``all``: every parameter of D, with
    biases and the offsets and multipliers of feature norms, as in WGAN's code (arXiv:1701.07875, Algorithm
    1). Under a weight norm the trained weight is clipped, which moves the normalised one within its norm.
    """

    schedulable = frozenset({"bound"})

    @checked
    def __init__(
        self, bound: Positive = 0.01, scope: Literal["convolutions", "weights", "all"] = "convolutions"
    ) -> None:
        self.bound, self.scope = bound, scope

    def clipped(self, d: nn.Module) -> list[Tensor]:
        if self.scope == "all":
            return list(d.parameters())
        layers = [layer for _, layer in weighted_layers(d)]
        return [raw_weight(m) for m in layers if self.scope == "weights" or isinstance(m, CONVOLUTIONS)]

    def change_networks(self, generator: nn.Module, discriminator: nn.Module) -> None:
        if not self.clipped(discriminator):
            raise ValueError("D has no convolutions, so nothing would be clipped; set scope=weights or all")

    @torch.no_grad()
    def after_update(self, gan: Any, player: Player) -> None:
        for p in self.clipped(gan.discriminator) if player == "d" else ():
            p.clamp_(-self.bound, self.bound)


class NormClip(Method):
    """Scale each parameter of D, biases and feature norms too, to an L2 norm of at most ``bound``.

    Of the weight constraints that WGAN-GP's section 3 names beside clipping (Gulrajani et al. 2017,
    arXiv:1704.00028): "L2 norm clipping". The paper does not say of what: here of each parameter tensor.
    """

    schedulable = frozenset({"bound"})

    @checked
    def __init__(self, bound: Positive = 1.0) -> None:
        self.bound = bound

    @torch.no_grad()
    def after_update(self, gan: Any, player: Player) -> None:
        for p in gan.discriminator.parameters() if player == "d" else ():
            p.mul_(self.bound / p.norm().clamp_min(self.bound))
