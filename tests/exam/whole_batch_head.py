"""A head that looks at the whole batch, of all ranks: the mean deviation of its features."""

from typing import Any

import torch
from torch import Tensor, nn

from ganlab.distributed.sync_batch_norm import stack_ranks
from ganlab.models.cnn import CNN
from ganlab.types import Verdict


class Deviation(nn.Module):
    """score + weight * mean over features of their standard deviation (arXiv:1710.10196, section 3)."""

    needs = frozenset({"whole_batch"})

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.weight = net, nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        verdict = self.net(x, y)
        features = stack_ranks(verdict.features.float()).flatten(0, 1)
        deviation = (features.var(0, correction=0) + 1e-8).sqrt().mean()
        return verdict._replace(score=verdict.score + self.weight * deviation)


class DeviationCNN(CNN):
    """The cnn with that head."""

    def discriminator(self, shape: Any, num_classes: int, norm: Any) -> nn.Module:
        return Deviation(super().discriminator(shape, num_classes, norm))
