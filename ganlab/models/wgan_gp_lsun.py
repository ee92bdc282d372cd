"""The seven generator-critic pairs of WGAN-GP's Figure 2 (LSUN bedrooms), and one only in its code.

Source: Gulrajani et al. 2017, arXiv:1704.00028, section 4; improved_wgan_training, gan_64x64.py.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Literal

from torch import Tensor, nn

from ganlab.models import bottleneck, dcgan
from ganlab.models.activations import Gate
from ganlab.models.base import (
    Architecture,
    Norm,
    flat,
    glorot_init,
    he_init,
    pyramid,
    scaled,
    stages,
    uniform_init,
)
from ganlab.models.blocks import DownBlock, UpBlock
from ganlab.models.dcgan import Layer
from ganlab.models.mlp import MLPGenerator
from ganlab.models.resnet import Generator as ResNetGenerator
from ganlab.schema import Count, Positive, checked
from ganlab.types import ImageShape, Verdict

DIM = 64  # channels of the largest map
STD = 0.02  # of the uniform initial weights of no_norm, dcgan and tanh; others use He's and Glorot's

Pair = Literal["dcgan", "constant", "mlp", "no_norm", "gated", "tanh", "resnet101", "good"]


class Bedrooms(Architecture):
    """A pair of generator and critic of Figure 2, for 16, 32, 64 (the paper's), 128, ... px.

    64 channels at the largest map, doubled at each smaller one. G has batch norm per channel. D's norm is set
    by ``normalization``: the paper's is ``bn_full``, with WGAN-GP ``ln_full``, from the second convolution on
    and at the end of each block of resnet101; none with pair=no_norm.

    Args:
        pair: ``dcgan``: 5x5 stride-2 convolutions, the baseline. ``constant``: G without batch norm, 64
            channels at every map. ``mlp``: G of four hidden layers of 512 units, ReLU. Both with dcgan's D.
            ``no_norm``: dcgan, with G without batch norm. ``gated``: sigmoid(a) * tanh(b) of twice the
            channels in both. ``tanh``: dcgan with tanh in both. ``resnet101``: see ``bottleneck``. ``good``:
            residual blocks of 3x3 convolutions; only in the code.
        width: multiplies every channel count.
        z_dim: length of z.
    Parameters at 64 px with 3 channels, D without norm: dcgan G 5,364,739, D 4,314,753; resnet101 G
    9,189,587, D 7,605,041.
    """

    @checked
    def __init__(self, pair: Pair = "dcgan", width: Positive = 1.0, z_dim: Count = 128) -> None:
        self.pair, self.width, self.z_dim = pair, width, z_dim

    def check(self, shape: ImageShape) -> None:
        pyramid(shape, "the bedrooms' nets", start=4)

    def _doubling(self, shape: ImageShape) -> list[int]:
        """Channels of the maps from half the image down to 4 pixels."""
        return [scaled(DIM << i, self.width) for i in range(stages(shape.height))]

    def generator(self, shape: ImageShape, num_classes: int) -> nn.Module:
        down = self._doubling(shape)
        up, unit = down[::-1], down[0]
        if self.pair == "resnet101":
            return bottleneck.Generator(shape, self.z_dim, [*up, scaled(DIM // 2, self.width)])
        if self.pair == "good":
            return good_generator(shape, self.z_dim, [up[0], *up])
        if self.pair == "mlp":
            return mlp_generator(shape, self.z_dim, scaled(512, self.width))
        start, *layers = [Layer(unit if self.pair == "constant" else c) for c in up]
        make = partial(dcgan.Generator, shape, self.z_dim, start.channels, layers)
        if self.pair == "gated":
            return make("channel", Gate, gated=True)
        if self.pair == "constant":
            return make("none")
        places: Literal["none", "channel"] = "none" if self.pair == "no_norm" else "channel"
        net = make(places, nn.Tanh if self.pair == "tanh" else nn.ReLU)
        uniform_init(net, STD)
        return net

    def discriminator(self, shape: ImageShape, num_classes: int, norm: Norm) -> nn.Module:
        down = self._doubling(shape)
        if self.pair == "resnet101":
            return bottleneck.Discriminator(shape, [scaled(DIM // 2, self.width), *down], norm)
        if self.pair == "good":
            return GoodDiscriminator(shape, [*down, down[-1]], norm)
        layers = [Layer(c) for c in down]
        if self.pair == "gated":
            return dcgan.Discriminator(shape, layers, norm, Gate(), gated=True)
        activation = nn.Tanh() if self.pair == "tanh" else nn.LeakyReLU(0.2)
        net = dcgan.Discriminator(shape, layers, norm, activation)
        uniform_init(net, STD)
        return net


def mlp_generator(shape: ImageShape, z_dim: int, units: int) -> nn.Module:
    """Four hidden layers with He's initialization, an output layer with Glorot's."""
    net = MLPGenerator(shape, z_dim, [units] * 4)
    *hidden, last = [m for m in net.modules() if isinstance(m, nn.Linear)]
    for layer in hidden:
        he_init(layer)
    glorot_init(last)
    return net


def good_generator(shape: ImageShape, z_dim: int, channels: list[int]) -> nn.Module:
    """SNGAN's residual generator without bias before each second norm; He's initialization at the end."""
    net = ResNetGenerator(shape, z_dim, channels, 0, eps=1e-5)
    without_biases(net)
    glorot_init(net.last, math.sqrt(2))
    return net


def without_biases(net: ResNetGenerator | GoodDiscriminator) -> None:
    """Remove the biases of the blocks' first convolutions: a norm follows them in the code."""
    for block in net.blocks:
        assert isinstance(block, (UpBlock, DownBlock))
        block.conv1.bias = None


class GoodDiscriminator(nn.Module):
    """3x3 convolution -> pre-activation residual blocks down -> dense to one score.

    As in the code, a norm precedes each ReLU of the blocks; the first one follows the first convolution.
    """

    def __init__(self, shape: ImageShape, channels: list[int], norm: Norm) -> None:
        super().__init__()
        self.first = nn.Conv2d(shape.channels, channels[0], 3, 1, 1)
        glorot_init(self.first)
        self.blocks = nn.Sequential(*[DownBlock(a, b, True, norm) for a, b in itertools.pairwise(channels)])
        without_biases(self)
        side = shape.height >> len(channels) - 1
        self.dense = nn.Linear(channels[-1] * side * side, 1)
        glorot_init(self.dense)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        features = flat(self.blocks(self.first(x)))
        return Verdict(self.dense(features).squeeze(1), features)
