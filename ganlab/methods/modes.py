"""Context managers for evaluation mode and unfused resampling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def unfolded(net: nn.Module) -> Iterator[None]:
    """Inside, residual blocks call their convolutions as modules, with the maps as the papers draw them."""
    folded = [m for m in net.modules() if getattr(m, "folded", False)]
    try:
        for m in folded:
            m.folded = False  # type: ignore[assignment]
        yield
    finally:
        for m in folded:
            m.folded = True  # type: ignore[assignment]


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode, where reading a normalised weight has no side effects; every mode comes back."""
    modes = [(m, m.training) for m in net.modules()]
    try:
        net.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
