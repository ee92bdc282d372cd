"""Generated images as uint8: grids and interpolations.

Every draw has its own random generator, so previews never change training.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ganlab import rng
from ganlab.evaluation.generate import MicroBatcher, evaluating, to_stored
from ganlab.methods.priors import Prior
from ganlab.system.files import write_atomic
from ganlab.types import Kind

Picture = npt.NDArray[np.uint8]  # (H, W, 3)


@torch.no_grad()
def images(
    net: nn.Module, z: Tensor, y: Tensor | None = None, batch_size: int = 256, kind: Kind = "images"
) -> Tensor:
    """uint8 (n, C, H, W) for latents z (n, Z) and labels y (n,) or None; NaN becomes gray.

    Other kinds of samples are as ``generate.to_stored`` returns them, with 0 for NaN. G runs in evaluation
    mode, in smaller batches if memory runs out, and is not changed. Raises MetricError if there is not enough
    memory for one sample.
    """

    def generate_rows(rows: Tensor) -> Tensor:
        return to_stored(net(z[rows], None if y is None else y[rows]).float().nan_to_num(0.0), kind)

    with evaluating(net):
        return torch.cat([*MicroBatcher(batch_size)(generate_rows, torch.arange(len(z), device=z.device))])


def latents(prior: Prior, z_dim: int, n: int, device: torch.device, seed: int, *counters: int) -> Tensor:
    """The run's fixed latents (n, Z) for grids, the same at every step and on every device."""
    g = rng.generator("cpu", seed, "samples", *counters)
    return prior(n, z_dim, torch.device("cpu"), g).to(device)


def some_classes(num_classes: int, rows: int = 10) -> list[int]:
    """Classes of the rows of a grid: all of them, or ``rows`` evenly spaced ones from first to last."""
    if num_classes <= rows:
        return list(range(num_classes))
    return [round(i * (num_classes - 1) / max(rows - 1, 1)) for i in range(rows)]


def by_class(z: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(z, y) of a grid with a row per class and a column per latent of z (columns, Z)."""
    y = torch.tensor(classes, device=z.device).repeat_interleave(len(z))
    return z.repeat(len(classes), 1), y


def row_labels(rows: Sequence[int], n: int, columns: int, device: torch.device) -> Tensor | None:
    """Labels (n,) of a grid whose row r has class ``rows[r % len(rows)]``; None without ``rows``."""
    if not rows:
        return None
    return torch.tensor([rows[i // columns % len(rows)] for i in range(n)], device=device)


def grid(images: Tensor, columns: int = 8, padding: int = 2) -> Picture:
    """A picture (H, W, 3) of uint8 images (n, 1 or 3, h, w), row by row."""
    from torchvision.utils import make_grid  # imported late: it takes seconds

    tiled = make_grid(images.cpu(), nrow=columns, padding=padding, pad_value=255)
    return tiled.permute(1, 2, 0).contiguous().numpy()  # type: ignore[no-any-return]


def interpolate(a: Tensor, b: Tensor, steps: int, spherical: bool = True) -> Tensor:
    """Latents (n * steps, Z) from each row of a (n, Z) to the same row of b, both ends included.

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
    """Write uint8 (H, W, 3) or (H, W, 1) as PNG, atomically. Raises EnvError."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(data, "PNG")
    write_atomic(path, data.getvalue(), durable=False)
