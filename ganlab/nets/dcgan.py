"""The DCGAN-style conv net of the WGAN-GP code (improved_wgan_training, gan_cifar.py; arXiv:1704.00028)."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from ganlab.nets.base import Architecture, Norm, activated, flat, glorot_init, maybe, scaled, strided_init
from ganlab.schema import Count, Positive, Range, checked
from ganlab.types import ImageShape, Verdict


def stages(side: int) -> int:
    """How often ``side`` halves down to a start of 4 to 7 pixels: 32 -> 3, 48 -> 3, 64 -> 4."""
    return int(math.log2(side / 4)) if side >= 8 else 0


class DCGAN(Architecture):
    """5x5 stride-2 convolutions up and down; 512 channels at the small end, halved at each larger size.

    G has batch norm (per feature after the dense layer) and ReLU; D leaky ReLU, and batch norm on every
    convolution but the first if ``normalization=bn`` asks for it. At 32 px: G 5,179,907 parameters, D without
    norm 4,114,689.

    Args:
        width: multiplies every channel count.
        z_dim: length of z.
        slope: of D's leaky ReLU.
    """

    @checked
    def __init__(
        self, width: Positive = 1.0, z_dim: Count = 128, slope: Annotated[float, Range(ge=0, lt=1)] = 0.2
    ) -> None:
        self.width, self.z_dim, self.slope = width, z_dim, slope

    def check(self, shape: ImageShape) -> None:
        side, n = shape.height, stages(shape.height)
        if shape.height != shape.width or n < 2 or side % 2**n or n > 8:
            raise ValueError(
                f"dataset.resolution: {shape.width}x{shape.height} can't be built by the dcgan, whose sides "
                "are 4 to 7 times a power of two, from 16 up; set dataset.resolution=32"
            )

    def _channels(self, shape: ImageShape) -> list[int]:
        return [scaled(max(1, 512 // 2**i), self.width) for i in range(stages(shape.height))]

    def generator(self, shape: ImageShape, num_classes: int) -> nn.Module:
        return Generator(shape, self.z_dim, self._channels(shape))

    def discriminator(self, shape: ImageShape, num_classes: int, norm: Norm) -> nn.Module:
        return Discriminator(shape, self._channels(shape)[::-1], self.slope, norm)


class Generator(nn.Module):
    """z (B, Z) -> dense, BN, ReLU -> 5x5 stride-2 deconvolutions (BN, ReLU) -> tanh."""

    def __init__(self, shape: ImageShape, z_dim: int, channels: list[int]) -> None:
        super().__init__()
        side = shape.height // 2 ** len(channels)
        self.start = (channels[0], side, side)
        self.dense = nn.Linear(z_dim, channels[0] * side * side)
        self.dense_norm = nn.BatchNorm1d(channels[0] * side * side)
        glorot_init(self.dense)
        layers: list[nn.Module] = []
        for c_in, c_out in zip(channels, [*channels[1:], shape.channels], strict=True):
            deconv = nn.ConvTranspose2d(c_in, c_out, 5, 2, 2, output_padding=1)
            strided_init(deconv)
            layers += [deconv, nn.BatchNorm2d(c_out), nn.ReLU()]
        self.body = nn.Sequential(*layers[:-2], nn.Tanh())

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        h = F.relu(self.dense_norm(self.dense(z)))
        return self.body(h.view(-1, *self.start))  # type: ignore[no-any-return]


class Discriminator(nn.Module):
    """5x5 stride-2 convolutions with leaky ReLU, then a dense layer to one score."""

    def __init__(self, shape: ImageShape, channels: list[int], slope: float, norm: Norm) -> None:
        super().__init__()
        self.slope = slope
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        c_in = shape.channels
        for i, c_out in enumerate(channels):
            conv = nn.Conv2d(c_in, c_out, 5, 2, 2)
            strided_init(conv)
            self.convs.append(conv)
            self.norms.append(maybe(norm, c_out, first=i == 0))
            c_in = c_out
        side = shape.height // 2 ** len(channels)
        self.dense = nn.Linear(c_in * side * side, 1)
        glorot_init(self.dense)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        leaky_relu = partial(F.leaky_relu, negative_slope=self.slope)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = activated(conv(x), norm, leaky_relu)
        features = flat(x)
        return Verdict(self.dense(features).squeeze(1), features)
