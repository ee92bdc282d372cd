"""Normalised activations of D: batch, layer and instance norm, where they stand and what they learn.

As in SNGAN's baselines the default keeps the offset beta, not the multiplier gamma (``affine=offset``), and
spares D's first convolution.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganlab.methods.base import FeatureNorm, Method, Player
from ganlab.schema import Positive, Unit, checked

Affine = Literal["offset", "full", "none"]
Place = Literal["all_but_first", "all"]
Order = Literal["before_activation", "after_activation"]


class OffsetBatchNorm(nn.BatchNorm2d):
    """Batch norm whose scale is fixed to 1: (x - mean) / std + beta, statistics over batch and space."""

    def __init__(self, channels: int, eps: float, momentum: float) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        del self.weight
        # not None: then CUDA's batch norm of channels-last images gives the offset no gradient
        self.register_buffer("weight", torch.ones(channels), persistent=False)

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        nn.init.zeros_(self.bias)


class SampleNorm(nn.Module):
    """Each sample (C, H, W) normalised by itself, then gamma and beta per channel as ``affine`` says.

    over: ``layer``: one mean and variance a sample (Ba et al. 2016); ``instance``: one for each of its
    channels (Ulyanov et al. 2016). Biased variance; the same in training and in evaluation.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self, channels: int, eps: float, affine: Affine, over: Literal["layer", "instance"] = "layer"
    ) -> None:
        super().__init__()
        self.eps, self.over = eps, over
        self.register_parameter("weight", nn.Parameter(torch.ones(channels)) if affine == "full" else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(channels)) if affine != "none" else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.over == "layer" and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            lies = x.permute(
                0, 2, 3, 1
            )  # as it lies in memory, so that nothing is copied; the order has no meaning
            y = F.layer_norm(lies, lies.shape[1:], eps=self.eps).permute(0, 3, 1, 2)
        else:
            y = F.layer_norm(x, x.shape[1:] if self.over == "layer" else x.shape[2:], eps=self.eps)
        per_channel = (-1, *[1] * (x.dim() - 2))
        if self.weight is not None:
            y = y * self.weight.view(per_channel)
        return y if self.bias is None else y + self.bias.view(per_channel)


class _Placed(Method):
    """A feature norm with its place: ``place``, ``order`` and ``affine`` of the classes below."""

    place: Place
    order: Order

    def make(self, channels: int) -> nn.Module:
        raise NotImplementedError

    def feature_norm(self, player: Player = "d") -> FeatureNorm | None:
        if player == "g":
            return None
        return FeatureNorm(self.make, self.place == "all", self.order == "after_activation")


class BatchNorm(_Placed):
    """Batch norm in D (Ioffe & Szegedy 2015, arXiv:1502.03167).

    Real and generated images pass apart, each with its own statistics, as in SNGAN's and DCGAN's code.

    Args:
        eps: added to the variance.
        momentum: share of the newest batch in the running statistics.
        affine: what is learned for each channel: the ``offset`` (SNGAN: "without the multiplier"), offset and
            multiplier (``full``: DCGAN, WGAN), or ``none``.
        place: after every convolution (``all``), or ``all_but_first`` (SNGAN, DCGAN, WGAN-GP).
        order: ``before_activation`` (all three), or ``after_activation``.
    """

    needs = frozenset({"whole_batch"})

    @checked
    def __init__(
        self,
        eps: Positive = 2e-5,
        momentum: Unit = 0.1,
        affine: Affine = "offset",
        place: Place = "all_but_first",
        order: Order = "before_activation",
    ) -> None:
        self.eps, self.momentum, self.affine, self.place, self.order = eps, momentum, affine, place, order

    def make(self, channels: int) -> nn.Module:
        if self.affine == "offset":
            return OffsetBatchNorm(channels, self.eps, self.momentum)
        return nn.BatchNorm2d(channels, self.eps, self.momentum, affine=self.affine == "full")


class _PerSample(_Placed):
    """A norm of each sample by itself; options as of ``BatchNorm``."""

    over: ClassVar[Literal["layer", "instance"]]

    @checked
    def __init__(
        self,
        eps: Positive = 1e-5,
        affine: Affine = "offset",
        place: Place = "all_but_first",
        order: Order = "before_activation",
    ) -> None:
        self.eps, self.affine, self.place, self.order = eps, affine, place, order

    def make(self, channels: int) -> nn.Module:
        return SampleNorm(channels, self.eps, self.affine, self.over)


class LayerNorm(_PerSample):
    """Layer norm in D (Ba et al. 2016, arXiv:1607.06450), over (C, H, W) of each sample.

    Each sample is normalised by itself, so it may stand beside a gradient penalty, as in WGAN-GP's code
    (multiplier and offset per channel: ``affine=full``). SNGAN does not say where its layer norms stand;
    batch norm's places are taken. Options as of ``BatchNorm``.
    """

    over = "layer"


class InstanceNorm(_PerSample):
    """Instance norm in D (Ulyanov et al. 2016, arXiv:1607.08022), over (H, W) of each channel of each sample.

    In no table of SNGAN. Like layer norm it may stand beside a gradient penalty. Options as of ``BatchNorm``.
    """

    over = "instance"
