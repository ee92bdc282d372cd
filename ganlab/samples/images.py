"""Images: uint8 (B, C, H, W) as stored, float32 in [-1, 1] as model input, grids for people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ganlab.samples.base import Context, Export, Picture, Rendered, SampleKind, write_png
from ganlab.schema import Quantize


class Images(SampleKind):
    """``shape`` is an ``ImageShape``."""

    noun, architecture, metrics = "images", "cnn", "is,fid,kid"
    options = ("dequantize", "flip")
    is_grid = True

    @property
    def pixels(self) -> int:
        return int(self.shape.height * self.shape.width)

    def describe(self) -> str:
        return f"{self.shape.height}x{self.shape.width}, {self.shape.channels} channels"

    def to_model_input(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return to_float(x, *args, **kwargs)

    def to_stored(self, x: Tensor, how: Quantize = "round") -> Tensor:
        return quantize(x, how)

    def bounded(self, x: Tensor) -> Tensor:
        return x.tanh()

    def unscorable(self) -> str | None:
        if self.shape.channels in (1, 3):
            return None
        return f"scores need grayscale or RGB images, not {self.shape}"

    def random(self, n: int, random: np.random.Generator) -> npt.NDArray[Any]:
        return random.integers(0, 256, (n, *self.shape), dtype=np.uint8)

    def preview(self, samples: Tensor, context: Context) -> Rendered:
        """A grid, row by row."""
        return Rendered(grid(samples))

    def export(self, out: Path, samples: Export, context: Context) -> None:
        """``grid.png``, ``00000.png`` ... with ``singles``, ``interpolation.png``."""
        write_png(out / "grid.png", grid(samples.samples, samples.columns))
        if samples.singles:
            for i, image in enumerate(samples.samples.permute(0, 2, 3, 1).numpy()):
                write_png(out / f"{i:05d}.png", image)
        if samples.path is not None:
            write_png(out / "interpolation.png", grid(samples.path, samples.columns))


KIND = Images


def to_float(
    x: Tensor,
    dequantize: bool = False,
    flip: bool = False,
    generator: torch.Generator | None = None,
    draw: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Convert uint8 (B, C, H, W) to float32 in [-1, 1] on the same device.

    x / 127.5 - 1; with ``dequantize`` x / 128 - 1 + U(0, 1/128), as in SN-GAN's released code. ``flip``
    mirrors each image horizontally with probability 1/2. ``generator`` is on x's device; None uses torch's
    default. ``draw`` replaces ``torch.rand``.
    """
    draw = draw or torch.rand
    if flip:
        mirrored = draw(len(x), 1, 1, 1, device=x.device, generator=generator) < 0.5
        x = torch.where(mirrored, x.flip(-1), x)
    if not dequantize:
        return x.float().div_(127.5).sub_(1)
    noise = draw(*x.shape, device=x.device, generator=generator)
    return noise.add_(x).div_(128).sub_(1)  # in place: halves the time on a CPU


def quantize(x: Tensor, how: Quantize = "round") -> Tensor:
    """[-1, 1] to 0..255, uint8, as ``Protocol.quantize`` says; non-finite values become arbitrary bytes."""
    x = (x.float() + 1) * (255.99 / 2) if how == "bins" else x.float() * 127.5 + 127.5
    x = x.clamp(0, 255)
    return (x.round() if how == "round" else x).to(torch.uint8)


def grid(images: Tensor, columns: int = 8, padding: int = 2) -> Picture:
    """A picture (H, W, 3) of uint8 images (n, 1 or 3, h, w), row by row."""
    from torchvision.utils import make_grid  # imported late: it takes seconds

    tiled = make_grid(images.cpu(), nrow=columns, padding=padding, pad_value=255)
    return tiled.permute(1, 2, 0).contiguous().numpy()  # type: ignore[no-any-return]
