"""SNGAN's ResNets for 32, 48, 64 and 128 px, unconditional and conditional, and WGAN-GP's for 32 px.

Source: Miyato et al. 2018, arXiv:1802.05957, Tables 4, 5 and 6; sngan_projection (the released code), whose
resnet_64.py and snresnet_64.py are the networks for 64 px (the same as mimicry's). A conditional G has
per-class batch norm in its blocks and a plain one at the end; D gets the label through its ``head``.
"""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ganlab.models.activations import relu
from ganlab.models.base import Architecture, Norm, glorot_init, scaled
from ganlab.models.blocks import EPS, DownBlock, FirstBlock, PlainNorm, UpBlock
from ganlab.models.heads import Head, Headed
from ganlab.schema import Count, Positive, checked
from ganlab.types import ImageShape, Verdict

CONCAT_AFTER = 3  # blocks of D before the label map is concatenated (Table 6; the released code)


class Plan(NamedTuple):
    """Channels of G (from the start) and of D's blocks, how many of these halve, and D's last bias."""

    g: tuple[int, ...]
    d: tuple[int, ...]
    halvings: int
    bias: bool


PLANS = {
    32: Plan((256, 256, 256, 256), (128, 128, 128, 128), 2, False),  # Table 4; no bias in the released code
    48: Plan((512, 256, 128, 64), (64, 128, 256, 512, 1024), 4, True),  # Table 5; not in the released code
    64: Plan((1024, 512, 256, 128, 64), (64, 128, 256, 512, 1024), 5, True),  # sngan_projection
    128: Plan((1024, 1024, 512, 256, 128, 64), (64, 128, 256, 512, 1024, 1024), 5, True),  # Table 6
}


class ResNet(Architecture):
    """Table 4 at 32 px, Table 5 at 48 px, the released code's network at 64 px, Table 6 at 128 px.

    Args:
        width: multiplies every channel count.
        z_dim: length of z.
        head: how D uses the label. ``none``: not at all, nor does G. ``concat``: its embedding
            of size 128, repeated over the map after D's third block, is concatenated to the channels (SNGAN,
            Table 6). ``projection``: the score is linear(phi) + <embed(y), phi>, phi the pooled features
            (arXiv:1802.05637, equation 3). ``ac``: an auxiliary classifier, a linear layer from phi to class
            logits (arXiv:1610.09585); the score ignores the label. ``class_loss`` is its loss. ``k_plus_1``:
            class logits whose logsumexp is the score (arXiv:1606.03498); no label is an input of G or D.
        classes: of ``k_plus_1``.
        g_channels, d_channels: at 32 px only, the widths of G (paper 256; WGAN-GP 128) and of D (128).
        pool: global ``sum`` pooling in D (paper) or ``mean`` (WGAN-GP's code).
        dense_bias: a bias in D's score; null: none at 32 px (the released code), one at the other sizes.
        bn_eps: added to the variance in G's batch norm: Chainer's, or TensorFlow's 1e-5 (WGAN-GP's code).
    Parameters with 3 channels: at 32 px G 4,276,739, D 1,053,824; at 48 px G 4,878,083, D 10,141,441; at
    128 px G 32,150,787 (41,996,931 with 1,000 classes), D 29,017,857 (concat 30,538,625, projection
    30,041,857).
    """

    @checked
    def __init__(
        self,
        width: Positive = 1.0,
        z_dim: Count = 128,
        head: Head = "none",
        g_channels: Count = 256,
        d_channels: Count = 128,
        pool: Literal["sum", "mean"] = "sum",
        dense_bias: bool | None = None,
        bn_eps: Positive = EPS,
        classes: Count = 10,
    ) -> None:
        self.width, self.z_dim, self.pool, self.dense_bias = width, z_dim, pool, dense_bias
        self.g_channels, self.d_channels, self.bn_eps = g_channels, d_channels, bn_eps
        self.head, self.classes, self.k_plus_1 = head, classes, head == "k_plus_1"
        self.conditional, self.classifies = head not in ("none", "k_plus_1"), head in ("ac", "k_plus_1")

    def check(self, shape: ImageShape) -> None:
        if shape.height != shape.width or shape.height not in PLANS:
            near = min(PLANS, key=lambda side: abs(side - shape.height))
            raise ValueError(
                f"dataset.resolution: {shape.width}x{shape.height} can't be built by the resnet, which has "
                f"networks for {', '.join(map(str, PLANS))} pixels; set dataset.resolution={near}"
            )

    def generator(self, shape: ImageShape, num_classes: int) -> nn.Module:
        channels = [self.g_channels] * 4 if shape.height == 32 else PLANS[shape.height].g
        widths = [scaled(c, self.width) for c in channels]
        return Generator(shape, self.z_dim, widths, num_classes, self.bn_eps)

    def discriminator(self, shape: ImageShape, num_classes: int, norm: Norm) -> nn.Module:
        plan = PLANS[shape.height]
        channels = [self.d_channels] * 4 if shape.height == 32 else plan.d
        bias = plan.bias if self.dense_bias is None else self.dense_bias
        widths, embedded = [scaled(c, self.width) for c in channels], scaled(128, self.width)
        head: Head = self.head if num_classes or self.k_plus_1 else "none"
        count = self.classes if self.k_plus_1 else num_classes
        return Discriminator(shape, widths, plan.halvings, norm, self.pool, bias, head, count, embedded)


class Generator(nn.Module):
    """z (B, Z) -> dense -> up blocks -> BN, ReLU, 3x3 conv, tanh; the blocks' norms are per class if any."""

    def __init__(
        self, shape: ImageShape, z_dim: int, channels: list[int], num_classes: int, eps: float
    ) -> None:
        super().__init__()
        ups = len(channels) - 1
        self.start = (channels[0], shape.height >> ups, shape.width >> ups)
        self.dense = nn.Linear(z_dim, channels[0] * self.start[1] * self.start[2])
        glorot_init(self.dense)
        self.blocks = nn.ModuleList(UpBlock(a, b, num_classes, eps) for a, b in itertools.pairwise(channels))
        self.norm = PlainNorm(channels[-1], eps=eps)
        self.last = nn.Conv2d(channels[-1], shape.channels, 3, 1, 1)
        glorot_init(self.last)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.dense(z).view(-1, *self.start)
        for block in self.blocks:
            h = block(h, y)
        return self.last(F.relu(self.norm(h))).tanh()  # type: ignore[no-any-return]


class Discriminator(Headed):
    """Residual blocks down, ReLU, global pooling, dense to one score; features are the pooled (B, C)."""

    def __init__(
        self,
        shape: ImageShape,
        channels: list[int],
        halvings: int,
        norm: Norm,
        pool: str,
        bias: bool,
        head: Head,
        num_classes: int,
        embedded: int,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.blocks = nn.ModuleList([FirstBlock(shape.channels, channels[0], norm)])
        for i, (c_in, c_out) in enumerate(itertools.pairwise(channels), 1):
            c_in += embedded if head == "concat" and i == CONCAT_AFTER else 0
            self.blocks.append(DownBlock(c_in, c_out, i < halvings, norm))
        self.add_head(head, channels[-1], num_classes, embedded, bias)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        for i, block in enumerate(self.blocks):
            if self.head == "concat" and i == CONCAT_AFTER:
                x = self.join(x, y)
            x = block(x)
        h = relu(x).flatten(2)
        return self.judge(h.sum(2) if self.pool == "sum" else h.mean(2), y)
