"""Scenes of a D alone, for tests of methods: what the training step would hand to their hooks."""

from __future__ import annotations

from types import SimpleNamespace

from torch import nn

from ganlab.methods.base import Scene
from ganlab.types import Batch, Verdict


def players(d: nn.Module) -> SimpleNamespace:
    """A GAN as far as methods of D look at it."""
    return SimpleNamespace(discriminator=d)


def scene(d: nn.Module, real: Batch, fake: Batch, verdicts: tuple[Verdict, Verdict] | None = None) -> Scene:
    """A scene of ``real`` and ``fake``; without D's verdicts unless they are passed."""
    return Scene(players(d), real, fake, *(verdicts or (None, None)))  # type: ignore[arg-type]
