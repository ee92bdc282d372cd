"""BEGAN's networks (arXiv:1703.10717, Figure 1): an auto-encoder as D, and its decoder's twin as G."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ganlab.models.base import Architecture, Norm, glorot_init, maybe, pyramid, scaled
from ganlab.schema import Count, Positive, checked
from ganlab.types import ImageShape, Verdict


class AutoEncoderGAN(Architecture):
    """3x3 convolutions with ELU, two for each resolution, down to 8x8 pixels, and a linear code.

    The encoder has n, 2n, 3n, ... filters and halves by a strided convolution; the decoder and G have n
    throughout and double by nearest neighbors. No batch norm, no skip connections, a linear output.

    Args:
        width: multiplies n = 128.
        z_dim: length of z and of D's code (N_z = N_h).
        power: L(v) = mean |v - D(v)|^power.
    Parameters of G and of D's encoder: 1,421,443 and 5,707,200 at 32 px, 1,716,611 and 11,688,768 at 64;
    D has a decoder as large as G besides.
    """

    @checked
    def __init__(self, width: Positive = 1.0, z_dim: Count = 64, power: Literal[1, 2] = 1) -> None:
        self.width, self.z_dim, self.power = width, z_dim, power

    auto_encodes = True

    def check(self, shape: ImageShape) -> None:
        pyramid(shape, "BEGAN's networks", 4)

    def generator(self, shape: ImageShape, num_classes: int) -> nn.Module:
        return Decoder(shape, self.z_dim, scaled(128, self.width))

    def discriminator(self, shape: ImageShape, num_classes: int, norm: Norm) -> nn.Module:
        return AutoEncoder(shape, self.z_dim, scaled(128, self.width), self.power, norm)


def _levels(shape: ImageShape) -> int:
    """Resolutions from 8 pixels to the image's: 32 -> 3."""
    return shape.height.bit_length() - 3


class Decoder(nn.Module):
    """Codes (B, Z) to images (B, C, H, W)."""

    def __init__(self, shape: ImageShape, z_dim: int, n: int) -> None:
        super().__init__()
        self.n = n
        self.dense = nn.Linear(z_dim, 64 * n)
        self.convs = nn.ModuleList(nn.Conv2d(n, n, 3, padding=1) for _ in range(2 * _levels(shape)))
        self.to_image = nn.Conv2d(n, shape.channels, 3, padding=1)
        for layer in (self.dense, *self.convs, self.to_image):
            glorot_init(layer)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        h: Tensor = self.dense(z).view(-1, self.n, 8, 8)
        for i, conv in enumerate(self.convs):
            if i and i % 2 == 0:
                h = F.interpolate(h, scale_factor=2.0)
            h = F.elu(conv(h))
        return self.to_image(h)  # type: ignore[no-any-return]


class AutoEncoder(nn.Module):
    """Images to minus the error of their reconstruction; ``reconstruct`` gives the images."""

    def __init__(self, shape: ImageShape, code: int, n: int, power: int, norm: Norm) -> None:
        super().__init__()
        self.power, levels = power, _levels(shape)
        convs = [nn.Conv2d(shape.channels, n, 3, padding=1)]
        for i in range(levels):
            width = n * (i + 1)
            convs += [nn.Conv2d(max(i, 1) * n, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)]
            convs += [nn.Conv2d(width, width, 3, stride=2, padding=1)] if i < levels - 1 else []
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(maybe(norm, c.out_channels, i == 0) for i, c in enumerate(convs))
        self.code = nn.Linear(64 * n * levels, code)
        self.decoder = Decoder(shape, code, n)
        for layer in (*convs, self.code):
            glorot_init(layer)

    def reconstruct(self, x: Tensor) -> Tensor:
        """The images that D makes of ``x`` (B, C, H, W)."""
        h = x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = F.elu(norm(conv(h)))
        return self.decoder(self.code(h.flatten(1)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        error = (x - self.reconstruct(x)).float().abs()
        return Verdict(-(error if self.power == 1 else error.square()).flatten(1).mean(1))
