"""The interface of feature extractors: uint8 images to float32 pooled features and class logits."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from ganlab.types import Features

Precision = Literal["fp32", "bf16"]


class Extractor(ABC):
    """A frozen network whose features IS, FID and KID use.

    name: as in ``metric.extractor``. suffix: appended to the scores' names; "" only for the 2015 Inception
    network in fp32, whose scores are comparable with published ones. feature_dim: D of ``pool``.
    num_classes: K of ``logits``, 0 without logits. download: whether ``check`` may download missing weights.
    precision: of its convolutions.
    """

    name: ClassVar[str]
    suffix: str
    feature_dim: ClassVar[int]
    num_classes: ClassVar[int]
    download: bool = True
    precision: Precision = "fp32"

    def choose(self, precision: Precision) -> None:
        """Set ``precision``. The names of scores in bf16 end in ``_bf16``: they are not comparable."""
        self.precision = precision
        if precision == "bf16":
            self.suffix += "_bf16"

    @property
    def precision_record(self) -> dict[str, str | int | float]:
        """The entry of ``identity`` for the precision; none for fp32."""
        return {} if self.precision == "fp32" else {"precision": self.precision}

    def conv_autocast(self, device: torch.device) -> torch.autocast:
        """Autocast for the convolutions, in bfloat16 if chosen; use it inside ``exact_fp32``."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @abstractmethod
    def identity(self) -> dict[str, str | int | float]:
        """Everything that affects the features (name, sha256 of the weights, layer, resize), as plain values.

        Part of every protocol record and of the cache key of reference statistics. Raises EnvError if the
        weights are not available.
        """

    @abstractmethod
    def check(self) -> None:
        """Before training: raise EnvError, one line, if the weights are not available."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move to ``device``; returns itself."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Features:
        """Features of ``images``, uint8 (B, 3, H, W): ``pool`` (B, D) and ``logits`` (B, K), float32.

        In fp32 without TF32, or in bf16 if chosen, without gradient. A sample's features do not depend on
        the rest of the batch (beyond 1e-5 in fp32). The result is on the extractor's device. Raises
        ValueError for other input.
        """


class NetworkExtractor(Extractor):
    """An extractor whose network comes from a file of weights, which is read at first use."""

    def __init__(self, precision: Precision) -> None:
        self.choose(precision)
        self._device = torch.device("cpu")
        self._net: nn.Module | None = None
        self._sha256 = ""

    @abstractmethod
    def _read(self) -> tuple[nn.Module, str]:
        """The frozen network, and the sha256 of its weights. Raises EnvError, one line."""

    def check(self) -> None:
        self._load()

    def to(self, device: torch.device | str) -> Self:
        self._device = torch.device(device)
        if self._net is not None:
            self._place(self._net)
        return self

    def _load(self) -> Any:
        """The network on the device."""
        if self._net is None:
            net, self._sha256 = self._read()
            self._net = self._place(net)
        return self._net

    def _place(self, net: nn.Module) -> nn.Module:
        # channels last: 1.4 times faster on a CPU, and tensor cores prefer it
        return net.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def check_images(images: Tensor, channels: tuple[int, ...] = (3,)) -> None:
    """Raise ValueError unless ``images`` is uint8 (B, C, H, W) with C among ``channels``."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in channels:
        expected = " or ".join(map(str, channels))
        raise ValueError(
            f"an extractor takes uint8 images (B, {expected}, H, W), got {images.dtype} {tuple(images.shape)}"
        )


@contextlib.contextmanager
def exact_fp32(device_type: str = "cpu") -> Iterator[None]:
    """No gradients, autocast, TF32 or bf16 products, nor cuDNN autotuner inside the block.

    The autotuner is off because it may choose another algorithm for another batch size.
    """
    b: Any = torch.backends
    switches: list[tuple[Any, str, bool | str]] = [(b.cudnn, "benchmark", False)]
    switches += [(place, "allow_tf32", False) for place in (b.cuda.matmul, b.cudnn)]
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
