"""The random architectures of WGAN-GP's Tables 1, 2 and 5: DCGANs of any depth, width and activation.

Source: Gulrajani et al. 2017, arXiv:1704.00028, section 4; Table 1 has the fields and their values. No code
was released, and the paper specifies neither the layers of a given depth, nor the slope of the leaky ReLU,
nor the initialization: ``DCGANFamily`` documents our choices.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from torch import nn

from ganlab.models.activations import Activation, activation
from ganlab.models.base import Architecture, Norm, pyramid, scaled, stages
from ganlab.models.dcgan import Discriminator, Generator, Layer
from ganlab.schema import Count, Positive, Range, checked
from ganlab.types import ImageShape

Depth = Annotated[int, Range(ge=4, le=200)]  # Table 1: 4, 8, 12, 20


class DCGANFamily(Architecture):
    """The WGAN-GP code's DCGAN with other activations, base filters, depth and batch norm.

    Our choices where the paper is silent: the depth counts the layers with weights at the paper's 32 px. 4
    is DCGAN: a dense layer and three resampling 5x5 convolutions, one more per doubling of the side.
    The layers beyond 4 are 3x3 convolutions of stride 1 with the same activation and norm, spread evenly over
    the maps of 4, 8 and 16 pixels after the resampling layer, smaller maps first: 4 more are 2, 1 and 1. The
    leaky ReLU's slope is 0.2 and the initialization He's, as in the released nets. D's norm is that of
    ``normalization=bn_full``, with WGAN-GP ``ln_full``, and is not applied after the first convolution.

    Args:
        g_activation, d_activation: relu, leaky_relu, smooth_elu or tanh; elu as in appendix D.
        g_depth, d_depth: 4, 8, 12 or 20 in the paper.
        g_norm: batch norm in G, per channel.
        g_filters, d_filters: channels of the largest map, doubled at each smaller one; 32, 64 or 128 in the
            paper.
        z_dim: length of z.
        width: multiplies every channel count.
    """

    @checked
    def __init__(
        self,
        g_activation: Activation = "relu",
        d_activation: Activation = "leaky_relu",
        g_depth: Depth = 4,
        d_depth: Depth = 4,
        g_norm: bool = True,
        g_filters: Count = 64,
        d_filters: Count = 64,
        z_dim: Count = 128,
        width: Positive = 1.0,
    ) -> None:
        self.g_activation, self.d_activation = g_activation, d_activation
        self.g_depth, self.d_depth, self.g_norm = g_depth, d_depth, g_norm
        self.g_filters, self.d_filters, self.z_dim, self.width = g_filters, d_filters, z_dim, width

    def check(self, shape: ImageShape) -> None:
        pyramid(shape, "the dcgan_family", start=4)

    def generator(self, shape: ImageShape, num_classes: int) -> nn.Module:
        maps = self._maps(shape, self.g_filters, self.g_depth)
        start = maps[0][0]
        layers = [layer for channels, extra in maps for layer in _of_map(channels, extra)][1:]
        make = partial(activation, self.g_activation)
        return Generator(shape, self.z_dim, start, layers, "channel" if self.g_norm else "none", make)

    def discriminator(self, shape: ImageShape, num_classes: int, norm: Norm) -> nn.Module:
        maps = self._maps(shape, self.d_filters, self.d_depth)[::-1]
        layers = [layer for channels, extra in maps for layer in _of_map(channels, extra)]
        return Discriminator(shape, layers, norm, activation(self.d_activation))

    def _maps(self, shape: ImageShape, filters: int, depth: int) -> list[tuple[int, int]]:
        """(channels, layers beyond the resampling one) of each map, from 4 pixels up to half the image."""
        n = stages(shape.height)
        counts = [scaled(filters << i, self.width) for i in reversed(range(n))]
        each, rest = divmod(depth - 4, n)
        return [(c, each + (i < rest)) for i, c in enumerate(counts)]


def _of_map(channels: int, extra: int) -> list[Layer]:
    return [Layer(channels), *[Layer(channels, resamples=False)] * extra]
