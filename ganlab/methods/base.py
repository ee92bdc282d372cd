"""Base classes of what stabilizes training: methods with hooks around updates, and feature norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ganlab.types import Batch


@dataclass(frozen=True)
class FeatureNorm:
    """What D puts beside its activations, and where: called as ``norm(channels)`` for one layer's module.

    make: channels -> module for (B, C, ...). first: after D's first convolution too. after_activation: the
    module stands behind the activation that follows its convolution, not between the two.
    """

    make: Callable[[int], nn.Module]
    first: bool = False
    after_activation: bool = False

    def __call__(self, channels: int) -> nn.Module:
        module = self.make(channels)
        module.after_activation = self.after_activation  # type: ignore[assignment]
        return module


class Method:
    """Something done to D to keep training stable: a normalisation, a penalty, a constraint.

    One entry of the ``normalization`` group. Override the hooks you need; the engine calls every hook of
    every stabiliser and knows none of them by name.
    """

    has_penalty = False
    normalizes_weights = False  # one such stabiliser a run
    per_sample = False  # its penalty takes D's score of a sample for that sample's alone: no batch norm
    looks_at_passes = False  # D differs from pass to pass: real and generated images must not share one
    capturable = True  # its hooks read no value on the host, so that an update may be recorded

    def feature_norm(self) -> FeatureNorm | None:
        """What D puts after its convolutions, or None."""
        return None

    def prepare(self, d: nn.Module) -> None:
        """Once, right after D is built and initialised: re-initialise or reparametrise its weights."""

    def before_update(self, d: nn.Module) -> None:
        """Before each generator update and the D updates with it: nothing kept from earlier may be used."""

    def penalty(self, d: nn.Module, real: Batch, fake: Batch) -> Tensor:
        """A scalar added to D's loss, its weight included. Called only if ``has_penalty``."""
        raise NotImplementedError

    def after_update(self, d: nn.Module) -> None:
        """Right after each optimiser step of D."""
