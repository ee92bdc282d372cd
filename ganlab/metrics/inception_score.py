"""Inception Score: exp of the mean KL divergence of p(y|x) from p(y), higher is better.

Source: Salimans et al. 2016, arXiv:1606.03498, section 4; splits in order and their population standard
deviation as in the authors' code.
"""

from __future__ import annotations

import math

from torch import Tensor

from ganlab.metrics.base import Metric, MetricError, Protocol, Reference, take
from ganlab.types import Features


def inception_score(logits: Tensor, splits: int) -> tuple[float, float]:
    """Mean and population standard deviation of the score over ``splits`` consecutive parts of (N, K).

    Part i is rows i N // splits to (i + 1) N // splits, as torch-fidelity cuts them. In float64. Raises
    MetricError if N < splits.
    """
    n = len(logits)
    if n < splits:
        raise MetricError(f"{splits} splits need at least {splits} images, there are {n}")
    scores = []
    for i in range(splits):
        log_p = logits[i * n // splits : (i + 1) * n // splits].double().log_softmax(1)
        log_q = log_p.logsumexp(0) - math.log(len(log_p))  # log of the mean; finite where a mean would be 0
        scores.append((log_p.exp() * (log_p - log_q)).sum(1).mean().exp())
    values = [float(s) for s in scores]
    mean = sum(values) / splits
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / splits)


class InceptionScore(Metric):
    """IS of the first ``is_n_fake`` fakes over ``is_splits`` splits; the real images play no part."""

    names = ("is", "is_std")
    better = "higher"
    needs_real = False

    def n_fake(self, protocol: Protocol) -> int:
        return protocol.is_n_fake

    def __call__(self, real: Reference | None, fake: Features, protocol: Protocol) -> dict[str, float]:
        mean, std = inception_score(take(fake.logits, protocol.is_n_fake), protocol.is_splits)
        return {"is": mean, "is_std": std}
