"""Base classes of stabilization methods (hooks around updates) and of feature norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ganlab.types import Batch


@dataclass(frozen=True)
class FeatureNorm:
    """A feature norm of D and its position; ``norm(channels)`` builds the module of one layer.

    make: channels -> module for (B, C, ...). first: after D's first convolution too. after_activation: the
    module follows the activation instead of standing between convolution and activation.
    """

    make: Callable[[int], nn.Module]
    first: bool = False
    after_activation: bool = False

    def __call__(self, channels: int) -> nn.Module:
        module = self.make(channels)
        module.after_activation = self.after_activation  # type: ignore[assignment]
        return module


class Method:
    """A method that stabilizes D: a normalization, a penalty or a constraint.

    One entry of the ``normalization`` group. Override the hooks you need; the training step calls
    every hook of every method.
    """

    has_penalty = False
    normalizes_weights = False  # at most one such method per run
    needs_per_sample_d = False  # its penalty needs D to score each sample independently: no batch norm
    differs_per_forward = False  # D changes with each forward: real and fake batches must not share one
    graph_safe = True  # its hooks read no value on the host: updates may be recorded as CUDA graphs

    def feature_norm(self) -> FeatureNorm | None:
        """The feature norm after D's convolutions, or None."""
        return None

    def prepare(self, d: nn.Module) -> None:
        """Reinitialize or reparametrize D's weights; called once, right after D is initialized."""

    def before_update(self, d: nn.Module) -> None:
        """Called before each G update and its D updates: discard cached values."""

    def penalty(self, d: nn.Module, real: Batch, fake: Batch) -> Tensor:
        """The weighted penalty, a scalar added to D's loss. Called only if ``has_penalty``."""
        raise NotImplementedError

    def after_update(self, d: nn.Module) -> None:
        """Called right after each optimizer step of D."""
