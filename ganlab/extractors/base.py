"""What every feature extractor is: uint8 images in, float32 pooled features and class logits out."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from ganlab.types import Features

Precision = Literal["fp32", "bf16"]


class Extractor(ABC):
    """A frozen network behind IS, FID and KID.

    name: as in ``metric.extractor``. suffix: ends the scores' names ("" for the 2015 Inception network in
    fp32 alone, whose scores may be compared with published ones). feature_dim: D of ``pool``; num_classes: K
    of ``logits``. download: whether ``check`` may fetch missing weights. precision: of its convolutions.
    """

    name: ClassVar[str]
    suffix: str
    feature_dim: ClassVar[int]
    num_classes: ClassVar[int]
    download: bool = True
    precision: Precision = "fp32"

    def choose(self, precision: Precision) -> None:
        """Set ``precision``. Scores in bf16 are others: their names end in ``_bf16``."""
        self.precision = precision
        if precision == "bf16":
            self.suffix += "_bf16"

    @property
    def told(self) -> dict[str, str | int | float]:
        """The precision as a part of ``identity``, where it is not fp32."""
        return {} if self.precision == "fp32" else {"precision": self.precision}

    def convolving(self, device: torch.device) -> torch.autocast:
        """Inside ``exact_fp32``: around what may run in bfloat16 where that was chosen."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @abstractmethod
    def identity(self) -> dict[str, str | int | float]:
        """What the numbers depend on: name, sha256 of the weights, layer, resize. Plain values.

        Part of every protocol record and of the cache key of reference statistics.
        Raises EnvError when the weights can't be had.
        """

    @abstractmethod
    def check(self) -> None:
        """Called before training: raise EnvError, one line, when the weights can't be had."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Compute on ``device`` from now on; returns itself."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Features:
        """Features of ``images``, uint8 (B, 3, H, W): ``pool`` (B, D) and ``logits`` (B, K), float32.

        In fp32 with TF32 off, or bf16 where it was chosen, without gradient; a sample's features do not
        depend on the batch it is in (beyond 1e-5 in fp32). The result lies on the extractor's device. Raises
        ValueError for other images.
        """


def check_images(images: Tensor, channels: tuple[int, ...] = (3,)) -> None:
    """Raise ValueError unless ``images`` is uint8 (B, C, H, W) with C among ``channels``."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in channels:
        wanted = " or ".join(map(str, channels))
        raise ValueError(
            f"an extractor takes uint8 images (B, {wanted}, H, W), got {images.dtype} {tuple(images.shape)}"
        )


@contextlib.contextmanager
def exact_fp32(device_type: str = "cpu") -> Iterator[None]:
    """Inside: no gradient, no autocast, no TF32 or bf16 products, no cuDNN autotuner. Afterwards: as before.

    The autotuner goes too: it may pick another algorithm for another batch size.
    """
    b: Any = torch.backends
    switches: list[tuple[Any, str, bool | str]] = [(b.cudnn, "benchmark", False)]
    switches += [(place, "allow_tf32", False) for place in (b.cuda.matmul, b.cudnn)]  # see set_precision
    if hasattr(b, "mkldnn") and hasattr(b.mkldnn, "conv"):  # torch 2.9 on
        switches += [(place, "fp32_precision", "ieee") for place in (b.mkldnn.matmul, b.mkldnn.conv)]
    before = [getattr(place, name) for place, name, _ in switches]
    try:
        for place, name, value in switches:
            setattr(place, name, value)
        with torch.no_grad(), torch.autocast(device_type, enabled=False):
            yield
    finally:
        for (place, name, _), value in zip(switches, before, strict=True):
            setattr(place, name, value)
