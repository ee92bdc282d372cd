"""Progressive GAN's networks (Karras et al. 2018, arXiv:1710.10196): both grow from 4x4 pixels.

The stage of growth comes from ``set_progress``: at stage s the networks work at 4 * 2^ceil(s) pixels, and
the finest scale is faded in with weight alpha = s - ceil(s) + 1. In training G's images have that size;
otherwise they are enlarged to the full one, so that data, previews and scores keep their shape. D shrinks
larger images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganlab.distributed.sync_batch_norm import stack_ranks
from ganlab.models.base import Architecture, Norm, activated, maybe, scaled
from ganlab.schema import Count, Positive, Range, checked
from ganlab.types import ImageShape, Verdict


class ProGAN(Architecture):
    """G and D of the paper's Table 2, for square images whose side is a power of two from 8 up.

    Layers at 4 * 2^i pixels have min(channels / 2^(i + 1), max_channels) channels. Weights are drawn from
    N(0, gain^2 / fan_in): gain sqrt(2), 1 where no activation follows, sqrt(2) / 4 for G's first layer.

    Args:
        width: multiplies every channel count.
        channels: 8192 in the paper, 4096 in its code for CIFAR-10, 2048 in its ablation.
        max_channels: 512, or 128 for CIFAR-10.
        z_dim: 512, or 128 for CIFAR-10.
        normalize_latents: z / sqrt(mean z^2), as the paper.
        g_norm: ``pixel``: x / sqrt(mean over channels of x^2 + 1e-8) after each activation; ``batch``: batch
            norm before it, as in the ablation's first rows; ``none``.
        stddev: images that D compares: ``batch`` (the paper and its Theano code), a group of so many (4 in
            the TensorFlow code), or ``none``.
        slope: of the leaky ReLU; 0: ReLU, as in the ablation's first rows.
        output: ``linear``, or ``tanh`` as there.
    """

    @checked
    def __init__(
        self,
        width: Positive = 1.0,
        channels: Count = 8192,
        max_channels: Count = 512,
        z_dim: Count = 512,
        normalize_latents: bool = True,
        g_norm: Literal["pixel", "batch", "none"] = "pixel",
        stddev: Annotated[int, Range(ge=2, le=1024)] | Literal["batch", "none"] = "batch",
        slope: Annotated[float, Range(ge=0, lt=1)] = 0.2,
        output: Literal["linear", "tanh"] = "linear",
    ) -> None:
        self.width, self.channels, self.max_channels, self.z_dim = width, channels, max_channels, z_dim
        self.normalize_latents, self.g_norm, self.stddev = normalize_latents, g_norm, stddev
        self.slope, self.output = slope, output
        self.group = stddev if isinstance(stddev, int) else 1

    def check(self, shape: ImageShape) -> None:
        side = shape.height
        if shape.width != side or side < 8 or side & (side - 1):
            near = 2 ** max(3, round(math.log2(side)))
            raise ValueError(
                f"dataset.resolution: {shape.width}x{side} can't be grown from 4x4 by doubling; "
                f"set dataset.resolution={near}"
            )

    grows = True

    def widths(self, shape: ImageShape) -> list[int]:
        """Channels at 4, 8, ... pixels."""
        levels = shape.height.bit_length() - 2
        widths = [min(self.channels >> (i + 1), self.max_channels) for i in range(levels)]
        return [scaled(channels, self.width) for channels in widths]

    def generator(self, shape: ImageShape, num_classes: int) -> nn.Module:
        return Generator(shape, self.widths(shape), self)

    def discriminator(self, shape: ImageShape, num_classes: int, norm: Norm) -> nn.Module:
        return Discriminator(shape, self.widths(shape), self, norm)


def scaled_init(layer: nn.Module, gain: float = math.sqrt(2)) -> Any:
    """N(0, gain^2 / fan_in) weights, zero biases; ``gain`` is kept for equalized learning rates."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    nn.init.normal_(weight, 0.0, gain / math.sqrt(weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    layer.gain = gain  # type: ignore[assignment]
    return layer


def conv(inputs: int, outputs: int, kernel: int = 3, gain: float = math.sqrt(2)) -> nn.Conv2d:
    layer: nn.Conv2d = scaled_init(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), gain)
    return layer


class PixelNorm(nn.Module):
    """x / sqrt(mean of x^2 over channels + 1e-8), after the activation."""

    after_activation = True

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class Stddev(nn.Module):
    """Appends a channel: the standard deviation over a group of images, a mean over features.

    group: consecutive images of a batch; 0: all of it, over all ranks.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group, self.needs = group, frozenset({"whole_batch"})

    def forward(self, x: Tensor) -> Tensor:
        n = self.group
        groups = x.float().unflatten(0, (-1, n)) if n else stack_ranks(x.float()).flatten(0, 1)[None]
        deviation = (groups.var(1, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
        each = deviation.repeat_interleave(n) if n else deviation.expand(len(x))
        return torch.cat([x, each.to(x.dtype).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])], 1)


class Growing(nn.Module):
    """The stage of growth. levels: resolutions from 4 pixels on. alpha: the finest scale's weight (0-dim)."""

    progress: Tensor
    alpha: Tensor

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.register_buffer("progress", torch.ones((), dtype=torch.float64))
        self.register_buffer("alpha", torch.ones(()), persistent=False)
        self.level, self.fades = levels - 1, False
        self.register_load_state_dict_post_hook(lambda net, _: net.set_progress(float(net.progress)))

    def set_progress(self, progress: float) -> None:
        """Move to stage ``progress`` * (levels - 1), progress from 0 to 1; a fractional stage is a fade."""
        stage = round(progress * (self.levels - 1), 9)
        self.level = math.ceil(stage)
        self.fades = stage != self.level
        self.progress.fill_(progress)
        self.alpha.fill_(stage - self.level + 1)

    def blend(self, coarse: Tensor, fine: Tensor) -> Tensor:
        return torch.lerp(coarse, fine, self.alpha.to(fine.dtype))


class Generator(Growing):
    """z (B, Z) to images (B, C, H, W)."""

    def __init__(self, shape: ImageShape, widths: list[int], a: ProGAN) -> None:
        super().__init__(len(widths))
        self.side, self.normalize, self.slope, self.tanh = (
            shape.height,
            a.normalize_latents,
            a.slope,
            a.output == "tanh",
        )
        first = widths[0]
        self.dense = scaled_init(nn.Linear(a.z_dim, 16 * first, bias=False), math.sqrt(2) / 4)
        self.bias = nn.Parameter(torch.zeros(first, 1, 1))
        pairs = itertools.pairwise(widths)
        self.convs = nn.ModuleList(
            [conv(first, first), *(conv(*c) for i, o in pairs for c in ((i, o), (o, o)))]
        )
        self.to_image = nn.ModuleList(conv(w, shape.channels, 1, gain=1.0) for w in widths)
        norms: dict[str, Callable[[int], nn.Module]]
        norms = {"pixel": lambda _: PixelNorm(), "batch": nn.BatchNorm2d}
        norm = norms.get(a.g_norm, lambda _: nn.Identity())
        self.norms = nn.ModuleList(norm(w) for w in (first, first, *(w for w in widths[1:] for _ in "01")))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        if self.normalize:
            z = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        h = self.dense(z).view(len(z), -1, 4, 4) + self.bias
        h = self._activated(h, 0)
        h = self._activated(self.convs[0](h), 1)
        coarse = h
        for level in range(1, self.level + 1):
            coarse = h
            h = F.interpolate(h, scale_factor=2.0)
            for i in (2 * level - 1, 2 * level):
                h = self._activated(self.convs[i](h), i + 1)
        x: Tensor = self.to_image[self.level](h)
        if self.fades:
            x = self.blend(F.interpolate(self.to_image[self.level - 1](coarse), scale_factor=2.0), x)
        x = torch.tanh(x) if self.tanh else x
        return x if self.training else F.interpolate(x, size=(self.side, self.side))

    def _activated(self, h: Tensor, i: int) -> Tensor:
        return activated(h, self.norms[i], lambda t: F.leaky_relu(t, self.slope))


class Discriminator(Growing):
    """Images to a score."""

    def __init__(self, shape: ImageShape, widths: list[int], a: ProGAN, norm: Norm) -> None:
        super().__init__(len(widths))
        self.slope, first = a.slope, widths[0]
        self.stddev = None if a.stddev == "none" else Stddev(0 if a.stddev == "batch" else int(a.stddev))
        self.from_image = nn.ModuleList(conv(shape.channels, w, 1) for w in widths)
        self.from_norms = nn.ModuleList(maybe(norm, w, first=True) for w in widths)
        pairs = list(itertools.pairwise(widths))
        convs = [c for i, o in pairs for c in (conv(o, o), conv(o, i))]
        convs = [conv(first + (self.stddev is not None), first), *convs]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(maybe(norm, c.out_channels) for c in convs)
        self.dense = scaled_init(nn.Linear(16 * first, first))
        self.last = scaled_init(nn.Linear(first, 1), 1.0)

    def real(self, x: Tensor) -> Tensor:
        """Real images (B, C, H, W) as this stage sees them: in its size, faded like G's."""
        x = self._shrunk(x)
        return self.blend(F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0), x) if self.fades else x

    def _shrunk(self, x: Tensor) -> Tensor:
        factor = x.shape[-1] // (4 << self.level)
        return F.avg_pool2d(x, factor) if factor > 1 else x

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        x = self._shrunk(x)
        h = self._from(x, self.level)
        for level in range(self.level, 0, -1):
            for i in (2 * level - 1, 2 * level):
                h = self._activated(self.convs[i](h), self.norms[i])
            h = F.avg_pool2d(h, 2)
            if level == self.level and self.fades:
                h = self.blend(self._from(F.avg_pool2d(x, 2), level - 1), h)
        h = self.stddev(h) if self.stddev is not None else h
        h = self._activated(self.convs[0](h), self.norms[0])
        features = F.leaky_relu(self.dense(h.flatten(1)), self.slope)
        return Verdict(self.last(features).squeeze(1), features)

    def _from(self, x: Tensor, level: int) -> Tensor:
        return self._activated(self.from_image[level](x), self.from_norms[level])

    def _activated(self, h: Tensor, norm: nn.Module) -> Tensor:
        return activated(h, norm, lambda t: F.leaky_relu(t, self.slope))
