"""Jensen-Shannon divergences between the character n-grams of generated and of real lines."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ganlab.metrics.base import Accumulator, Collected, Metric, MetricError, Protocol, Real
from ganlab.schema import Count, checked

Codes = npt.NDArray[np.int64]
MAX_N = 4
BLOCK = 1 << 22  # n-grams sorted at a time


class Grams(NamedTuple):
    """Distinct n-grams, packed and sorted, and how often each occurs."""

    codes: Codes
    counts: Codes


class NgramJS(Metric[Real]):
    """``js4`` to ``js1``: the divergences of n-grams of 4 to 1 characters, base 2, in [0, 1].

    Of ``n`` generated lines against all lines of the real split, as in WGAN-GP's code (arXiv:1704.00028;
    language_helpers.py): n-grams do not cross lines, and padding counts. ``js4`` is the score: short n-grams
    are learned first. Real lines do not score 0 either: ``among_real`` is the value of ``n`` of them against
    the others, which a run logs at its start.
    """

    names = ("js4", "js3", "js2", "js1")
    better = "lower"
    kinds = ("text",)
    needs = frozenset({"samples", "real"})

    @checked
    def __init__(self, n: Count = 640) -> None:
        self.n = n
        self._counts: dict[str, list[Grams]] = {}  # of the real lines, by fingerprint

    def n_fake(self, protocol: Protocol) -> int:
        return self.n

    def check(self, protocol: Protocol, real: Real) -> None:
        if real.samples.shape[1] < MAX_N:
            length = real.samples.shape[1]
            raise MetricError(f"needs lines of {MAX_N} symbols, and dataset.length is {length}")

    def among_real(self, real: Real, protocol: Protocol) -> dict[str, float]:
        """The values of ``n`` real lines against the others; {} if there are fewer others."""
        if len(real.samples) < 2 * self.n:
            return {}
        return {f"js{k}": self.floor(real, k) for k in range(MAX_N, 0, -1)}

    def floor(self, real: Real, k: int) -> float:
        """The first ``n`` real lines against the others; data sets are shuffled when they are packed."""
        whole, part = self._real_counts(real)[k - 1], grams(real.samples[: self.n], k, _bits(real))
        counts = whole.counts.copy()
        counts[np.searchsorted(whole.codes, part.codes)] -= part.counts
        return divergence(Grams(whole.codes, counts), part)

    def start(self, real: Real, protocol: Protocol) -> Accumulator:
        self.check(protocol, real)

        def score(fake: Tensor) -> dict[str, float]:
            counts, bits, rows = self._real_counts(real), _bits(real), fake.cpu().numpy()
            return {f"js{k}": divergence(counts[k - 1], grams(rows, k, bits)) for k in range(MAX_N, 0, -1)}

        return Collected("samples", self.n, score)

    def _real_counts(self, real: Real) -> list[Grams]:
        key = str(real.facts["fingerprint"])
        if key not in self._counts:
            self._counts = {key: [grams(real.samples, k, _bits(real)) for k in range(1, MAX_N + 1)]}
        return self._counts[key]


def _bits(real: Real) -> int:
    """Bits per symbol: a vocabulary has at most 2^15 symbols, so that four fit in 60 bits."""
    return max(1, (len(real.facts["vocabulary"]) - 1).bit_length())


def grams(rows: npt.NDArray[np.int16], k: int, bits: int) -> Grams:
    """The n-grams of ``k`` symbols within rows (N, L) of symbols below 2^bits, sorted block by block."""
    step, parts = max(1, BLOCK // rows.shape[1]), list[Grams]()
    for start in range(0, len(rows), step):
        block = rows[start : start + step].astype(np.int64)
        packed = np.zeros((len(block), block.shape[1] - k + 1), np.int64)
        for i in range(k):
            packed = (packed << bits) | block[:, i : i + packed.shape[1]]
        parts.append(Grams(*np.unique(packed, return_counts=True)))
        if len(parts) > 8:  # merged early: they have n-grams in common
            parts = [merged(parts)]
    return merged(parts)


def merged(parts: list[Grams]) -> Grams:
    """The sum of several counts."""
    codes, where = np.unique(np.concatenate([p.codes for p in parts]), return_inverse=True)
    counts = np.zeros(len(codes), np.int64)
    np.add.at(counts, where, np.concatenate([p.counts for p in parts]))
    return Grams(codes, counts)


def divergence(a: Grams, b: Grams) -> float:
    """The Jensen-Shannon divergence (bits) of two counts: 0 if equal, 1 without a common n-gram."""
    codes = np.union1d(a.codes, b.codes)
    p, q = np.zeros(len(codes)), np.zeros(len(codes))
    p[np.searchsorted(codes, a.codes)] = a.counts / a.counts.sum()
    q[np.searchsorted(codes, b.codes)] = b.counts / b.counts.sum()
    m = (p + q) / 2
    return float((_half(p, m) + _half(q, m)) / 2)


def _half(p: npt.NDArray[np.float64], m: npt.NDArray[np.float64]) -> float:
    """KL(p || m), where 0 log 0 is 0."""
    support = p > 0
    return float((p[support] * np.log2(p[support] / m[support])).sum())
