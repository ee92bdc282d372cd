"""Scores of stored samples (points, text) without a feature network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ganlab import rng
from ganlab.data.base import SampleSet
from ganlab.evaluation.generate import CHUNK, Generate, chunk, settle
from ganlab.evaluation.passes import Poll, attempt
from ganlab.metrics.base import MetricError, Protocol, Real, SampleMetric, enough


def real_of(images: SampleSet) -> Real:
    """A split's samples with its manifest."""
    return Real(np.asarray(images.images), images.manifest)


class SamplePass:
    """Generates as many samples as any of ``metrics`` needs, shared by all of them.

    The random streams are those of the feature pass: per chunk, seeded by (protocol.seed, start).
    """

    def __init__(
        self, metrics: Mapping[str, SampleMetric], protocol: Protocol, images: SampleSet, device: torch.device
    ) -> None:
        self.metrics, self.protocol, self.images, self.device = metrics, protocol, images, device
        self.fake: Tensor | Exception = MetricError("no sample was generated")

    def generate(self, generate: Generate, poll: Poll, crashes: bool) -> None:
        """Generate and keep the samples, or the exception. ``poll`` is called before each chunk."""
        if self.metrics:
            self.fake = attempt(lambda: self._generated(generate, poll), crashes)

    def _generated(self, generate: Generate, poll: Poll) -> Tensor:
        n, parts = max(m.n_fake(self.protocol) for m in self.metrics.values()), list[Tensor]()
        for start in range(0, n, CHUNK):
            if poll:
                poll()
            random = rng.generator(self.device, self.protocol.seed, "evaluate", start)
            parts.append(chunk(generate, start, random).cpu())
            settle(generate)
        return torch.cat(parts)[:n]

    def value(self, name: str) -> dict[str, float]:
        """The values of one metric. Raises MetricError where there is none."""
        if isinstance(self.fake, Exception):
            raise self.fake
        metric = self.metrics[name]
        n = metric.n_fake(self.protocol)
        enough(len(self.fake), n)
        return metric(real_of(self.images), self.fake[:n], self.protocol)
