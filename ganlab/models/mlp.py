"""Multilayer perceptrons for points and images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn

from ganlab.models import activations
from ganlab.models.activations import Activation
from ganlab.models.base import Architecture, Norm, activated, flat, glorot_init, he_init, maybe, scaled
from ganlab.samples.base import sample_kind
from ganlab.schema import Count, Positive, Range, checked
from ganlab.types import ImageShape, PointShape, Verdict


class MLP(Architecture):
    """G and D of ``depth`` linear layers each, ``hidden`` units in all but the last.

    Source: Gulrajani et al. 2017, arXiv:1704.00028, section 2.3 and gan_toy.py: depth 4, 512 ReLU units, no
    normalization, z of 2 numbers (G 527,874 parameters, D 527,361); Figure 1b: depth 12, width unspecified.
    Initialization is He-uniform for hidden layers, Glorot-uniform for the last one, 0 for biases. G's output
    is linear for points, tanh for images, as in WGAN's MLP generator (arXiv:1701.07875).

    Args:
        width: multiplies ``hidden``.
        z_dim: length of z.
        hidden: units of a hidden layer.
        depth: linear layers of each net.
        activation: of the hidden layers; leaky ReLU has slope 0.2.
    """

    kinds = ("points", "images")

    @checked
    def __init__(
        self,
        width: Positive = 1.0,
        z_dim: Count = 2,
        hidden: Count = 512,
        depth: Annotated[int, Range(ge=2, le=1000)] = 4,
        activation: Activation = "relu",
    ) -> None:
        self.width, self.z_dim, self.hidden, self.depth = width, z_dim, hidden, depth
        self.activation: Activation = activation

    def check(self, shape: PointShape | ImageShape) -> None:
        """Every size is supported."""

    def generator(self, shape: PointShape | ImageShape, num_classes: int) -> nn.Module:
        return Generator(shape, self._sizes(self.z_dim, math.prod(shape)), self.activation)

    def discriminator(self, shape: PointShape | ImageShape, num_classes: int, norm: Norm) -> nn.Module:
        return Discriminator(self._sizes(math.prod(shape), 1), self.activation, norm)

    def _sizes(self, inputs: int, outputs: int) -> list[int]:
        return [inputs, *[scaled(self.hidden, self.width)] * (self.depth - 1), outputs]


def layers(sizes: list[int]) -> nn.ModuleList:
    """Linear layers between ``sizes``, He-uniform except the last."""
    *hidden, last = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    for layer in hidden:
        he_init(layer)
    glorot_init(last)
    return nn.ModuleList([*hidden, last])


class Generator(nn.Module):
    """z (B, Z) -> points (B, 2) or (B, 1), or images (B, C, H, W) in [-1, 1]."""

    def __init__(self, shape: PointShape | ImageShape, sizes: list[int], activation: Activation) -> None:
        super().__init__()
        self.kind, self.activation, self.layers = (
            sample_kind(shape),
            activations.activation(activation),
            layers(sizes),
        )

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            z = self.activation(layer(z))
        x: Tensor = last(z)
        return self.kind.bounded(x).view(-1, *self.kind.shape)


class Discriminator(nn.Module):
    """x (B, ...) -> one score; features are the last hidden layer (B, H). Norms treat units as channels."""

    def __init__(self, sizes: list[int], activation: Activation, norm: Norm) -> None:
        super().__init__()
        self.activation, self.layers = activations.activation(activation), layers(sizes)
        self.norms = nn.ModuleList(maybe(norm, n, first=i == 0) for i, n in enumerate(sizes[1:-1]))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        h = flat(x)
        *hidden, last = self.layers
        for layer, norm in zip(hidden, self.norms, strict=True):
            h = flat(activated(layer(h)[:, :, None, None], norm, self.activation))
        return Verdict(last(h).squeeze(1), h)


class MLPGenerator(nn.Module):
    """z (B, Z) -> linear layers of ``hidden`` units with ReLU -> linear, tanh -> (B, C, H, W)."""

    def __init__(self, shape: ImageShape, z_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.shape = shape
        layers: list[nn.Module] = []
        for n_in, n_out in zip([z_dim, *hidden], hidden, strict=False):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        pixels = shape.channels * shape.height * shape.width
        self.body = nn.Sequential(*layers, nn.Linear([z_dim, *hidden][-1], pixels), nn.Tanh())

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.body(z).view(-1, *self.shape)  # type: ignore[no-any-return]
