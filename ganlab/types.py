"""The nouns that every floor uses, with their shapes.

x: data, images as float32 (B, C, H, W) in [-1, 1]; y: class labels, int64 (B,); z: noise, float32 (B, Z).
Points are float32 (B, 2), or (B, 1) on a line; text is float32 (B, V, L): for each of L places the weights of
V symbols.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn


class Batch(NamedTuple):
    """What a player sees: ``x`` (B, C, H, W) float32 in [-1, 1] and ``y`` (B,) int64, or None."""

    x: Tensor
    y: Tensor | None = None


class Verdict(NamedTuple):
    """What D says of a batch.

    score: (B,) raw output, unbounded, before any sigmoid; higher means "looks real".
    features: (B, F) what the last layer sees, or None. class_logits: (B, K), or None.
    """

    score: Tensor
    features: Tensor | None = None
    class_logits: Tensor | None = None


Kind = Literal["images", "points", "text"]
NOUNS: dict[Kind, str] = {
    "images": "images",
    "points": "points",
    "text": "lines",
}  # several samples, in words


class ImageShape(NamedTuple):
    """Shape of one image: channels, height, width (pixels). Stored as uint8."""

    channels: int
    height: int
    width: int

    @property
    def kind(self) -> Kind:
        return "images"


class PointShape(NamedTuple):
    """Shape of one point: its coordinates. Stored as float32, as players see it."""

    dim: int

    @property
    def kind(self) -> Kind:
        return "points"


class TextShape(NamedTuple):
    """Shape of one line of text: symbols in the vocabulary, places in a line. Stored as int16 (L,)."""

    vocabulary: int
    length: int

    @property
    def kind(self) -> Kind:
        return "text"


Shape = ImageShape | PointShape | TextShape


class Features(NamedTuple):
    """What a feature extractor says of N images: ``pool`` (N, D) and class ``logits`` (N, K), float32."""

    pool: Tensor
    logits: Tensor


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


class Stabiliser:
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
