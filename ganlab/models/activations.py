"""Activations by name, as modules; all but ``Gate`` are elementwise."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal[
    "relu", "leaky_relu", "smooth_elu", "tanh", "elu"
]  # WGAN-GP's Table 1, and the ELU of appendix D


class _ReLU(torch.autograd.Function):
    """ReLU without a second derivative; torch's adds a map of zeros to the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = F.relu(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, y.detach(), 0)  # type: ignore[no-any-return]


def relu(x: Tensor) -> Tensor:
    """max(x, 0), bit-identical to ``F.relu``; gradient penalties need fewer operations."""
    return F.relu(x) if torch.compiler.is_compiling() else _ReLU.apply(x)


def smooth_elu(x: Tensor) -> Tensor:
    """softplus(2 x + 2) / 2 - 1: about x for x > 0, -1 far below 0, and smooth everywhere.

    Source: Gulrajani et al. 2017, arXiv:1704.00028, appendix D: the gradient penalty, which takes second
    derivatives, failed with ELU in the critic. This one's second derivative is 2 s (1 - s) with
    s = sigmoid(2 x + 2).
    """
    return F.softplus(2 * x + 2) / 2 - 1


class SmoothELU(nn.Module):
    """``smooth_elu`` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return smooth_elu(x)


class Gate(nn.Module):
    """sigmoid(a) * tanh(b) with a and b the two halves of the channels: (B, 2C, ...) to (B, C, ...).

    Source: the gated nets of WGAN-GP's Figure 2; its code takes every other channel for a, which differs only
    in the channels' order.
    """

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.sigmoid(a) * torch.tanh(b)


def activation(name: Activation, slope: float = 0.2) -> nn.Module:
    """The activation called ``name``; ``slope``: of the leaky ReLU."""
    by_name: dict[str, nn.Module] = {
        "relu": nn.ReLU(),
        "leaky_relu": nn.LeakyReLU(slope),
        "smooth_elu": SmoothELU(),
        "tanh": nn.Tanh(),
        "elu": nn.ELU(),
    }
    return by_name[name]
