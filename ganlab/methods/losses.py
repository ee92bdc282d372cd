"""Adversarial losses, one class each, on one page so that they can be compared; the class loss at its end.

A score is D's raw output: unbounded, before any sigmoid, higher means "looks real".
Every method returns a scalar to minimise, averaged over the batch, in float32.
A new loss: a class here (or in a file of its own) and ``configs/loss/NAME.yaml``.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from ganlab.methods.base import Method, Player, Scene
from ganlab.schema import NonNegative, Positive, checked
from ganlab.types import Verdict


class Loss(Method):
    """Two players' losses, each from D's verdicts."""

    def discriminator(self, real: Verdict, fake: Verdict) -> Tensor:
        """D's loss (scalar) from its verdicts on real and generated images."""
        raise NotImplementedError

    def generator(self, real: Verdict | None, fake: Verdict) -> Tensor:
        """G's loss (scalar) from D's verdict on generated images, and on real ones with ``real_in_g``."""
        raise NotImplementedError

    def moved_target(self, player: Player, score: Tensor, old: float, new: float) -> Tensor | None:
        """What to add to a player's loss that pulls scores (B,) to target ``old``, a probability, for it to
        pull them to ``new``; None: this loss has no targets."""
        return None

    def d_term(self, scene: Scene) -> Tensor | None:
        return self.discriminator(scene.d_real, scene.d_fake)

    def g_term(self, scene: Scene) -> Tensor | None:
        return self.generator(scene.d_real, scene.d_fake)


class Standard(Loss):
    """D: mean softplus(-D(x)) + mean softplus(D(G(z)));  G: mean softplus(-D(G(z))).

    The non-saturating loss. Source: Goodfellow et al. 2014, arXiv:1406.2661, section 3; SNGAN's code.
    """

    def discriminator(self, real: Verdict, fake: Verdict) -> Tensor:
        return F.softplus(-real.score).mean() + F.softplus(fake.score).mean()

    def generator(self, real: Verdict | None, fake: Verdict) -> Tensor:
        return F.softplus(-fake.score).mean()

    def moved_target(self, player: Player, score: Tensor, old: float, new: float) -> Tensor | None:
        """The cross-entropy t softplus(-s) + (1 - t) softplus(s) is linear in t, with slope -s."""
        return (old - new) * score.mean()

    def curves(self, d: float, penalties: float) -> dict[str, float]:
        """The estimate of the Jensen-Shannon divergence, log 2 - (D's loss) / 2: a lower bound of it, at most
        log 2 (nats), of WGAN's Figure 4 (arXiv:1701.07875, section 4.2)."""
        return {"critic/js_estimate": math.log(2) - d / 2}


class Minimax(Standard):
    """D as in ``Standard``;  G: -mean softplus(D(G(z))) = mean log(1 - sigmoid(D(G(z)))).

    The saturating game of Goodfellow et al. 2014, arXiv:1406.2661, equation 1. G's loss is negative.
    """

    def generator(self, real: Verdict | None, fake: Verdict) -> Tensor:
        return -F.softplus(fake.score).mean()

    def moved_target(self, player: Player, score: Tensor, old: float, new: float) -> Tensor | None:
        """G has no target: it takes D's own term with the other sign."""
        return super().moved_target(player, score, old, new) if player == "d" else None


class Hinge(Loss):
    """D: mean relu(m - D(x)) + mean relu(m + D(G(z)));  G: -mean D(G(z)).

    Source: Lim & Ye 2017, arXiv:1705.02894; with m = 1 SNGAN's equations 16 and 17 (arXiv:1802.05957).
    Raises ValueError unless margin > 0 (at 0 the constant D = 0 is optimal).
    """

    schedulable = frozenset({"margin"})

    @checked
    def __init__(self, margin: Positive = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def discriminator(self, real: Verdict, fake: Verdict) -> Tensor:
        return F.relu(self.margin - real.score).mean() + F.relu(self.margin + fake.score).mean()

    def generator(self, real: Verdict | None, fake: Verdict) -> Tensor:
        return -fake.score.mean()


class Wasserstein(Loss):
    """D: mean D(G(z)) - mean D(x);  G: -mean D(G(z)).

    Source: Arjovsky et al. 2017, arXiv:1701.07875, Algorithm 1. -(D's loss) estimates the distance (up
    to D's Lipschitz constant), so D needs a constraint: ``normalization=gp``, ``wc`` or ``sn``.
    """

    def discriminator(self, real: Verdict, fake: Verdict) -> Tensor:
        return fake.score.mean() - real.score.mean()

    def generator(self, real: Verdict | None, fake: Verdict) -> Tensor:
        return -fake.score.mean()

    def curves(self, d: float, penalties: float) -> dict[str, float]:
        """The estimate of the distance, mean D(x) - mean D(G(z)), which falls as G learns; and the negative
        critic loss, penalties in it, of WGAN-GP's Figure 5 (arXiv:1704.00028)."""
        return {"critic/wasserstein_estimate": -d, "critic/negative_critic_loss": -(d + penalties)}


class LeastSquares(Loss):
    """D: (mean (D(x) - 1)^2 + mean D(G(z))^2) / 2;  G: mean (D(G(z)) - 1)^2.

    Source: Mao et al. 2017, arXiv:1611.04076, with targets 0 and 1; halves as in WGAN-GP's released code.
    """

    def discriminator(self, real: Verdict, fake: Verdict) -> Tensor:
        return ((real.score - 1).square().mean() + fake.score.square().mean()) / 2

    def generator(self, real: Verdict | None, fake: Verdict) -> Tensor:
        return (fake.score - 1).square().mean()

    def moved_target(self, player: Player, score: Tensor, old: float, new: float) -> Tensor | None:
        moved = (score - new).square().mean() - (score - old).square().mean()
        return moved / 2 if player == "d" else moved


class ClassLoss(Method):
    """D: d_real CE(x) + d_fake CE(G(z, y));  G: g_fake CE(G(z, y)).  Added to the adversarial losses.

    CE: mean cross-entropy of D's class logits against the labels, in float32. Sources: AC-GAN, Odena et al.
    2017, arXiv:1610.09585, section 3: 1, 1, 1; WGAN-GP's released code (arXiv:1704.00028,
    gan_cifar_resnet.py): 1, 0, 0.1.
    """

    schedulable = frozenset({"d_real", "d_fake", "g_fake"})

    @checked
    def __init__(
        self, d_real: NonNegative = 1.0, d_fake: NonNegative = 0.0, g_fake: NonNegative = 0.1
    ) -> None:
        self.d_real, self.d_fake, self.g_fake = d_real, d_fake, g_fake
        self.sees_fakes = d_fake > 0

    def d_term(self, scene: Scene) -> Tensor | None:
        total = self.d_real * cross_entropy(scene.d_real, scene.real.y)
        return total + self.d_fake * cross_entropy(scene.d_fake, scene.fake.y) if self.sees_fakes else total

    def g_term(self, scene: Scene) -> Tensor | None:
        return self.g_fake * cross_entropy(scene.d_fake, scene.fake.y)


def cross_entropy(verdict: Verdict, y: Tensor | None) -> Tensor:
    """Mean -log softmax(class_logits)[y] (scalar)."""
    assert verdict.class_logits is not None, "D has no class logits"
    assert y is not None, "no labels"
    return F.cross_entropy(verdict.class_logits, y)
