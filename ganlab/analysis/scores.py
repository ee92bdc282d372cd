"""D's scores on training images, held-out images and generated images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ganlab.analysis import histograms
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject, in_pieces
from ganlab.evaluation.generate import evaluating
from ganlab.schema import Count, Steps
from ganlab.training.gan import GAN


class Scores(Analysis):
    """histograms of D's raw score on training images, held-out images and samples

    Scores are taken before any sigmoid, with D in evaluation mode. A gap between training and held-out images
    means that D overfits.

    Args:
        checkpoint: last, best, or a step.
        n: number of images of each kind.
        split: split of the held-out images; null: the test or validation split, if there is one.
        seed: random seed.
    """

    runs = (1, histograms.MAX_RUNS)
    checkpoint: str | int = "last"
    n: Count = 1000
    split: str | None = None
    seed: Steps = 0

    def make(self, runs: Sequence[Subject]) -> Finding:
        panels = []
        for subject in runs:
            gan, step = subject.restore(self.checkpoint)
            real = subject.real(gan, self.n, self.seed)
            kinds = {"training images": scores(gan, *real)}
            if (split := subject.held_out(self.split)) is not None:
                kinds["held-out images"] = scores(gan, *subject.real(gan, self.n, self.seed, split))
            kinds["samples"] = scores(gan, *subject.fake(gan, self.n, self.seed))
            panels.append(histograms.Panel(subject, step, kinds))
        return histograms.finding(panels, "D's scores", "D's raw score", "score")


@torch.no_grad()
def scores(gan: GAN, x: Tensor, y: Tensor | None = None) -> Tensor:
    """Raw scores (n,) on the CPU, with D in evaluation mode; its mode is restored."""
    with evaluating(gan.discriminator):
        return in_pieces(lambda x, y: gan.discriminator(x, y).score.float(), x, y).cpu()
