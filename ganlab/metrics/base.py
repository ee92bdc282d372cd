"""The interface of metrics, and the statistics of real images that they compare with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from ganlab.metrics.protocol import Protocol as Protocol  # every metric uses it
from ganlab.schema import parameters
from ganlab.types import Kind, Shape

BLOCK = 5000  # rows converted to float64 at a time: 80 MB at 2048 features
EMPTY = torch.empty(0)

LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]
Need = Literal["real", "labels", "features", "logits", "samples", "classifier"]
Field = Literal["pool", "logits", "samples"]


class MetricError(ValueError):
    """A metric has no value; the message is the reason. Never stops training."""


class NotApplicable(MetricError):
    """A metric does not apply to a dataset; it is left out, unless there is no other."""


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


class Real(NamedTuple):
    """The real samples before any feature is computed.

    samples: as stored (N, ...), and facts: their manifest, both for metrics that need "samples". n: samples
    to compare with. shape: of one sample. class_counts: samples of each scored class, by name, for metrics
    that need "labels".
    """

    samples: Any = None
    facts: Mapping[str, Any] = {}
    n: int = 0
    shape: Shape | None = None
    class_counts: Mapping[str, int] = {}


class Fakes(NamedTuple):
    """Consecutive generated samples; a field that no metric needs is empty.

    pool (n, D), logits (n, K): their features, float32. samples: as stored, images uint8 (n, C, H, W), points
    float32 (n, 2), text int16 (n, L). The number of rows may differ between fields.
    """

    pool: Tensor = EMPTY
    logits: Tensor = EMPTY
    samples: Tensor = EMPTY


class Accumulator(ABC):
    """A metric during a pass over generated samples: sums, or the samples themselves."""

    @abstractmethod
    def add(self, fakes: Fakes) -> None:
        """Add the next samples: ``BLOCK`` of each field, fewer at the end. Ignore those beyond ``n_fake``.

        The tensors are overwritten afterwards.
        """

    @abstractmethod
    def value(self) -> dict[str, float]:
        """The value of each of ``names``. Raises MetricError if there is none."""


class Collected(Accumulator):
    """Keeps the first ``n`` rows of a field and computes ``score`` of them at the end."""

    def __init__(self, field: Field, n: int, score: Callable[[Tensor], dict[str, float]]) -> None:
        self.field, self.n, self.score = field, n, score
        self.done, self.rows = 0, EMPTY

    def add(self, fakes: Fakes) -> None:
        new: Tensor = getattr(fakes, self.field)[: self.n - self.done]
        if self.done == 0:
            self.rows = new.new_empty(self.n, *new.shape[1:])
        self.rows[self.done : self.done + len(new)] = new
        self.done += len(new)

    def value(self) -> dict[str, float]:
        require_count(self.done, self.n)
        if self.field != "samples":
            require_finite(self.rows)
        return self.score(self.rows)


RealT = TypeVar("RealT")


class Metric(ABC, Generic[RealT]):
    """A score of generated samples. Computed in float64, on the device of the features.

    names: of its values, the score itself first. better: the good direction; ``lower``: names for which it is
    lower nevertheless. kinds: of samples it can score.

    needs: "features" or "logits" of the extractor, whose suffix is then added to the names; generated
    "samples" as stored; class "labels": a conditional generator and a labelled dataset; "real" samples:
    ``RealT`` is then ``Reference`` for a metric on features, ``ClassReference`` if also per_class, and
    ``Real`` for one on samples.

    "classifier": D's class logits; the metric is then no accumulator, but has ``split`` and ``of_classifier``
    (``metrics/test_error.py``).

    per_class: computed of each class separately, then averaged. own_record: its protocol is recorded apart
    from that of the other scores, so that its options do not change their ids. protocol_fields: the fields
    of ``Protocol`` in ``OPTIONAL`` that affect it.
    """

    names: ClassVar[tuple[str, ...]]
    better: ClassVar[Literal["lower", "higher"]]
    lower: ClassVar[frozenset[str]] = frozenset()
    kinds: ClassVar[tuple[Kind, ...]] = ("images",)
    needs: ClassVar[frozenset[Need]]
    per_class: ClassVar[bool] = False
    own_record: ClassVar[bool] = False
    protocol_fields: ClassVar[tuple[str, ...]] = ()

    @property
    def uses_extractor(self) -> bool:
        """Whether its values depend on the feature network."""
        return not self.needs.isdisjoint({"features", "logits"})

    @abstractmethod
    def n_fake(self, protocol: Protocol) -> int:
        """Number of generated samples it uses, of each class if ``per_class``. It may be given more."""

    def options(self) -> dict[str, Any]:
        """Its settings, as plain values for the protocol record: the constructor's arguments."""
        return {name: getattr(self, name) for name in parameters(type(self))}

    def check(self, protocol: Protocol, real: Real) -> None:
        """Before training: raise MetricError, with the smallest possible count, if there can be no value.

        Raises NotApplicable if the metric makes no sense for this dataset.
        """

    @abstractmethod
    def start(self, real: RealT, protocol: Protocol) -> Accumulator:
        """An accumulator for a pass over ``n_fake`` samples. ``real`` is None unless "real" is needed."""

    def among_real(self, real: RealT, protocol: Protocol) -> dict[str, float]:
        """The score of other real samples, by name; {}: unknown. A generator that beats it is suspicious."""
        return {}

    def __call__(self, real: RealT, fakes: Fakes, protocol: Protocol) -> dict[str, float]:
        """The values for ``fakes``. Raises MetricError if there are none."""
        accumulator = self.start(real, protocol)
        for first in range(0, max(map(len, fakes)), BLOCK):
            accumulator.add(Fakes(*(rows[first : first + BLOCK] for rows in fakes)))
        return accumulator.value()


class Moments:
    """Mean and unbiased covariance of rows added in pieces, in float64.

    Sums are taken about the first piece's mean, so that a large common offset costs no digits.
    """

    def __init__(self) -> None:
        self.n = 0
        self._shift = self._sum = self._outer = torch.empty(0)

    def add(self, rows: Tensor) -> None:
        """Add ``rows`` (B, D) of any float type, always on the same device, which must support float64."""
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
        """Mean (D,) and covariance (D, D) divided by n - 1. Raises MetricError if not finite or n < 2."""
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
    """The symmetric square root of a covariance (D, D); negative eigenvalues (rounding) count as 0."""
    values, vectors = torch.linalg.eigh(cov)
    scaled: Tensor = vectors * values.clamp(min=0).sqrt()
    return scaled.mm(vectors.T)


def require_count(n: int, minimum: int) -> None:
    """Raise MetricError unless ``n`` generated samples are at least ``minimum``."""
    if n < minimum:
        raise MetricError(f"needs at least {minimum} generated images, there are {n}")


def require_finite(features: Tensor) -> None:
    """Raise MetricError unless all values are finite."""
    if not bool(torch.isfinite(features).all()):
        raise MetricError("features are not finite")
