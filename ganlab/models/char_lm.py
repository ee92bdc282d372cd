"""WGAN-GP's character-level language model: 1D residual networks over a line of text."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from ganlab.models.base import Architecture, Norm, activated, flat, glorot_init, maybe, scaled
from ganlab.schema import MAX_COUNT, Count, Positive, Range, checked
from ganlab.types import TextShape, Verdict

HE = 2**0.5  # gain of Glorot initialization in the code's "he_init": variance 4 / (fan_in + fan_out)


class CharLM(Architecture):
    """G and D of ``blocks`` residual blocks each, with constant width and length.

    Source: Gulrajani et al. 2017, arXiv:1704.00028, Table 4 and gan_language.py. Initialization is uniform
    with variance 4 / (fan_in + fan_out) for convolutions, Glorot-uniform for linear layers, 0 for biases;
    the paper's networks have no norm.

    Args:
        width: multiplies ``channels``.
        z_dim: length of z.
        channels: of every layer.
        blocks: residual blocks of each net.
        kernel: size of a block's convolutions; odd.
        residual: factor of a block's residual branch.
    Parameters with V symbols and lines of 32: G 15,225,856 + 513 V, D 13,129,217 + 512 V.
    """

    kinds = ("text",)

    @checked
    def __init__(
        self,
        width: Positive = 1.0,
        z_dim: Count = 128,
        channels: Count = 512,
        blocks: Annotated[int, Range(ge=0, le=1000)] = 5,
        kernel: Annotated[int, Range(ge=1, le=MAX_COUNT)] = 5,
        residual: Positive = 0.3,
    ) -> None:
        if kernel % 2 == 0:
            raise ValueError(f"kernel: {kernel} is even, and lines keep their length; use {kernel + 1}")
        self.width, self.z_dim, self.channels = width, z_dim, channels
        self.blocks, self.kernel, self.residual = blocks, kernel, residual

    def check(self, shape: TextShape) -> None:
        """Every size is supported."""

    def generator(self, shape: TextShape, num_classes: int) -> nn.Module:
        return Generator(shape, self.z_dim, scaled(self.channels, self.width), self)

    def discriminator(self, shape: TextShape, num_classes: int, norm: Norm) -> nn.Module:
        return Discriminator(shape, scaled(self.channels, self.width), self, norm)


def conv(c_in: int, c_out: int, kernel: int) -> nn.Conv1d:
    """A convolution that keeps the length, initialized as in the released code."""
    layer = nn.Conv1d(c_in, c_out, kernel, padding=kernel // 2)
    glorot_init(layer, HE)
    return layer


class Block(nn.Module):
    """x + residual * conv(ReLU(conv(ReLU(x)))), (B, C, L); D's norms precede the activations."""

    def __init__(self, channels: int, of: CharLM, norm: Norm = None, first: bool = False) -> None:
        super().__init__()
        self.residual = of.residual
        self.convs = nn.ModuleList(conv(channels, channels, of.kernel) for _ in range(2))
        self.norms = nn.ModuleList([maybe(norm, channels, first), maybe(norm, channels)])

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer, norm in zip(self.convs, self.norms, strict=True):
            # as a map (B, C, L, 1), which every norm supports
            h = layer(activated(h.unsqueeze(-1), norm, F.relu).squeeze(-1))
        return x + self.residual * h


class Generator(nn.Module):
    """z (B, Z) -> dense -> blocks -> 1x1 conv -> softmax over symbols at each position, (B, V, L)."""

    def __init__(self, shape: TextShape, z_dim: int, channels: int, of: CharLM) -> None:
        super().__init__()
        self.start = (channels, shape.length)
        self.dense = nn.Linear(z_dim, channels * shape.length)
        glorot_init(self.dense)
        self.blocks = nn.Sequential(*(Block(channels, of) for _ in range(of.blocks)))
        self.last = conv(channels, shape.vocabulary, 1)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.last(self.blocks(self.dense(z).view(-1, *self.start)))
        return F.softmax(h, 1)


class Discriminator(nn.Module):
    """x (B, V, L) -> 1x1 conv -> blocks -> dense to one score; features are its input (B, C * L)."""

    def __init__(self, shape: TextShape, channels: int, of: CharLM, norm: Norm) -> None:
        super().__init__()
        self.first = conv(shape.vocabulary, channels, 1)
        self.blocks = nn.Sequential(*(Block(channels, of, norm, first=i == 0) for i in range(of.blocks)))
        self.dense = nn.Linear(channels * shape.length, 1)
        glorot_init(self.dense)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        features = flat(self.blocks(self.first(x)))
        return Verdict(self.dense(features).squeeze(1), features)
