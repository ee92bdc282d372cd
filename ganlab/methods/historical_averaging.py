"""Historical averaging (Salimans et al. 2016, arXiv:1606.03498, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ganlab.methods.base import PLAYERS, Method, Player, Scene
from ganlab.schema import NonNegative, checked


class HistoricalAveraging(Method):
    """Added to each player's loss: weight * ||theta - (1/t) sum_i theta[i]||^2, over its past parameters.

    theta[1] are the initial parameters, and theta[t + 1] those after t of the player's updates; the mean is
    kept online: mean += (theta - mean) / t. The paper gives no weight and its code has none of this: ``g``
    and ``d`` are ganlab's choice; 0: without. Under a weight norm these are the trained weights.
    """

    schedulable = frozenset({"g", "d"})

    @checked
    def __init__(self, g: NonNegative = 1.0, d: NonNegative = 1.0) -> None:
        self.g, self.d = g, d
        self.averaged: tuple[Player, ...] = tuple(p for p, w in zip(PLAYERS, (g, d), strict=True) if w)

    def mistakes(self, e: Any, data: Any = None) -> Iterator[str]:
        if not self.averaged:
            yield "g=0 and d=0 do nothing; set one of them"

    def ready(self, gan: Any) -> None:
        for player in self.averaged:
            self.register_buffer(f"{player}_count", torch.ones(()))
            for i, p in enumerate(parameters(gan, player)):
                self.register_buffer(f"{player}_{i}", p.detach().clone())

    def means(self, player: Player, n: int) -> list[Tensor]:
        return [self.get_buffer(f"{player}_{i}") for i in range(n)]

    def _term(self, gan: Any, player: Player) -> Tensor | None:
        if player not in self.averaged:
            return None
        now = parameters(gan, player)
        means = self.means(player, len(now))
        squares = [(p - mean).square().sum() for p, mean in zip(now, means, strict=True)]
        term: Tensor = getattr(self, player) * torch.stack(squares).sum()
        return term

    def d_term(self, scene: Scene) -> Tensor | None:
        return self._term(scene.gan, "d")

    def g_term(self, scene: Scene) -> Tensor | None:
        return self._term(scene.gan, "g")

    @torch.no_grad()
    def after_update(self, gan: Any, player: Player) -> None:
        if player in self.averaged:
            share = 1 / self.get_buffer(f"{player}_count").add_(1)
            now = parameters(gan, player)
            for mean, p in zip(self.means(player, len(now)), now, strict=True):
                mean.add_((p - mean) * share)


def parameters(gan: Any, player: Player) -> list[nn.Parameter]:
    """The trained parameters of a player."""
    return list((gan.generator if player == "g" else gan.discriminator).parameters())
