"""SNGAN's standard CNN (arXiv:1802.05957, Table 3) for 32, 48 and other multiples of 8 pixels."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ganlab.models.base import Architecture, Norm, activated, flat, maybe, normal_init, scaled, square
from ganlab.schema import Count, Positive, Range, checked
from ganlab.types import ImageShape, Verdict

WIDTHS = {
    "table3": (64, 64, 128, 128, 256, 256, 512),  # the paper; confirmed by the axis ticks of its Figure 3
    "chainer": (64, 128, 128, 256, 256, 512, 512),  # chainer-gan-lib, the author's released code
}


class CNN(Architecture):
    """Table 3's G and D. Defaults are the paper's; the released code's choices are options.

    Args:
        width: multiplies every channel count.
        z_dim: length of z.
        d_widths: D's channels, those of the paper (``table3``) or of the author's code (``chainer``).
        slope: of D's leaky ReLU (paper 0.1, code 0.2).
        dense_norm: batch norm and ReLU after G's dense layer: ``none`` (paper), per ``channel``, or per
            ``feature`` (code).
        init_std: weights are initialized from N(0, init_std^2) (code; the paper does not say).
        last_factor: scales the input and the output dimension of D's last convolution, the 7th (Figure 4).
    Parameters with 3 channels: G 3,812,355 at 32 px and 5,133,315 at 48; D 2,935,873 and 2,946,113.
    """

    @checked
    def __init__(
        self,
        width: Positive = 1.0,
        z_dim: Count = 128,
        d_widths: Literal["table3", "chainer"] = "table3",
        slope: Annotated[float, Range(ge=0, lt=1)] = 0.1,
        dense_norm: Literal["none", "channel", "feature"] = "none",
        init_std: Positive = 0.02,
        last_factor: Positive = 1.0,
    ) -> None:
        self.width, self.z_dim, self.slope, self.init_std = width, z_dim, slope, init_std
        self.dense_norm, self.d_widths, self.last_factor = dense_norm, d_widths, last_factor

    def check(self, shape: ImageShape) -> None:
        square(shape, 8, 16, "the cnn")

    def generator(self, shape: ImageShape, num_classes: int) -> nn.Module:
        channels = [scaled(c, self.width) for c in (512, 256, 128, 64)]
        return Generator(shape, self.z_dim, channels, self.dense_norm, self.init_std)

    def discriminator(self, shape: ImageShape, num_classes: int, norm: Norm) -> nn.Module:
        factors = [1.0] * 5 + [self.last_factor] * 2
        channels = [scaled(c, self.width * f) for c, f in zip(WIDTHS[self.d_widths], factors, strict=True)]
        return Discriminator(shape, channels, self.slope, norm, self.init_std)


class Generator(nn.Module):
    """z (B, Z) -> dense -> (H/8, W/8) -> three 4x4 stride-2 deconvolutions (BN, ReLU) -> 3x3 conv, tanh."""

    def __init__(
        self, shape: ImageShape, z_dim: int, channels: list[int], dense_norm: str, std: float
    ) -> None:
        super().__init__()
        self.start = (channels[0], shape.height // 8, shape.width // 8)
        features = channels[0] * self.start[1] * self.start[2]
        self.dense = nn.Linear(z_dim, features)
        self.dense_norm: nn.Module = nn.Identity()
        if dense_norm == "feature":
            self.dense_norm = nn.Sequential(nn.BatchNorm1d(features, eps=2e-5), nn.ReLU())
        self.start_norm: nn.Module = nn.Identity()
        if dense_norm == "channel":
            self.start_norm = nn.Sequential(nn.BatchNorm2d(channels[0], eps=2e-5), nn.ReLU())
        layers: list[nn.Module] = []
        for c_in, c_out in itertools.pairwise(channels):
            layers += [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1), nn.BatchNorm2d(c_out, eps=2e-5), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(channels[-1], shape.channels, 3, 1, 1), nn.Tanh())
        normal_init(self, std)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.dense_norm(self.dense(z)).view(-1, *self.start)
        return self.body(self.start_norm(h))  # type: ignore[no-any-return]


class Discriminator(nn.Module):
    """Seven convolutions, 3x3 stride 1 and 4x4 stride 2 in turn, leaky ReLU; a dense layer to one score."""

    def __init__(self, shape: ImageShape, channels: list[int], slope: float, norm: Norm, std: float) -> None:
        super().__init__()
        self.slope = slope
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        c_in = shape.channels
        for i, c_out in enumerate(channels):
            kernel, stride = (4, 2) if i % 2 else (3, 1)
            self.convs.append(nn.Conv2d(c_in, c_out, kernel, stride, 1))
            self.norms.append(maybe(norm, c_out, first=i == 0))
            c_in = c_out
        self.dense = nn.Linear(c_in * (shape.height // 8) * (shape.width // 8), 1)
        normal_init(self, std)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        leaky_relu = partial(F.leaky_relu, negative_slope=self.slope)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = activated(conv(x), norm, leaky_relu)
        features = flat(x)
        return Verdict(self.dense(features).squeeze(1), features)
