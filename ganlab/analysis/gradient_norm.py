"""How steep D is where penalties look: on real images, on generated ones, and between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ganlab import rng
from ganlab.analysis import histograms
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import PIECE, Subject
from ganlab.evaluation.generate import evaluating
from ganlab.methods.penalties import gradient_norms
from ganlab.schema import Count, Steps, checked
from ganlab.training.gan import GAN


class GradientNorm(Analysis):
    """histograms of the gradient norm of D's score on data, samples and points between them

    The norm that WGAN-GP (arXiv:1704.00028, equation 3) pulls to 1: L2 over the pixels of one image, of the
    raw score, D in evaluation mode. Points between are a x + (1 - a) G(z), a ~ U(0, 1), for pairs in order.

    Args:
        checkpoint: last, best, or a step.
        n: images of each kind.
        seed: of the images drawn.
    """

    runs = (1, histograms.MOST)

    @checked
    def __init__(self, checkpoint: str | int = "last", n: Count = 1000, seed: Steps = 0) -> None:
        self.checkpoint, self.n, self.seed = str(checkpoint), n, seed

    def make(self, runs: Sequence[Subject]) -> Finding:
        found = []
        for subject in runs:
            game, step = subject.restore(self.checkpoint)
            real = subject.real(game, self.n, self.seed)
            n = len(real.x)
            fake, y = subject.fake(game, n, self.seed)
            random = rng.generator(subject.device, self.seed, "analysis", 3)
            a = torch.rand(n, *[1] * (real.x.dim() - 1), device=subject.device, generator=random)
            kinds = {
                "data": norms(game, real.x, real.y),
                "between": norms(game, torch.lerp(fake, real.x, a), real.y),
                "samples": norms(game, fake, y),
            }
            found.append(histograms.Panel(subject, step, kinds))
        label = "gradient norm of D's score"
        return histograms.finding(found, "Gradient norm of D", label, "norm", zero=True)


def norms(game: GAN, x: Tensor, y: Tensor | None) -> Tensor:
    """Gradient norms (n,) on the CPU, D in evaluation mode and left as it was."""
    with evaluating(game.discriminator):
        parts = [
            gradient_norms(game.discriminator, x[i : i + PIECE], None if y is None else y[i : i + PIECE])
            for i in range(0, len(x), PIECE)
        ]
    return torch.cat([p.detach() for p in parts]).cpu()
