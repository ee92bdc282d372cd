"""The DCGAN-style conv net of the WGAN-GP code (improved_wgan_training, gan_cifar.py; arXiv:1704.00028).

``wgan_gp_lsun.py`` and ``random_dcgan.py`` build on its G and D, with other activations, norms and layers.
TensorFlow pads the 5x5 layers by 1 before and 2 after, torch by 2 and 1: with random weights the same
networks for images rotated by 180 degrees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

from torch import Tensor, nn

from ganlab.models.base import (
    Architecture,
    Norm,
    activated,
    flat,
    glorot_init,
    maybe,
    pyramid,
    scaled,
    stages,
    strided_init,
)
from ganlab.schema import Count, Positive, Range, checked
from ganlab.types import ImageShape, Verdict


class Layer(NamedTuple):
    """A convolution: its channels after the activation, and whether it resamples by 2."""

    channels: int
    resamples: bool = True


class DCGAN(Architecture):
    """5x5 stride-2 convolutions in both; 512 channels at the smallest size, halved at each larger one.

    G has batch norm (per feature after the dense layer) and ReLU; D has leaky ReLU, and with
    ``normalization=bn`` batch norm after every convolution but the first. At 32 px: G 5,179,907 parameters, D
    without norm 4,114,689.

    Args:
        width: multiplies every channel count.
        z_dim: length of z.
        slope: of D's leaky ReLU.
    """

    @checked
    def __init__(
        self, width: Positive = 1.0, z_dim: Count = 128, slope: Annotated[float, Range(ge=0, lt=1)] = 0.2
    ) -> None:
        self.width, self.z_dim, self.slope = width, z_dim, slope

    def check(self, shape: ImageShape) -> None:
        pyramid(shape, "the dcgan")

    def _layers(self, shape: ImageShape) -> list[Layer]:
        counts = [max(1, 512 // 2**i) for i in range(stages(shape.height))]
        return [Layer(scaled(c, self.width)) for c in counts]

    def generator(self, shape: ImageShape, num_classes: int) -> nn.Module:
        start, *layers = self._layers(shape)
        return Generator(shape, self.z_dim, start.channels, layers)

    def discriminator(self, shape: ImageShape, num_classes: int, norm: Norm) -> nn.Module:
        return Discriminator(shape, self._layers(shape)[::-1], norm, nn.LeakyReLU(self.slope))


class Generator(nn.Module):
    """z (B, Z) -> dense -> ``layers``, each with norm and activation -> 5x5 stride-2 deconvolution, tanh.

    A layer that resamples is such a deconvolution too; others are 3x3 convolutions. ``start``: channels of
    the dense layer's map, whose size follows from the layers.

    Args:
        norm: batch norm after each layer, ``none``, or one scale and offset per ``feature`` or per
            ``channel`` of the dense layer's map (elsewhere always per channel).
        activation: builds an activation; if ``gated``, one that halves the channels.
    """

    def __init__(
        self,
        shape: ImageShape,
        z_dim: int,
        start: int,
        layers: Sequence[Layer],
        norm: Literal["feature", "channel", "none"] = "feature",
        activation: Callable[[], nn.Module] = nn.ReLU,
        gated: bool = False,
    ) -> None:
        super().__init__()
        factor = 2 if gated else 1
        side = shape.height >> sum(layer.resamples for layer in layers) + 1
        self.start = (factor * start, side, side)
        self.dense = nn.Linear(z_dim, factor * start * side * side)
        self.dense_norm: nn.Module = nn.Identity()
        if norm == "feature":
            self.dense_norm = nn.BatchNorm1d(factor * start * side * side)
        glorot_init(self.dense)
        self.start_norm = nn.BatchNorm2d(factor * start) if norm == "channel" else nn.Identity()
        self.activation = activation()
        body: list[nn.Module] = []
        c_in = start
        for channels, resamples in layers:
            c_out = factor * channels
            conv = upward(c_in, c_out) if resamples else same(c_in, c_out)
            body += [conv, *([nn.BatchNorm2d(c_out)] if norm != "none" else []), activation()]
            c_in = channels
        self.body = nn.Sequential(*body, upward(c_in, shape.channels), nn.Tanh())

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.dense_norm(self.dense(z)).view(-1, *self.start)
        return self.body(self.activation(self.start_norm(h)))  # type: ignore[no-any-return]


class Discriminator(nn.Module):
    """5x5 stride-2 convolutions, or 3x3 ones, with an activation; then a dense layer to one score.

    ``gated``: the ``activation`` halves the channels.
    """

    def __init__(
        self,
        shape: ImageShape,
        layers: Sequence[Layer],
        norm: Norm,
        activation: nn.Module,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        c_in = shape.channels
        for i, (channels, resamples) in enumerate(layers):
            c_out = 2 * channels if gated else channels
            self.convs.append(downward(c_in, c_out) if resamples else same(c_in, c_out))
            seen = channels if norm and norm.after_activation else c_out
            self.norms.append(maybe(norm, seen, first=i == 0))
            c_in = channels
        side = shape.height >> sum(layer.resamples for layer in layers)
        self.dense = nn.Linear(c_in * side * side, 1)
        glorot_init(self.dense)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = activated(conv(x), norm, self.activation)
        features = flat(x)
        return Verdict(self.dense(features).squeeze(1), features)


def upward(c_in: int, c_out: int) -> nn.ConvTranspose2d:
    """5x5 deconvolution to twice the side."""
    conv = nn.ConvTranspose2d(c_in, c_out, 5, 2, 2, output_padding=1)
    strided_init(conv)
    return conv


def downward(c_in: int, c_out: int) -> nn.Conv2d:
    """5x5 convolution to half the side."""
    conv = nn.Conv2d(c_in, c_out, 5, 2, 2)
    strided_init(conv)
    return conv


def same(c_in: int, c_out: int) -> nn.Conv2d:
    """3x3 convolution that keeps the side."""
    conv = nn.Conv2d(c_in, c_out, 3, 1, 1)
    strided_init(conv)
    return conv
