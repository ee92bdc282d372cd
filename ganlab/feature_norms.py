"""Normalised activations of D. As in SNGAN's baselines, both keep the offset beta, not the scale gamma."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ganlab.schema import Positive, Unit, checked
from ganlab.types import Stabiliser


class OffsetBatchNorm(nn.BatchNorm2d):
    """Batch norm whose scale is fixed to 1: (x - mean) / std + beta, statistics over batch and space."""

    def __init__(self, channels: int, eps: float, momentum: float) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        del self.weight
        self.register_parameter("weight", None)  # F.batch_norm reads None as 1

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        nn.init.zeros_(self.bias)


class OffsetLayerNorm(nn.Module):
    """Layer norm over (C, H, W) of each sample, with one offset beta per channel and no scale."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.layer_norm(x, x.shape[1:], eps=self.eps)
        return y + self.bias.view(-1, *[1] * (x.dim() - 2))


class BatchNorm(Stabiliser):
    """Batch norm in D after every convolution but the first (Ioffe & Szegedy 2015, arXiv:1502.03167).

    Real and generated images pass apart, each with its own statistics, as in SNGAN's and DCGAN's code.
    """

    @checked
    def __init__(self, eps: Positive = 2e-5, momentum: Unit = 0.1) -> None:
        self.eps, self.momentum = eps, momentum

    def feature_norm(self) -> Callable[[int], nn.Module]:
        return lambda channels: OffsetBatchNorm(channels, self.eps, self.momentum)


class LayerNorm(Stabiliser):
    """Layer norm in D after every convolution but the first (Ba et al. 2016, arXiv:1607.06450).

    Each sample is normalised by itself, so it may stand beside a gradient penalty. SNGAN does not say where
    its layer norms stand; the same places as batch norm's are taken.
    """

    @checked
    def __init__(self, eps: Positive = 1e-5) -> None:
        self.eps = eps

    def feature_norm(self) -> Callable[[int], nn.Module]:
        return lambda channels: OffsetLayerNorm(channels, self.eps)
