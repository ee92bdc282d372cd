"""WGAN's networks (Arjovsky et al. 2017, arXiv:1701.07875): the code's DCGAN and the variants of section 4.

Source: WassersteinGAN (the released code), models/dcgan.py, models/mlp.py and main.py.
"""

from __future__ import annotations

import itertools
from typing import Literal

from torch import Tensor, nn

from ganlab.models.base import Architecture, Norm, activated, flat, maybe, pyramid, scaled, stages
from ganlab.models.mlp import MLPGenerator
from ganlab.schema import Count, Positive, checked
from ganlab.types import ImageShape, Verdict

STD = 0.02  # of convolutions around 0, and of batch norm's scales around 1


class WGAN(Architecture):
    """4x4 stride-2 convolutions without bias between the image and a 4x4 map: 32, 64, 128 px.

    The critic's last layer is a 4x4 convolution to one number; it has leaky ReLU of slope 0.2, and with
    ``normalization=bn_full`` batch norm from its second convolution on. G mirrors it with BN and ReLU.
    Convolutions are initialized from N(0, 0.02^2), scales of batch norm from N(1, 0.02^2).

    Args:
        width: multiplies every channel count.
        z_dim: length of z.
        base: channels at the largest map of both; doubled at each smaller one.
        g_norm: batch norm in G; the paper's Figure 6 has none, and ``g_filters=constant``.
        g_filters: ``mirrored``: as many as the critic's; ``constant``: ``base`` at every size.
        g: ``conv``; ``mlp``: linear layers with ReLU (Figure 7) and torch's default initialization, as in the
            code, but with tanh, as the code's output is unbounded. It ignores ``base`` and ``g_filters``.
        mlp_layers, mlp_units: G's hidden layers with ``g=mlp``, and their units: 4 of 512 in the caption of
            Figure 7; the code has 3, of 64 by default.
    Parameters with 3 channels at 64 px: G 3,576,704; critic without norm 2,763,776, its batch norm 1,792.
    """

    @checked
    def __init__(
        self,
        width: Positive = 1.0,
        z_dim: Count = 100,
        base: Count = 64,
        g_norm: bool = True,
        g_filters: Literal["mirrored", "constant"] = "mirrored",
        g: Literal["conv", "mlp"] = "conv",
        mlp_layers: Count = 4,
        mlp_units: Count = 512,
    ) -> None:
        self.width, self.z_dim, self.base, self.g_norm, self.g_filters = width, z_dim, base, g_norm, g_filters
        self.g, self.mlp_layers, self.mlp_units = g, mlp_layers, mlp_units

    def check(self, shape: ImageShape) -> None:
        pyramid(shape, "the wgan", start=4)

    def generator(self, shape: ImageShape, num_classes: int) -> nn.Module:
        if self.g == "mlp":
            units = [scaled(self.mlp_units, self.width)] * self.mlp_layers
            return MLPGenerator(shape, self.z_dim, units)
        n = stages(shape.height)
        counts = [self.base if self.g_filters == "constant" else self.base << i for i in reversed(range(n))]
        return Generator(shape, self.z_dim, [scaled(c, self.width) for c in counts], self.g_norm)

    def discriminator(self, shape: ImageShape, num_classes: int, norm: Norm) -> nn.Module:
        channels = [scaled(self.base << i, self.width) for i in range(stages(shape.height))]
        return Critic(shape, channels, norm)


class Generator(nn.Module):
    """z (B, Z) -> 4x4 deconvolution to 4x4 -> 4x4 stride-2 deconvolutions, BN and ReLU between -> tanh."""

    def __init__(self, shape: ImageShape, z_dim: int, channels: list[int], norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ConvTranspose2d(z_dim, channels[0], 4, 1, 0, bias=False)]
        for c_in, c_out in itertools.pairwise([*channels, shape.channels]):
            layers += [*([nn.BatchNorm2d(c_in)] if norm else []), nn.ReLU()]
            layers += [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=False)]
        self.body = nn.Sequential(*layers, nn.Tanh())
        init(self)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.body(z[:, :, None, None])  # type: ignore[no-any-return]


class Critic(nn.Module):
    """4x4 stride-2 convolutions with leaky ReLU, then a 4x4 convolution of the whole map to one score."""

    def __init__(self, shape: ImageShape, channels: list[int], norm: Norm) -> None:
        super().__init__()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for i, (c_in, c_out) in enumerate(itertools.pairwise([shape.channels, *channels])):
            self.convs.append(nn.Conv2d(c_in, c_out, 4, 2, 1, bias=False))
            self.norms.append(maybe(norm, c_out, first=i == 0))
        self.last = nn.Conv2d(channels[-1], 1, 4, 1, 0, bias=False)
        self.activation = nn.LeakyReLU(0.2)
        init(self)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = activated(conv(x), norm, self.activation)
        return Verdict(self.last(x).flatten(), flat(x))


def init(net: nn.Module) -> None:
    """Draw weights of convolutions from N(0, 0.02^2), learned scales of batch norm from N(1, 0.02^2)."""
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(m.weight, 0.0, STD)
        elif isinstance(m, nn.BatchNorm2d) and isinstance(m.weight, nn.Parameter):
            nn.init.normal_(m.weight, 1.0, STD)
