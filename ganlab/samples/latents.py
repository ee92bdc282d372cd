"""Latents and labels of grids and interpolations.

Every draw has its own random generator, so previews never change training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ganlab import rng
from ganlab.methods.priors import Prior


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
