"""SNGAN's ResNets for 32 and 48 px (arXiv:1802.05957, Tables 4 and 5, Figure 8) and WGAN-GP's for 32 px.

Pre-activation blocks of two 3x3 convolutions, as in sngan_projection: nearest upsampling before the first
convolution, mean pooling after the second; D's first block has no leading ReLU.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ganlab.nets.base import Architecture, Norm, activated, glorot_init, maybe, scaled
from ganlab.schema import Count, Positive, checked
from ganlab.types import ImageShape, Verdict


class ResNet(Architecture):
    """Table 4 at 32 px, Table 5 at 48 px.

    Args:
        width: multiplies every channel count.
        z_dim: length of z.
        g_channels, d_channels: at 32 px only, the widths of G (paper 256; WGAN-GP 128) and of D (128).
        pool: global ``sum`` pooling in D (paper) or ``mean`` (WGAN-GP's code).
        dense_bias: a bias in D's last layer; null: none at 32 px (the released code), one at 48 px (no code).
    Parameters with 3 channels: at 32 px G 4,276,739, D 1,053,824; at 48 px G 4,878,083, D 10,141,441.
    """

    @checked
    def __init__(
        self,
        width: Positive = 1.0,
        z_dim: Count = 128,
        g_channels: Count = 256,
        d_channels: Count = 128,
        pool: Literal["sum", "mean"] = "sum",
        dense_bias: bool | None = None,
    ) -> None:
        self.width, self.z_dim, self.pool, self.dense_bias = width, z_dim, pool, dense_bias
        self.g_channels, self.d_channels = g_channels, d_channels

    def check(self, shape: ImageShape) -> None:
        if (shape.height, shape.width) not in ((32, 32), (48, 48)):
            raise ValueError(
                f"dataset.resolution: {shape.width}x{shape.height} can't be built by the resnet, which has "
                "networks for 32 and 48 pixels; set dataset.resolution=32 or 48"
            )

    def generator(self, shape: ImageShape, num_classes: int) -> nn.Module:
        channels = [self.g_channels] * 4 if shape.height == 32 else [512, 256, 128, 64]
        return Generator(shape, self.z_dim, [scaled(c, self.width) for c in channels])

    def discriminator(self, shape: ImageShape, num_classes: int, norm: Norm) -> nn.Module:
        small = shape.height == 32
        channels = [self.d_channels] * 4 if small else [64, 128, 256, 512, 1024]
        down = [True, True, False, False] if small else [True] * 4 + [False]
        bias = not small if self.dense_bias is None else self.dense_bias
        return Discriminator(shape, [scaled(c, self.width) for c in channels], down, norm, self.pool, bias)


def conv3(c_in: int, c_out: int) -> nn.Conv2d:
    conv = nn.Conv2d(c_in, c_out, 3, 1, 1)
    glorot_init(conv, math.sqrt(2))
    return conv


def conv1(c_in: int, c_out: int) -> nn.Conv2d:
    conv = nn.Conv2d(c_in, c_out, 1)
    glorot_init(conv)
    return conv


class UpBlock(nn.Module):
    """BN-ReLU-up-conv-BN-ReLU-conv plus up-1x1 conv; (B, c_in, H, W) -> (B, c_out, 2H, 2W)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(c_in, eps=2e-5), nn.BatchNorm2d(c_out, eps=2e-5)
        self.conv1, self.conv2 = conv3(c_in, c_out), conv3(c_out, c_out)
        self.shortcut = conv1(c_in, c_out)

    def forward(self, x: Tensor) -> Tensor:
        h = F.interpolate(F.relu(self.norm1(x)), scale_factor=2.0, mode="nearest")
        h = self.conv2(F.relu(self.norm2(self.conv1(h))))
        # a 1x1 convolution commutes with nearest upsampling and is cheaper before it
        up: Tensor = F.interpolate(self.shortcut(x), scale_factor=2.0, mode="nearest")
        return up.add(h)


class DownBlock(nn.Module):
    """ReLU-conv-ReLU-conv(-mean pool) plus 1x1 conv(-mean pool); hidden width is the input's."""

    def __init__(self, c_in: int, c_out: int, down: bool, norm: Norm) -> None:
        super().__init__()
        self.down = down
        self.norm1, self.norm2 = maybe(norm, c_in), maybe(norm, c_in)
        self.conv1, self.conv2 = conv3(c_in, c_in), conv3(c_in, c_out)
        self.shortcut = conv1(c_in, c_out) if down or c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(activated(x, self.norm1, F.relu))
        h = self.conv2(activated(h, self.norm2, F.relu))
        out = h + self.shortcut(x)
        return F.avg_pool2d(out, 2) if self.down else out


class FirstBlock(nn.Module):
    """conv-ReLU-conv-mean pool plus mean pool-1x1 conv; no activation before the image.

    A feature norm stands between the two convolutions only if it is to follow D's first one too.
    """

    def __init__(self, c_in: int, c_out: int, norm: Norm) -> None:
        super().__init__()
        self.norm = maybe(norm, c_out, first=True)
        self.conv1, self.conv2 = conv3(c_in, c_out), conv3(c_out, c_out)
        self.shortcut = conv1(c_in, c_out)

    def forward(self, x: Tensor) -> Tensor:
        h = F.avg_pool2d(self.conv2(activated(self.conv1(x), self.norm, F.relu)), 2)
        return h + self.shortcut(F.avg_pool2d(x, 2))  # type: ignore[no-any-return]


class Generator(nn.Module):
    """z (B, Z) -> dense -> (H/8, W/8) -> three up blocks -> BN, ReLU, 3x3 conv, tanh."""

    def __init__(self, shape: ImageShape, z_dim: int, channels: list[int]) -> None:
        super().__init__()
        self.start = (channels[0], shape.height // 8, shape.width // 8)
        self.dense = nn.Linear(z_dim, channels[0] * self.start[1] * self.start[2])
        glorot_init(self.dense)
        self.blocks = nn.Sequential(*[UpBlock(a, b) for a, b in itertools.pairwise(channels)])
        self.norm = nn.BatchNorm2d(channels[-1], eps=2e-5)
        self.last = nn.Conv2d(channels[-1], shape.channels, 3, 1, 1)
        glorot_init(self.last)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.blocks(self.dense(z).view(-1, *self.start))
        return self.last(F.relu(self.norm(h))).tanh()  # type: ignore[no-any-return]


class Discriminator(nn.Module):
    """Residual blocks down, ReLU, global pooling, dense to one score; features are the pooled (B, C)."""

    def __init__(
        self, shape: ImageShape, channels: list[int], down: list[bool], norm: Norm, pool: str, bias: bool
    ) -> None:
        super().__init__()
        self.pool = pool
        blocks: list[nn.Module] = [FirstBlock(shape.channels, channels[0], norm)]
        for c_in, c_out, halve in zip(channels, channels[1:], down[1:], strict=False):
            blocks.append(DownBlock(c_in, c_out, halve, norm))
        self.blocks = nn.Sequential(*blocks)
        self.dense = nn.Linear(channels[-1], 1, bias=bias)
        glorot_init(self.dense)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        h = F.relu(self.blocks(x)).flatten(2)
        features = h.sum(2) if self.pool == "sum" else h.mean(2)
        return Verdict(self.dense(features).squeeze(1), features)
