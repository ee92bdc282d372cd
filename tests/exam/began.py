"""BEGAN (arXiv:1703.10717): D is an autoencoder, and a weight k balances its two terms."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ganlab.methods.losses import Loss
from ganlab.models.cnn import CNN
from ganlab.types import Verdict


class BEGAN(Loss):
    """D: L(x) - k L(G(z));  G: L(G(z)), L = -D. After a round k moves by rate (gamma L(x) - L(G(z)))."""

    def __init__(self, gamma: float = 0.5, rate: float = 0.001) -> None:
        self.gamma, self.rate = gamma, rate
        self.register_buffer("k", torch.zeros(()))
        self.register_buffer("m", torch.zeros(()))  # M_global

    def discriminator(self, real: Verdict, fake: Verdict) -> Tensor:
        return self.k * fake.score.mean() - real.score.mean()

    def generator(self, real: Verdict | None, fake: Verdict) -> Tensor:
        return -fake.score.mean()

    def after_round(self, gan: Any, means: Mapping[str, Tensor]) -> None:
        balance = means["d_fake"] - self.gamma * means["d_real"]
        self.k.add_(self.rate * balance).clamp_(0, 1)
        self.m.copy_(balance.abs() - means["d_real"])

    def curves(self, d: float, penalties: float) -> dict[str, float]:
        return {"began/k": float(self.k), "began/m": float(self.m)}


class Critic(nn.Sequential):
    """x -> minus the mean absolute error of its reconstruction."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        return Verdict(-(super().forward(x) - x).abs().flatten(1).mean(1))


class AutoencoderCNN(CNN):
    """The cnn's G beside an autoencoder."""

    def discriminator(self, shape: Any, num_classes: int, norm: Any) -> nn.Module:
        c = shape.channels
        return Critic(nn.Conv2d(c, 4, 4, 2, 1), nn.ELU(), nn.ConvTranspose2d(4, c, 4, 2, 1), nn.Tanh())
