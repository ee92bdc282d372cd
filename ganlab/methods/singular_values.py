"""Singular values of a network's weights, and how concentrated they are: pure functions, nothing is changed.

A weight is SNGAN's (d_out, d_in * kernel) matrix (arXiv:1802.05957, section 2.1), by exact SVD.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ganlab.methods.modes import evaluating
from ganlab.methods.weights import CONVOLUTIONS, as_matrix, out_dim, raw_weight, weighted_layers


@torch.no_grad()
def effective_weight(layer: nn.Module) -> Tensor:
    """The (d_out, d_in * kernel) matrix that the layer multiplies by, its normalisation applied.

    Read without side effects: power iterations, buffers, modes and random generators stay as they are.
    """
    with evaluating(layer):
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return as_matrix(weight.detach(), out_dim(layer)).clone()


def singular_values(matrix: Tensor) -> Tensor:
    """All min(rows, columns) singular values, float64 on the CPU, largest first; all NaN if an entry is."""
    exact = matrix.detach().double().cpu()
    if not bool(torch.isfinite(exact).all()):  # LAPACK would raise, and an analysis must not stop training
        return exact.new_full((min(exact.shape),), torch.nan)
    values: Tensor = torch.linalg.svdvals(exact)
    return values


def matrices(net: nn.Module, only_convolutions: bool = False) -> dict[str, Tensor]:
    """The effective matrix of each weighted layer of ``net``, by its name, in the order of registration."""
    kinds: tuple[type, ...] = CONVOLUTIONS if only_convolutions else (nn.Module,)
    return {n: effective_weight(m) for n, m in weighted_layers(net) if isinstance(m, kinds)}


def spectral_norms(net: nn.Module) -> dict[str, float]:
    """Largest singular value of each layer's effective weight, by the layer's name."""
    return {name: float(singular_values(matrix)[0]) for name, matrix in matrices(net).items()}


def raw_spectral_norms(net: nn.Module) -> dict[str, float]:
    """The same of the trained weights under a parametrisation; layers without one are left out."""
    return {
        name: float(singular_values(as_matrix(raw_weight(layer), out_dim(layer)))[0])
        for name, layer in weighted_layers(net)
        if parametrize.is_parametrized(layer, "weight")
    }


def share_of_largest(values: Tensor) -> float:
    """s_1^2 / sum s_i^2, in [1 / n, 1]: how much of the squared Frobenius norm one direction carries.

    Its inverse is the stable rank. ``values``: singular values (n,), any order, not all zero.
    """
    squares = values.square()
    return float(squares.max() / squares.sum())


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of s_i / sum s, in [1, n] (Roy & Vetterli 2007, "The effective rank")."""
    p = values / values.sum()
    return float(torch.special.entr(p).sum().exp())
