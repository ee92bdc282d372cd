"""Test error of a D that classifies."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ganlab.metrics.base import Accumulator, Metric, MetricError, Protocol
from ganlab.schema import checked

CHUNK = 500  # images of a pass of D


class TestError(Metric[None]):
    """The share of wrongly classified images of ``split``, in percent, by the largest of D's class logits.

    D is in evaluation mode: no noise, no dropout. Source: Salimans et al. 2016, arXiv:1606.03498, Table 1.
    """

    names = ("test_error",)
    better = "lower"
    needs = frozenset({"classifier"})
    own_record = True

    @checked
    def __init__(self, split: str = "test") -> None:
        self.split = split

    def n_fake(self, protocol: Protocol) -> int:
        return 0

    def start(self, real: None, protocol: Protocol) -> Accumulator:
        raise MetricError("judges D, not generated samples")

    def of_classifier(self, classify: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> dict[str, float]:
        """The value for stored images x (N, C, H, W) with labels y (N,); ``classify(x)``: logits (B, K)."""
        errors = 0
        for images, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
            logits = classify(images)
            if not bool(torch.isfinite(logits).all()):
                raise MetricError("class logits are not finite")
            errors += int((logits.argmax(1).cpu() != labels).sum())
        return {"test_error": 100 * errors / len(y)}
