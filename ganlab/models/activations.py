"""Activations that nets choose by name, as modules: each acts on its own, but ``Gate``."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal[
    "relu", "leaky_relu", "smooth_elu", "tanh", "elu"
]  # WGAN-GP's Table 1, and the ELU of appendix D


class _ReLU(torch.autograd.Function):
    """ReLU whose second derivative is not there, where torch's adds a map of zeros to the gradient."""

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
    """max(x, 0), to the bit ``F.relu``; updates with a gradient penalty take fewer operations."""
    return F.relu(x) if torch.compiler.is_compiling() else _ReLU.apply(x)


def smooth_elu(x: Tensor) -> Tensor:
    """softplus(2 x + 2) / 2 - 1: about x above 0, -1 far below, and smooth everywhere.

    Source: Gulrajani et al. 2017, arXiv:1704.00028, appendix D: the gradient penalty, whose
    updates take second derivatives, failed with a critic of ELUs. This one's second derivative is
    2 s (1 - s), s = sigmoid(2 x + 2).
    """
    return F.softplus(2 * x + 2) / 2 - 1


class SmoothELU(nn.Module):
    """``smooth_elu`` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return smooth_elu(x)


class Gate(nn.Module):
    """sigmoid(a) * tanh(b), a and b the halves of the channels: (B, 2C, ...) to (B, C, ...).

    Source: the gated nets of WGAN-GP's Figure 2; its code takes every other channel for a, which is the same
    but for the channels' order.
    """

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.sigmoid(a) * torch.tanh(b)


def activation(name: Activation, slope: float = 0.2) -> nn.Module:
    """The activation called ``name``; ``slope``: of the leaky ReLU."""
    made: dict[str, nn.Module] = {
        "relu": nn.ReLU(),
        "leaky_relu": nn.LeakyReLU(slope),
        "smooth_elu": SmoothELU(),
        "tanh": nn.Tanh(),
        "elu": nn.ELU(),
    }
    return made[name]
