"""The networks of Improved Techniques' code (Salimans et al. 2016, arXiv:1606.03498; openai/improved-gan)."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ganlab.methods.feature_norms import OffsetBatchNorm
from ganlab.models.base import Architecture, Norm, flat, scaled, square
from ganlab.models.heads import k_plus_1
from ganlab.models.weight_normed import Dropout, GaussianNoise, WNConv, WNDeconv, WNLinear
from ganlab.schema import Count, Positive, checked
from ganlab.types import ImageShape, Verdict

Head = Literal["k_plus_1", "none"]
EPS = 1e-6  # of G's batch norm


class _Improved(Architecture):
    """Head: ``k_plus_1``: ``classes`` logits, whose logsumexp is the score; ``none``: one score."""

    width: float
    head: Head
    classes: int

    def _set(self, width: float, z_dim: int, head: Head, classes: int) -> None:
        self.width, self.z_dim, self.head, self.classes = width, z_dim, head, classes
        self.k_plus_1 = self.classifies = head == "k_plus_1"

    @property
    def outputs(self) -> int:
        return self.classes if self.k_plus_1 else 1


class ImprovedMLP(_Improved):
    """MNIST's. G: 500-500 softplus units, batch norm without scale, sigmoid; D: 1000-500-250-250-250 ReLU
    units, weight-normalized, noise 0.3 on the image and 0.5 on the layers.

    D starts from data, and its gains are trained in the last layer alone. Images are in [0, 1] inside, as in
    the code. Features are the last hidden units, before their noise. Feature norms of D are not supported.

    Args:
        width: multiplies the units.
        z_dim: length of z; U(0, 1) in the code, U(-1, 1) here, which its first layer's offset absorbs.
        head: ``k_plus_1``, or ``none``: one score.
        classes: K.
    """

    @checked
    def __init__(
        self, width: Positive = 1.0, z_dim: Count = 100, head: Head = "none", classes: Count = 10
    ) -> None:
        self._set(width, z_dim, head, classes)

    def check(self, shape: ImageShape) -> None:
        """Every size is supported."""

    def generator(self, shape: ImageShape, num_classes: int) -> nn.Module:
        return MLPGenerator(shape, self.z_dim, scaled(500, self.width))

    def discriminator(self, shape: ImageShape, num_classes: int, norm: Norm) -> nn.Module:
        refuse(norm)
        units = [scaled(n, self.width) for n in (1000, 500, 250, 250, 250)]
        return MLPDiscriminator([math.prod(shape), *units], self.outputs, self.k_plus_1)


class ImprovedConv(_Improved):
    """CIFAR-10's and SVHN's, 32 px. G: dense 4x4x512, 5x5 deconvolutions 256, 128, 3, batch norm without
    scale, tanh; D: nine weight-normalized convolutions with dropout 0.2, 0.5, 0.5, leaky ReLU 0.2, mean pool.

    D, and G's last layer, start from data; gains are trained in the last layers alone. G has 4,933,382
    trained parameters, D 1,406,804 with 10 classes. Feature norms of D are not supported.

    Args:
        width: multiplies every channel count.
        z_dim: length of z; U(0, 1) in the code.
        d_channels: of D's first three convolutions: 96 for CIFAR-10, 64 for SVHN; twice as many after them.
        head: ``k_plus_1``, or ``none``: one score.
        classes: K.
    """

    @checked
    def __init__(
        self,
        width: Positive = 1.0,
        z_dim: Count = 100,
        d_channels: Count = 96,
        head: Head = "none",
        classes: Count = 10,
    ) -> None:
        self.d_channels = d_channels
        self._set(width, z_dim, head, classes)

    def check(self, shape: ImageShape) -> None:
        square(shape, 8, 32, "the improved net")

    def generator(self, shape: ImageShape, num_classes: int) -> nn.Module:
        channels = [scaled(c, self.width) for c in (512, 256, 128)]
        return ConvGenerator(shape, self.z_dim, channels)

    def discriminator(self, shape: ImageShape, num_classes: int, norm: Norm) -> nn.Module:
        refuse(norm)
        a, b = (scaled(n * self.d_channels, self.width) for n in (1, 2))
        return ConvDiscriminator(shape, a, b, self.outputs, self.k_plus_1)


def refuse(norm: Norm) -> None:
    """Raise ValueError for a feature norm of D."""
    if norm is not None:
        raise ValueError("normalization: this D has no place for a feature norm; use normalization=none")


class MLPGenerator(nn.Module):
    """z (B, Z) -> images (B, C, H, W) in [-1, 1]."""

    def __init__(self, shape: ImageShape, z_dim: int, units: int) -> None:
        super().__init__()
        self.shape = shape
        self.hidden = nn.ModuleList(nn.Linear(n, units, bias=False) for n in (z_dim, units))
        self.norms = nn.ModuleList(OffsetBatchNorm(units, EPS, 0.1) for _ in range(2))
        self.last = WNLinear(units, math.prod(shape), start_std=None, trained=True)
        for layer in (*self.hidden, self.last):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            z = F.softplus(flat(norm(layer(z)[:, :, None, None])))
        return (2 * self.last(z).sigmoid() - 1).view(-1, *self.shape)  # type: ignore[no-any-return]


class MLPDiscriminator(nn.Module):
    """x (B, C, H, W) -> noise, dense, ReLU for each of ``sizes``; noise, dense to ``outputs``."""

    def __init__(self, sizes: list[int], outputs: int, k_plus_1: bool) -> None:
        super().__init__()
        self.k_plus_1 = k_plus_1
        self.noises = nn.ModuleList(GaussianNoise(0.5 if i else 0.3) for i in range(len(sizes)))
        self.hidden = nn.ModuleList(WNLinear(a, b, std=0.1) for a, b in itertools.pairwise(sizes))
        self.dense = WNLinear(sizes[-1], outputs, trained=True, std=0.1)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        h = (flat(x) + 1) / 2
        *noises, last = self.noises
        for noise, layer in zip(noises, self.hidden, strict=True):
            h = F.relu(layer(noise(h)))
        out = self.dense(last(h))
        return k_plus_1(out, h) if self.k_plus_1 else Verdict(out.squeeze(1), h)


class ConvGenerator(nn.Module):
    """z (B, Z) -> images (B, C, H, W) in [-1, 1]."""

    def __init__(self, shape: ImageShape, z_dim: int, channels: list[int]) -> None:
        super().__init__()
        side = shape.height // 8
        self.start = (channels[0], side, side)
        self.dense = nn.Linear(z_dim, math.prod(self.start), bias=False)
        self.dense_norm: nn.Module = OffsetBatchNorm(math.prod(self.start), EPS, 0.1)
        nn.init.normal_(self.dense.weight, 0, 0.05)
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for a, b in itertools.pairwise(channels):
            conv = nn.ConvTranspose2d(a, b, 5, 2, 2, output_padding=1, bias=False)
            nn.init.normal_(conv.weight, 0, 0.05)
            self.convs.append(conv)
            self.norms.append(OffsetBatchNorm(b, EPS, 0.1))
        self.last = WNDeconv(channels[-1], shape.channels, 0.1)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        h = F.relu(self.dense_norm(self.dense(z)[:, :, None, None])).view(-1, *self.start)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = F.relu(norm(conv(h)))
        return self.last(h).tanh()  # type: ignore[no-any-return]


class ConvDiscriminator(nn.Module):
    """Three 3x3 convolutions of ``a`` channels, the third with stride 2, three of ``b`` likewise, one without
    padding, two 1x1; mean pool; dense to ``outputs``. Features are the pooled (B, b)."""

    def __init__(self, shape: ImageShape, a: int, b: int, outputs: int, k_plus_1: bool) -> None:
        super().__init__()
        self.k_plus_1 = k_plus_1
        leaky = nn.LeakyReLU(0.2)
        layers: list[nn.Module] = [Dropout(0.2)]
        for c_in, c_out in ((shape.channels, a), (a, b)):
            layers += [WNConv(c_in, c_out, 3, 1, 1), leaky, WNConv(c_out, c_out, 3, 1, 1), leaky]
            layers += [WNConv(c_out, c_out, 3, 2, 1), leaky, Dropout(0.5)]
        layers += [WNConv(b, b, 3), leaky, WNConv(b, b, 1), leaky, WNConv(b, b, 1), leaky]
        self.body = nn.Sequential(*layers)
        self.dense = WNLinear(b, outputs, start_std=0.1, trained=True)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        features = self.body(x).mean((2, 3))
        out = self.dense(features)
        return k_plus_1(out, features) if self.k_plus_1 else Verdict(out.squeeze(1), features)
