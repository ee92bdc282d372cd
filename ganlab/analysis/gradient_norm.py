"""Gradient norms of D where penalties are computed: on real and generated images, and between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ganlab import rng
from ganlab.analysis import histograms
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject, in_pieces
from ganlab.evaluation.generate import evaluating
from ganlab.methods.penalties import gradient_norms
from ganlab.schema import Count, Steps
from ganlab.training.gan import GAN


class GradientNorm(Analysis):
    """histograms of the gradient norm of D's score on data, samples and points between them

    This is the norm that the WGAN-GP penalty (arXiv:1704.00028, equation 3) drives to 1: the L2 norm, over
    the pixels of one image, of the gradient of D's raw score, with D in evaluation mode. Points between are
    a x + (1 - a) G(z) with a ~ U(0, 1).

    Args:
        checkpoint: last, best, or a step.
        n: number of images of each kind.
        seed: random seed.
    """

    runs = (1, histograms.MAX_RUNS)
    checkpoint: str | int = "last"
    n: Count = 1000
    seed: Steps = 0

    def make(self, runs: Sequence[Subject]) -> Finding:
        panels = []
        for subject in runs:
            gan, step = subject.restore(self.checkpoint)
            real = subject.real(gan, self.n, self.seed)
            n = len(real.x)
            fake, y = subject.fake(gan, n, self.seed)
            random = rng.generator(subject.device, self.seed, "analysis", 3)
            a = torch.rand(n, *[1] * (real.x.dim() - 1), device=subject.device, generator=random)
            kinds = {
                "data": norms(gan, real.x, real.y),
                "between": norms(gan, torch.lerp(fake, real.x, a), real.y),
                "samples": norms(gan, fake, y),
            }
            panels.append(histograms.Panel(subject, step, kinds))
        label = "gradient norm of D's score"
        return histograms.finding(panels, "Gradient norm of D", label, "norm", zero=True)


def norms(gan: GAN, x: Tensor, y: Tensor | None) -> Tensor:
    """Gradient norms (n,) on the CPU, with D in evaluation mode; its mode is restored."""
    with evaluating(gan.discriminator):
        return in_pieces(lambda x, y: gradient_norms(gan.discriminator, x, y).detach(), x, y).cpu()
