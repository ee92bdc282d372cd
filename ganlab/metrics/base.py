"""What a metric is, and the statistics of the reference images that metrics compare with.

``Metric`` scores the features of all generated images at once, ``GroupMetric`` one group of images after
another (each class, or all as one) and then the mean over the groups.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ganlab.metrics.protocol import Protocol as Protocol  # the one word that every metric needs
from ganlab.types import Features, ImageShape, Kind

BLOCK = 5000  # rows taken to float64 at a time: 80 MB at 2048 features


LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


class MetricError(ValueError):
    """There is no value, and this is the reason. Never stops training."""


@dataclass(frozen=True)
class Reference:
    """Statistics of the real images' pooled features, on the CPU.

    n: images behind the moments. mean (D,), cov (D, D) unbiased, root (D, D) the symmetric square root of
    cov: float64. pool (M, D): float32 features of M <= n of them, all where memory allows.
    """

    n: int
    mean: Tensor
    cov: Tensor
    root: Tensor
    pool: Tensor


class ClassReference(NamedTuple):
    """Gaussian of the pooled features of one class's ``n`` real images, float64, on the CPU.

    mean (D,); factor (r, D) with factor^T factor = the unbiased covariance, r = min(n, D).
    """

    n: int
    mean: Tensor
    factor: Tensor


class Group(NamedTuple):
    """One class as a ``GroupMetric`` sees it; what it did not ask for is None.

    label: the class, or None where all images are one group. images: generated, uint8 (n, C, H, W), with
    ``needs_images``. pool: features of generated images (n, D) float32, with ``uses_features``. real: with
    ``needs_real``.
    """

    label: int | None
    images: Tensor | None
    pool: Tensor | None
    real: ClassReference | None


class Measure(ABC):
    """What ``Metric`` and ``GroupMetric`` have in common.

    names: of its values, the score itself first. better: the good direction. needs_real: the real images'
    statistics. kinds: of samples that it can score. needs_labels: a conditional generator, asked for one
    class at a time. uses_features: its numbers depend on the feature network, whose suffix ends its names
    then. protocol_fields: the fields of ``Protocol`` that move this metric's numbers alone; a record tells
    them only where it is used.
    """

    names: ClassVar[tuple[str, ...]]
    better: ClassVar[Literal["lower", "higher"]]
    needs_real: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    kinds: ClassVar[tuple[Kind, ...]] = ("images",)
    uses_features: ClassVar[bool] = True
    protocol_fields: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def n_fake(self, protocol: Protocol) -> int:
        """How many generated images it wants (of each group); it gets as many or more, uses the first."""

    def options(self) -> dict[str, Any]:
        """Settings of its own that move its numbers, as plain values; they join the protocol record."""
        return {}


class Running(ABC):
    """A metric under way: sums over the images it was shown, instead of their features."""

    @abstractmethod
    def add(self, features: Features) -> None:
        """Take in the next images, ``BLOCK`` at a time (the last ones: fewer); leave out those not wanted."""

    @abstractmethod
    def value(self, real: Reference | None) -> dict[str, float]:
        """What ``Metric.__call__`` gives."""


class Metric(Measure):
    """A score of the features of generated images.

    keeps: which of ``Features`` it wants of all its images at once, in the call. A metric that needs none
    names none and has a ``running`` form instead; then memory does not grow with the number of images.
    """

    keeps: ClassVar[tuple[str, ...]] = ("pool", "logits")

    def running(self, protocol: Protocol) -> Running | None:
        """A fresh running form, or None where there is none: then the features are kept for the call."""
        return None

    def check(self, protocol: Protocol, n_real: int) -> None:
        """Before training: raise MetricError, the smallest N named, if these counts can give no value."""

    def among_real(self, real: Reference, protocol: Protocol) -> dict[str, float]:
        """What other real images would score, by name; {}: unknown. A G that scores better is suspicious."""
        return {}

    @abstractmethod
    def __call__(self, real: Reference | None, fake: Features, protocol: Protocol) -> dict[str, float]:
        """A value for each of ``names``. ``real`` is None only if ``needs_real`` is false.

        Computes in float64 on ``fake``'s device. Raises MetricError where there is no value.
        """


class Streamed(Metric):
    """A metric whose running form is all there is."""

    keeps = ()

    @abstractmethod
    def running(self, protocol: Protocol) -> Running: ...

    def __call__(self, real: Reference | None, fake: Features, protocol: Protocol) -> dict[str, float]:
        running = self.running(protocol)
        for pool, logits in zip(fake.pool.split(BLOCK), fake.logits.split(BLOCK), strict=True):
            running.add(Features(pool, logits))
        return running.value(real)


class GroupMetric(Measure):
    """A score of one group of images; the value is the mean over the groups.

    With ``needs_labels`` the groups are the classes, else all images are one. needs_images: the images
    themselves. scores_real: its value of as many real images of each class goes into the details.
    """

    needs_images: ClassVar[bool] = False
    scores_real: ClassVar[bool] = False

    def check(self, protocol: Protocol, shape: ImageShape, n_real: dict[str, int]) -> None:
        """Before training: raise MetricError if images of ``shape`` can give no value, or the real ones.

        ``n_real``: how many there are by class, of the classes that are scored; empty without classes.
        """

    @abstractmethod
    def __call__(self, group: Group, protocol: Protocol) -> float:
        """The value of one group. Raises MetricError where there is none."""


class Real(NamedTuple):
    """Real samples as they are stored (N, ...), and the facts that their dataset tells of them."""

    samples: Any
    facts: Mapping[str, Any]


class SampleMetric(Measure):
    """A score of generated samples themselves, as they are stored, against the real ones: no features."""

    needs_real = False
    uses_features = False

    def not_applicable(self, real: Real) -> str:
        """Why the metric does not apply to this dataset (it is then dropped); "" if it does."""
        return ""

    def check(self, protocol: Protocol, real: Real) -> None:
        """Before training: raise MetricError if these real samples can give no value."""

    def among_real(self, real: Real) -> dict[str, float]:
        """What other real samples would score, by name; {}: unknown. A G that scores better is suspicious."""
        return {}

    @abstractmethod
    def __call__(self, real: Real, fake: Tensor, protocol: Protocol) -> dict[str, float]:
        """A value for each of ``names``, of ``fake`` (n, ...) on the CPU. Raises MetricError without one."""


class Moments:
    """Mean and unbiased covariance of rows that come in pieces, in float64.

    Sums are taken about the first piece's mean, so that a large common offset costs no digits.
    """

    def __init__(self) -> None:
        self.n = 0
        self._shift = self._sum = self._outer = torch.empty(0)

    def add(self, rows: Tensor) -> None:
        """Take in ``rows`` (B, D) of any float type; all calls on one device, which must know float64."""
        for piece in rows.split(BLOCK):
            x = piece.double()
            if self.n == 0:
                self._shift = x.mean(0)
                self._sum = torch.zeros_like(self._shift)
                self._outer = torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype, device=x.device)
            x = x - self._shift
            self._sum += x.sum(0)
            self._outer.addmm_(x.T, x)
            self.n += len(x)

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D) with n - 1 in the denominator. Raises MetricError as needed."""
        if self.n < 2:
            raise MetricError(f"a covariance needs at least 2 images, there are {self.n}")
        off = self._sum / self.n
        cov = (self._outer - self.n * torch.outer(off, off)) / (self.n - 1)
        if not bool(torch.isfinite(cov).all()):
            raise MetricError("features are not finite")
        return self._shift + off, (cov + cov.T) / 2


def moments(pool: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D), float64, of features (N, D). Raises MetricError."""
    collected = Moments()
    collected.add(pool)
    return collected.result()


def square_root(cov: Tensor) -> Tensor:
    """The symmetric square root of a covariance (D, D); what rounding made negative counts as 0."""
    values, vectors = torch.linalg.eigh(cov)
    scaled: Tensor = vectors * values.clamp(min=0).sqrt()
    return scaled.mm(vectors.T)


def enough(there: int, wanted: int) -> None:
    """Raise MetricError unless there are as many generated images."""
    if there < wanted:
        raise MetricError(f"needs at least {wanted} generated images, there are {there}")


def take(features: Tensor, n: int) -> Tensor:
    """The first ``n`` rows. Raises MetricError unless there are as many and all are finite."""
    enough(len(features), n)
    if not bool(torch.isfinite(features[:n]).all()):
        raise MetricError("features are not finite")
    return features[:n]
