"""Types that all packages share, with their shapes.

x: data, images as float32 (B, C, H, W) in [-1, 1]; y: class labels, int64 (B,); z: noise, float32 (B, Z).
Points are float32 (B, 2), or (B, 1) on a line; text is float32 (B, V, L): for each of L positions a weight
for each of V symbols.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, SupportsIndex

from torch import Tensor


class Batch(NamedTuple):
    """Input of D: ``x`` (B, C, H, W) float32 in [-1, 1] and ``y`` (B,) int64, or None."""

    x: Tensor
    y: Tensor | None = None


class Verdict(NamedTuple):
    """Output of D for a batch.

    score: (B,) raw output, unbounded, before any sigmoid; higher means more real.
    features: (B, F) input of the last layer, or None. class_logits: (B, K), or None.
    """

    score: Tensor
    features: Tensor | None = None
    class_logits: Tensor | None = None


Kind = str  # of samples, the name of a module in ``samples/``


class Shape(Protocol):
    """Shape of one sample, a named tuple of sizes, with its kind."""

    @property
    def kind(self) -> Kind: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[int]: ...
    def __getitem__(self, index: SupportsIndex, /) -> int: ...


class ImageShape(NamedTuple):
    """Shape of one image: channels, height, width (pixels). Stored as uint8."""

    channels: int
    height: int
    width: int

    @property
    def kind(self) -> Kind:
        return "images"


class PointShape(NamedTuple):
    """Shape of one point: its coordinates. Stored as float32, D's input."""

    dim: int

    @property
    def kind(self) -> Kind:
        return "points"


class TextShape(NamedTuple):
    """Shape of one line of text: symbols in the vocabulary, positions in a line. Stored as int16 (L,)."""

    vocabulary: int
    length: int

    @property
    def kind(self) -> Kind:
        return "text"


class Features(NamedTuple):
    """Output of a feature extractor for N images: ``pool`` (N, D) and class ``logits`` (N, K), float32."""

    pool: Tensor
    logits: Tensor
