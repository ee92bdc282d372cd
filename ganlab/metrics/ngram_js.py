"""Character n-grams of generated lines against those of the real ones: Jensen-Shannon divergences."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ganlab.metrics.base import MetricError, Protocol, Real, SampleMetric
from ganlab.schema import Count, checked

Codes = npt.NDArray[np.int64]
MOST = 4
BLOCK = 1 << 22  # n-grams sorted at a time


class Grams(NamedTuple):
    """Distinct n-grams, packed and sorted, and how often each occurs."""

    codes: Codes
    counts: Codes


class NgramJS(SampleMetric):
    """``js4`` to ``js1``: the divergences of n-grams of 4 to 1 characters, base 2, in [0, 1].

    Of ``n`` generated lines against all lines of the real split, as in WGAN-GP's code (arXiv:1704.00028;
    language_helpers.py): n-grams do not cross lines, and those of the padding count. ``js4`` leads: short
    n-grams are learnt first. Real lines are not at 0 either: ``floor`` gives the value of ``n`` of them
    against the others, which ``among_real`` gives and a run tells at its start.
    """

    names = ("js4", "js3", "js2", "js1")
    better = "lower"
    kinds = ("text",)

    @checked
    def __init__(self, n: Count = 640) -> None:
        self.n = n
        self._kept: dict[str, list[Grams]] = {}  # of one set of real lines

    def options(self) -> dict[str, Any]:
        return {"n": self.n}

    def n_fake(self, protocol: Protocol) -> int:
        return self.n

    def check(self, protocol: Protocol, real: Real) -> None:
        if real.samples.shape[1] < MOST:
            length = real.samples.shape[1]
            raise MetricError(f"needs lines of {MOST} symbols, and dataset.length is {length}")

    def among_real(self, real: Real) -> dict[str, float]:
        """The values of ``n`` real lines against the others; none where there are not as many others."""
        if len(real.samples) < 2 * self.n:
            return {}
        return {f"js{k}": self.floor(real, k) for k in range(MOST, 0, -1)}

    def floor(self, real: Real, k: int) -> float:
        """Of the first ``n`` real lines against the others; a training set was shuffled when it was made."""
        every, some = self._real(real)[k - 1], grams(real.samples[: self.n], k, _bits(real))
        counts = every.counts.copy()
        counts[np.searchsorted(every.codes, some.codes)] -= some.counts
        return divergence(Grams(every.codes, counts), some)

    def __call__(self, real: Real, fake: Tensor, protocol: Protocol) -> dict[str, float]:
        self.check(protocol, real)
        known, bits, rows = self._real(real), _bits(real), fake.numpy()
        return {f"js{k}": divergence(known[k - 1], grams(rows, k, bits)) for k in range(MOST, 0, -1)}

    def _real(self, real: Real) -> list[Grams]:
        key = str(real.facts["fingerprint"])
        if key not in self._kept:
            found = [grams(real.samples, k, _bits(real)) for k in range(1, MOST + 1)]
            self._kept = {key: found}
        return self._kept[key]


def _bits(real: Real) -> int:
    """Of one symbol: a vocabulary has 2^15 at most, so that four fit 60 bits."""
    return max(1, (len(real.facts["vocabulary"]) - 1).bit_length())


def grams(rows: npt.NDArray[np.int16], k: int, bits: int) -> Grams:
    """Of symbols (N, L), each below 2^bits: every run of ``k`` within a row. Sorted block by block."""
    at, parts = max(1, BLOCK // rows.shape[1]), list[Grams]()
    for start in range(0, len(rows), at):
        block = rows[start : start + at].astype(np.int64)
        packed = np.zeros((len(block), block.shape[1] - k + 1), np.int64)
        for i in range(k):
            packed = (packed << bits) | block[:, i : i + packed.shape[1]]
        parts.append(Grams(*np.unique(packed, return_counts=True)))
        if len(parts) > 8:  # few at a time: they overlap
            parts = [merged(parts)]
    return merged(parts)


def merged(parts: list[Grams]) -> Grams:
    """The sums of several counts."""
    codes, where = np.unique(np.concatenate([p.codes for p in parts]), return_inverse=True)
    counts = np.zeros(len(codes), np.int64)
    np.add.at(counts, where, np.concatenate([p.counts for p in parts]))
    return Grams(codes, counts)


def divergence(a: Grams, b: Grams) -> float:
    """The Jensen-Shannon divergence (bits) of two counts: 0 of equal ones, 1 without a common n-gram."""
    codes = np.union1d(a.codes, b.codes)
    p, q = np.zeros(len(codes)), np.zeros(len(codes))
    p[np.searchsorted(codes, a.codes)] = a.counts / a.counts.sum()
    q[np.searchsorted(codes, b.codes)] = b.counts / b.counts.sum()
    m = (p + q) / 2
    return float((_half(p, m) + _half(q, m)) / 2)


def _half(p: npt.NDArray[np.float64], m: npt.NDArray[np.float64]) -> float:
    """KL(p || m), where 0 log 0 is 0."""
    there = p > 0
    return float((p[there] * np.log2(p[there] / m[there])).sum())
