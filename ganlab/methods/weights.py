"""The weights of a network that normalizations, penalties and analyses act on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear, nn.Embedding)

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)


def out_dim(layer: nn.Module) -> int:
    """Which axis of ``layer.weight`` counts output channels: 1 for transposed convolutions, else 0."""
    return 1 if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)) else 0


def as_matrix(weight: Tensor, axis: int = 0) -> Tensor:
    """A weight as SNGAN's (d_out, d_in * kernel) matrix (section 2.1); stride and padding play no part."""
    return weight.movedim(axis, 0).flatten(1)


@torch.no_grad()
def power_iteration(matrix: Tensor, u: Tensor, iterations: int, eps: float) -> tuple[Tensor, Tensor]:
    """(u, v) after ``iterations`` of v = W^T u / |W^T u|, u = W v / |W v| (SNGAN's Algorithm 1).

    matrix: (d_out, d_in * kernel); u: (d_out,), not changed; ``iterations`` >= 1; eps: of the vectors' norms.
    sigma = u^T W v approaches the largest singular value from below.
    """
    v = u
    with torch.autocast(matrix.device.type, enabled=False):
        for _ in range(iterations):
            v = F.normalize(matrix.T.mv(u), dim=0, eps=eps)
            u = F.normalize(matrix.mv(v), dim=0, eps=eps)
    return u, v


@torch.library.custom_op("ganlab::power_iteration", mutates_args=())
def opaque_power_iteration(matrix: Tensor, u: Tensor, iterations: int, eps: float) -> tuple[Tensor, Tensor]:
    """``power_iteration`` as one operation, which a compiler does not run again in a backward pass.

    Inductor would for small matrices (d_out <= 4), from a stored u that the forward pass has overwritten.
    """
    return power_iteration(matrix, u, iterations, eps)


@opaque_power_iteration.register_fake
def _(matrix: Tensor, u: Tensor, iterations: int, eps: float) -> tuple[Tensor, Tensor]:
    return matrix.new_empty(matrix.shape[0]), matrix.new_empty(matrix.shape[1])


def weighted_layers(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of every convolution, linear layer and embedding, in the order of registration."""
    for name, layer in net.named_modules():
        if isinstance(layer, WEIGHTED):
            yield name, layer


def raw_weight(layer: nn.Module) -> nn.Parameter:
    """The trained parameter behind ``layer.weight``, under any parametrisation, read without side effects.

    (Reading ``layer.weight`` of a spectrally normalised layer in training mode runs a power iteration.)
    """
    own = dict(layer.named_parameters())
    weight = own.get("parametrizations.weight.original", own.get("weight"))
    assert weight is not None, f"{type(layer).__name__} has no weight"
    return weight
