"""The 101-layer ResNets of WGAN-GP's Figure 2: bottleneck blocks without an activation at the end.

Source: improved_wgan_training, gan_64x64.py (``BottleneckResidualBlock``); arXiv:1704.00028, section 4.
Six blocks per resolution and five at the largest, with a resampling block between resolutions: 33 at 64 px,
of three convolutions each; 101 layers with the first and the last.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ganlab.methods.base import FeatureNorm
from ganlab.models.base import Norm, flat, glorot_init, maybe, strided_init
from ganlab.types import ImageShape, Verdict

Resample = Literal["up", "down"] | None
BLOCKS, LAST_BLOCKS = 6, 5  # at each resolution; at the largest
SHRINK = 5.0  # divisor of G's output before tanh, and of D's score
RESIDUAL = 0.3  # factor of a block's residual branch


class EveryOther(nn.Conv2d):
    """A 1x1 convolution of stride 2, computed on every other pixel.

    Works around torch 2.15 on a CPU: the backward pass of its own strided convolution writes out of bounds in
    channels last with few channels (2 to 16; a width of 0.25 and below).
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x[:, :, ::2, ::2], self.weight, self.bias)


class Halving(nn.Conv2d):
    """A 3x3 convolution of stride 2 with TensorFlow's SAME padding of an even side: 0 before, 1 after.

    The shortcut uses each window's first pixel, so torch's padding of 1 on both sides gives another network.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 3, 2)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, self.stride)


class Doubling(nn.ConvTranspose2d):
    """A 3x3 transposed convolution to twice the side: the transpose of ``Halving``."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 3, 2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(x, output_size)[:, :, :-1, :-1]


class Bottleneck(nn.Module):
    """x's shortcut + 0.3 * norm(1x1(ReLU(3x3(ReLU(1x1(ReLU(x))))))); inner widths are halved.

    ``up``: (B, c_in, H, W) to (B, c_out, 2H, 2W); the middle layer is a transposed convolution of stride 2,
    the shortcut a 1x1 convolution and pixel shuffle. ``down``: both have stride 2. None: the shortcut is x,
    c_in = c_out.
    """

    def __init__(self, c_in: int, c_out: int, resample: Resample, norm: Norm) -> None:
        super().__init__()
        self.resample = resample
        half_in, half_out = max(1, c_in // 2), max(1, c_out // 2)
        middle: nn.Conv2d | nn.ConvTranspose2d = nn.Conv2d(half_in, half_out, 3, 1, 1)
        if resample is not None:
            middle = Doubling(half_in, half_out) if resample == "up" else Halving(half_in, half_out)
        self.conv1, self.conv2 = nn.Conv2d(c_in, half_in, 1), middle
        self.conv3 = nn.Conv2d(half_out, c_out, 1, bias=False)
        for conv in (self.conv1, self.conv2, self.conv3):
            strided_init(conv)
        self.norm = maybe(norm, c_out)
        self.shortcut: nn.Module = nn.Identity()
        if resample is not None:
            shortcut = nn.Conv2d(c_in, 4 * c_out, 1) if resample == "up" else EveryOther(c_in, c_out)
            strided_init(shortcut, numerator=2)
            self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(F.relu(x))))
        h = self.norm(self.conv3(F.relu(h)))
        short = self.shortcut(x)
        if self.resample == "up":
            short = F.pixel_shuffle(short, 2)
        return short + RESIDUAL * h  # type: ignore[no-any-return]


class Generator(nn.Module):
    """z (B, Z) -> dense to 4x4 -> blocks -> 1x1 convolution, / 5, tanh. Batch norm ends each block."""

    def __init__(self, shape: ImageShape, z_dim: int, channels: list[int]) -> None:
        super().__init__()
        side = shape.height >> len(channels) - 1
        self.start = (channels[0], side, side)
        self.dense = nn.Linear(z_dim, channels[0] * side * side)
        glorot_init(self.dense)
        norm = FeatureNorm(nn.BatchNorm2d)
        blocks: list[nn.Module] = []
        for c_in, c_out in itertools.pairwise(channels):
            blocks += [Bottleneck(c_in, c_in, None, norm) for _ in range(BLOCKS)]
            blocks.append(Bottleneck(c_in, c_out, "up", norm))
        blocks += [Bottleneck(channels[-1], channels[-1], None, norm) for _ in range(LAST_BLOCKS)]
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Conv2d(channels[-1], shape.channels, 1)
        glorot_init(self.last)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.blocks(self.dense(z).view(-1, *self.start))
        return (self.last(h) / SHRINK).tanh()  # type: ignore[no-any-return]


class Discriminator(nn.Module):
    """G's mirror image: 1x1 convolution -> blocks -> dense to one score, / 5.

    ``norm`` ends each block, and follows the first convolution if ``norm.first``. Blocks have no activation
    between their last convolution and the norm, so ``after_activation`` has no effect.
    """

    def __init__(self, shape: ImageShape, channels: list[int], norm: Norm) -> None:
        super().__init__()
        self.first = nn.Conv2d(shape.channels, channels[0], 1)
        glorot_init(self.first)
        self.norm = maybe(norm, channels[0], first=True)
        c = channels[0]
        blocks: list[nn.Module] = [Bottleneck(c, c, None, norm) for _ in range(LAST_BLOCKS)]
        for c_in, c_out in itertools.pairwise(channels):
            blocks.append(Bottleneck(c_in, c_out, "down", norm))
            blocks += [Bottleneck(c_out, c_out, None, norm) for _ in range(BLOCKS)]
        self.blocks = nn.Sequential(*blocks)
        side = shape.height >> len(channels) - 1
        self.dense = nn.Linear(channels[-1] * side * side, 1)
        glorot_init(self.dense)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        features = flat(self.blocks(self.norm(self.first(x))))
        return Verdict(self.dense(features).squeeze(1) / SHRINK, features)
