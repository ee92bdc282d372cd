"""The nouns that every floor uses, with their shapes.

x: data, images as float32 (B, C, H, W) in [-1, 1]; y: class labels, int64 (B,); z: noise, float32 (B, Z).
Points are float32 (B, 2), or (B, 1) on a line; text is float32 (B, V, L): for each of L places the weights of
V symbols.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor


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
