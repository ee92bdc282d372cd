"""The interface of architectures, and shared layers and initializations."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from ganlab.methods.base import FeatureNorm
from ganlab.types import ImageShape, Kind

Norm = FeatureNorm | None


class Architecture(ABC):
    """Builds a generator and a discriminator for samples of a given shape.

    ``kinds``: of samples it supports; ``check`` and the builders get only such shapes. ``z_dim``: length of
    z. ``g(z, y)`` returns x (B, ...), images (B, C, H, W) in [-1, 1]; ``d(x, y)`` returns a ``Verdict``.
    ``conditional``: whether both use labels y (B,), int64; otherwise y is None. ``classifies``: whether D's
    verdict has class logits. ``grows``: whether both networks have ``set_progress`` (0 to 1), and D ``real``:
    real samples as it sees them at its stage of growth. ``auto_encodes``: whether D's score is minus the
    error of its ``reconstruct``. ``group``: D compares so many images; a pass must have a multiple of it.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("images",)
    z_dim: int
    conditional: bool = False
    classifies: bool = False
    grows: bool = False
    auto_encodes: bool = False
    group: int = 1

    @abstractmethod
    def check(self, shape: Any) -> None:
        """Raise ValueError("dataset.resolution: ...; fix") if the shape is not supported."""

    @abstractmethod
    def generator(self, shape: Any, num_classes: int) -> nn.Module:
        """A newly initialized G for samples of ``shape``; ``num_classes`` is 0 without labels."""

    @abstractmethod
    def discriminator(self, shape: Any, num_classes: int, norm: Norm) -> nn.Module:
        """A newly initialized D; ``norm(channels)`` builds its feature norm; None: no norm."""


def scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, rounded, at least 1."""
    return max(1, round(channels * width))


def square(shape: ImageShape, multiple: int, least: int, net: str) -> None:
    """Raise ValueError unless the image is square and its side >= ``least`` a multiple of ``multiple``."""
    side = shape.height
    if shape.height != shape.width or side % multiple or side < least:
        near = max(least, round(side / multiple) * multiple)
        raise ValueError(
            f"dataset.resolution: {shape.width}x{shape.height} can't be built by {net}, whose sides are "
            f"multiples of {multiple} from {least} up; set dataset.resolution={near}"
        )


def normal_init(net: nn.Module, std: float) -> None:
    """Draw weights of convolutions and linear layers from N(0, std^2); biases 0."""
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(m.weight, 0.0, std)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def uniform_init(net: nn.Module, std: float) -> None:
    """Draw weights of convolutions and linear layers uniformly with standard deviation ``std``; biases 0.

    Source: improved_wgan_training, gan_64x64.py (``set_weights_stdev``).
    """
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.uniform_(m.weight, -math.sqrt(3) * std, math.sqrt(3) * std)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def he_init(layer: nn.Linear) -> None:
    """He-uniform weight with variance 2 / fan_in; bias 0."""
    bound = math.sqrt(6 / layer.in_features)
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)


def glorot_init(layer: nn.Module, gain: float = 1.0) -> None:
    """Glorot-uniform weight, bias 0. ``gain`` sqrt(2) is the "he" variant of SNGAN's and WGAN-GP's code."""
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear, nn.Embedding))
    nn.init.xavier_uniform_(layer.weight, gain)
    if not isinstance(layer, nn.Embedding) and layer.bias is not None:
        nn.init.zeros_(layer.bias)


def strided_init(layer: nn.Conv2d | nn.ConvTranspose2d, numerator: int = 4) -> None:
    """Uniform with variance 4 / (fan_in + fan_out), the strided side's fan divided by stride^2; bias 0.

    Source: improved_wgan_training, tflib/ops/conv2d.py and deconv2d.py (``he_init``; the
    ``numerator`` is 2 without it).
    """
    area, stride2 = layer.kernel_size[0] * layer.kernel_size[1], layer.stride[0] * layer.stride[1]
    fan_in, fan_out = float(layer.in_channels * area), float(layer.out_channels * area)
    if isinstance(layer, nn.ConvTranspose2d):
        fan_in /= stride2
    else:
        fan_out /= stride2
    bound = math.sqrt(3 * numerator / (fan_in + fan_out))
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def maybe(norm: Norm, channels: int, first: bool = False) -> nn.Module:
    """The feature norm for ``channels``, or identity; after D's ``first`` layer only if ``norm.first``."""
    return norm(channels) if norm and (norm.first or not first) else nn.Identity()


def activated(x: Tensor, norm: nn.Module, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """Feature norm, then activation; in reverse order for a norm with ``after_activation``."""
    if getattr(norm, "after_activation", False):
        return norm(activation(x))  # type: ignore[no-any-return]
    return activation(norm(x))


def stages(side: int) -> int:
    """How many times ``side`` is halved to reach 4 to 7 pixels: 32 -> 3, 48 -> 3, 64 -> 4."""
    return int(math.log2(side / 4)) if side >= 8 else 0


def pyramid(shape: ImageShape, net: str, start: int | None = None) -> None:
    """Raise ValueError unless the image is square and can be halved at least twice, down to ``start`` pixels.

    ``start``: 4, or None for 4 to 7.
    """
    side, n = shape.height, stages(shape.height)
    fits = shape.height == shape.width and 2 <= n <= 8 and side % 2**n == 0
    if not fits or start not in (None, side >> n):
        sides = "4 to 7 times a power of two" if start is None else "4 times a power of two"
        raise ValueError(
            f"dataset.resolution: {shape.width}x{shape.height} can't be built by {net}, whose sides "
            f"are {sides}, from 16 up; set dataset.resolution=32"
        )


def flat(x: Tensor) -> Tensor:
    """(B, ...) to (B, F)."""
    return x.flatten(1)
