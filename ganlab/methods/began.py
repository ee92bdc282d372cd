"""BEGAN (Berthelot et al. 2017, arXiv:1703.10717): the equilibrium of G and an auto-encoding D."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from ganlab.methods.losses import Loss
from ganlab.schema import Count, NonNegative, Range, Steps, checked
from ganlab.types import Verdict


class BEGAN(Loss):
    """D: L(x) - k L(G(z));  G: L(G(z)), with L = -D the error of an auto-encoder (``architecture=began``).

    After each round k moves by ``rate`` (gamma L(x) - L(G(z))) within [0, 1], from 0, so that L(G(z)) / L(x)
    settles at ``gamma``. The convergence measure is M_global = L(x) + |gamma L(x) - L(G(z))|; its moving
    average over about ``window`` rounds is a score of the run, and can halve the learning rates of both
    players when it stalls. L(G(z)) is G's loss in this round: with ``order=together``, as in the unofficial
    code carpedm20/BEGAN-tensorflow, of the latents that D saw too; otherwise of others, as in the paper.

    Args:
        gamma: the diversity ratio, 0 to 1: lower values give sharper and less diverse images.
        rate: lambda_k.
        window: rounds over which M_global is averaged.
        patience: rounds without a new minimum of that average after which both rates are halved; 0: never.
            The paper halves when M_global stalls. The unofficial code halves every 100,000 steps, down to a
            quarter: +schedules={optimizer.lr: {_target_: ganlab.methods.timetable.Halving, every: 100_000,
            least: 0.25}}.
    """

    k: Tensor
    m: Tensor
    average: Tensor
    best: Tensor
    stalled: Tensor
    factor: Tensor
    rounds: Tensor

    @checked
    def __init__(
        self,
        gamma: Annotated[float, Range(ge=0, le=1)] = 0.5,
        rate: NonNegative = 0.001,
        window: Count = 1000,
        patience: Steps = 0,
    ) -> None:
        self.gamma, self.rate, self.window, self.patience = gamma, rate, window, patience
        for name in ("k", "m", "average", "stalled", "rounds"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("best", torch.tensor(torch.finfo(torch.float32).max))
        self.register_buffer("factor", torch.ones(()))

    def mistakes(self, e: Any, data: Any = None) -> Iterator[str]:
        if not e.architecture.auto_encodes:
            yield "D is no auto-encoder; use architecture=began"

    def discriminator(self, real: Verdict, fake: Verdict) -> Tensor:
        return self.k * fake.score.mean() - real.score.mean()

    def generator(self, real: Verdict | None, fake: Verdict) -> Tensor:
        return -fake.score.mean()

    def after_round(self, gan: Any, means: Mapping[str, Tensor]) -> None:
        real, fake = -means["d_real"], means["g"]
        balance = self.gamma * real - fake
        self.k.add_(self.rate * balance).clamp_(0, 1)
        self.m.copy_(real + balance.abs())
        self.rounds.add_(1)
        self.average.lerp_(self.m, 1 / self.rounds.clamp(max=self.window))
        if self.patience:
            self._halve_on_stall(gan)

    def _halve_on_stall(self, gan: Any) -> None:
        self.stalled.add_(1).mul_(self.average >= self.best)
        torch.minimum(self.best, self.average, out=self.best)
        stall = self.stalled >= self.patience
        self.factor.mul_(1 - 0.5 * stall)
        self.stalled.mul_(~stall)
        gan.scale_rates(self.factor)

    def curves(self, d: float, penalties: float) -> dict[str, float]:
        """k, M_global (Figure 2 of the paper), and the factor of the rates where it can change."""
        curves = {"began/k": float(self.k), "began/m_global": float(self.m)}
        return curves | ({"began/rate_factor": float(self.factor)} if self.patience else {})

    def scores(self) -> dict[str, float]:
        """The average of M_global."""
        return {"m_global": float(self.average)}
