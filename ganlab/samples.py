"""Images out of G: batches for the metrics, grids and interpolations for people. uint8 from here on.

Every draw has a generator of its own, so looking at a run never changes its training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ganlab import rng
from ganlab.priors import Prior

Picture = npt.NDArray[np.uint8]  # (H, W, 3)


def to_uint8(x: Tensor, quantize: Literal["round", "truncate"] = "round") -> Tensor:
    """float32 [-1, 1] to uint8: clip(127.5 x + 127.5, 0, 255), rounded, or truncated as SNGAN's code does."""
    x = x * 127.5 + 127.5
    return (x.round() if quantize == "round" else x).clamp(0, 255).to(torch.uint8)


class Source:
    """A frozen G that gives images on demand.

    ``bn``: ``running`` statistics at generation (SNGAN's code), or those of each ``batch`` (WGAN-GP's code),
    which then depend on the batch. Works on a copy: the network that trains is left as it is.
    """

    def __init__(
        self,
        net: nn.Module,
        prior: Prior,
        z_dim: int,
        device: torch.device,
        quantize: Literal["round", "truncate"] = "round",
        bn: Literal["running", "batch"] = "running",
    ) -> None:
        self.net = copy.deepcopy(net).train(bn == "batch").requires_grad_(False)
        self.prior, self.z_dim, self.device, self.quantize = prior, z_dim, device, quantize

    @torch.no_grad()
    def images(self, z: Tensor) -> Tensor:
        """uint8 (n, C, H, W) of the latents z (n, Z)."""
        x: Tensor = self.net(z, None)
        return to_uint8(x.float(), self.quantize)

    def __call__(self, n: int, start: int, generator: torch.Generator) -> Tensor:
        """``n`` images with z from ``generator``; ``start`` is their place in the whole sample."""
        return self.images(self.prior(n, self.z_dim, self.device, generator))


def latents(prior: Prior, z_dim: int, n: int, device: torch.device, seed: int, *counters: int) -> Tensor:
    """The run's fixed latents (n, Z) for grids: the same at every step; drawn on the CPU for every device."""
    g = rng.generator("cpu", seed, "samples", *counters)
    return prior(n, z_dim, torch.device("cpu"), g).to(device)


def grid(images: Tensor, columns: int = 8, padding: int = 2) -> Picture:
    """A picture (H, W, 3) of uint8 images (n, 1 or 3, h, w), row by row."""
    from torchvision.utils import make_grid  # imported late: it takes seconds

    tiled = make_grid(images.cpu(), nrow=columns, padding=padding, pad_value=255)
    return tiled.permute(1, 2, 0).contiguous().numpy()  # type: ignore[no-any-return]


def interpolate(a: Tensor, b: Tensor, steps: int, spherical: bool = True) -> Tensor:
    """Latents (n * steps, Z) on the way from each row of a (n, Z) to the same row of b, ends included.

    ``spherical``: along the great circle, which keeps a normal z's length; else along the straight line.
    """
    t = torch.linspace(0, 1, steps, device=a.device).view(1, steps, 1)
    a, b = a.unsqueeze(1), b.unsqueeze(1)
    if not spherical:
        return torch.lerp(a, b, t).flatten(0, 1)
    cosine = nn.functional.cosine_similarity(a, b, dim=-1).clamp(-1, 1)
    angle = cosine.acos().unsqueeze(-1).clamp_min(1e-4)
    mixed = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    return mixed.flatten(0, 1)


def write_png(path: Path, picture: Picture) -> None:
    """Save (H, W, 3) or (H, W, 1) uint8 as PNG, by a temporary file beside it."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(part, "PNG")
    part.replace(path)


Generate = Callable[[int, int, torch.Generator], Tensor]
