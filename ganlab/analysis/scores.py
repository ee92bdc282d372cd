"""What D says: of images that it was trained on, of images that it never saw, and of generated ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ganlab.analysis import histograms
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import PIECE, Subject
from ganlab.evaluation.generate import evaluating
from ganlab.schema import Count, Steps, checked
from ganlab.training.gan import GAN


class Scores(Analysis):
    """histograms of D's raw score on training images, held-out images and samples

    D in evaluation mode, before any sigmoid. A gap between training and held-out images is D's overfitting.

    Args:
        checkpoint: last, best, or a step.
        n: images of each kind.
        split: the held-out images; null: the test or validation split, if the dataset has one.
        seed: of the images drawn.
    """

    runs = (1, histograms.MOST)

    @checked
    def __init__(
        self, checkpoint: str | int = "last", n: Count = 1000, split: str | None = None, seed: Steps = 0
    ) -> None:
        self.checkpoint, self.n, self.split, self.seed = str(checkpoint), n, split, seed

    def make(self, runs: Sequence[Subject]) -> Finding:
        found = []
        for subject in runs:
            game, step = subject.restore(self.checkpoint)
            real = subject.real(game, self.n, self.seed)
            kinds = {"training images": scores(game, *real)}
            if (split := subject.held_out(self.split)) is not None:
                kinds["held-out images"] = scores(game, *subject.real(game, self.n, self.seed, split))
            kinds["samples"] = scores(game, *subject.fake(game, self.n, self.seed))
            found.append(histograms.Panel(subject, step, kinds))
        return histograms.finding(found, "D's scores", "D's raw score", "score")


@torch.no_grad()
def scores(game: GAN, x: Tensor, y: Tensor | None = None) -> Tensor:
    """Raw scores (n,) on the CPU, D in evaluation mode and left as it was."""
    d = game.discriminator
    with evaluating(d):
        parts = [
            d(x[i : i + PIECE], None if y is None else y[i : i + PIECE]).score.float()
            for i in range(0, len(x), PIECE)
        ]
    return torch.cat(parts).cpu()
