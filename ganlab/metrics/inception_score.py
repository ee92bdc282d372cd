"""Inception Score: exp of the mean KL divergence of p(y|x) from p(y), higher is better.

Source: Salimans et al. 2016, arXiv:1606.03498, section 4; splits in order and their population standard
deviation as in the authors' code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ganlab.metrics.base import Accumulator, Fakes, Metric, MetricError, Protocol, require_count


class RunningScore(Accumulator):
    """The score of the first ``n`` images over ``splits`` consecutive parts.

    Part i is images i n // splits to (i + 1) n // splits, as in torch-fidelity. The mean divergence
    within a part is mean(sum p log p) - sum(q log q) with q the mean of p: two sums, in float64. log q is
    accumulated as a logarithm, so it is finite where q underflows.
    """

    def __init__(self, n: int, splits: int) -> None:
        self.n, self.done = n, 0
        self.ends = [(i + 1) * n // splits for i in range(splits)]
        self.inner: list[Tensor] = []  # by part, the sum of p log p
        self.log_sum: list[Tensor] = []  # by part, log of the sum of p: (K,)

    def add(self, fakes: Fakes) -> None:
        logits = fakes.logits[: self.n - self.done]
        while len(logits):
            part = next(i for i, end in enumerate(self.ends) if end > self.done)
            rows, logits = logits.tensor_split([self.ends[part] - self.done])
            log_p = rows.double().log_softmax(1)
            inner, log_sum = (log_p.exp() * log_p).sum(), log_p.logsumexp(0)
            if part < len(self.inner):
                self.inner[part] += inner
                self.log_sum[part] = torch.logaddexp(self.log_sum[part], log_sum)
            else:
                self.inner.append(inner)
                self.log_sum.append(log_sum)
            self.done += len(rows)

    def value(self) -> dict[str, float]:
        require_count(self.done, self.n)
        begins = [0, *self.ends[:-1]]
        sizes = [end - begin for begin, end in zip(begins, self.ends, strict=True)]
        scores = []
        for inner, log_sum, size in zip(self.inner, self.log_sum, sizes, strict=True):
            log_q = log_sum - math.log(size)
            scores.append((inner / size - (log_q.exp() * log_q).sum()).exp())
        values: list[float] = torch.stack(scores).tolist()
        if not all(map(math.isfinite, values)):
            raise MetricError("features are not finite")
        mean = sum(values) / len(values)
        return {"is": mean, "is_std": math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))}


class InceptionScore(Metric[None]):
    """IS of the first ``is_n_fake`` generated images over ``is_splits`` splits; uses no real images."""

    names = ("is", "is_std")
    better = "higher"
    needs = frozenset({"logits"})

    def n_fake(self, protocol: Protocol) -> int:
        return protocol.is_n_fake

    def start(self, real: None, protocol: Protocol) -> Accumulator:
        return RunningScore(protocol.is_n_fake, protocol.is_splits)
