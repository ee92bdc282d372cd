"""Mode coverage by class, for data whose classes are equally frequent modes: the 1,000 of stacked MNIST."""

from __future__ import annotations

import math

import torch

from ganlab.metrics.base import Accumulator, Fakes, Metric, Protocol, require_count, require_finite
from ganlab.schema import Count, checked


class ClassCounts(Accumulator):
    """How many of the first ``n`` images are of each class, by their largest logit."""

    def __init__(self, n: int) -> None:
        self.n, self.done, self.counts = n, 0, torch.zeros(())

    def add(self, fakes: Fakes) -> None:
        logits = fakes.logits[: self.n - self.done]
        require_finite(logits)
        self.counts = self.counts + torch.bincount(logits.argmax(1).cpu(), minlength=logits.shape[1])
        self.done += len(logits)

    def value(self) -> dict[str, float]:
        require_count(self.done, self.n)
        share = self.counts.double() / self.n
        kl = math.log(len(share)) + float(torch.xlogy(share, share).sum())
        return {"modes": float((share > 0).sum()), "kl": kl}


class ClassModes(Metric[None]):
    """``modes``: number of the feature network's classes among ``n`` generated images; ``kl``:
    KL(generated || uniform) of the classes' frequencies, in nats, which papers call reverse KL.

    Of n images of K equally frequent modes ``kl`` is about (K - 1) / (2 n): 0.02 for 1,000. Source: Metz et
    al. 2017 (unrolled GANs), arXiv:1611.02163, section 3.3, and the code of PacGAN (Lin et al. 2018,
    arXiv:1712.04086), which score 25,600 images.
    """

    names = ("modes", "kl")
    better = "higher"
    lower = frozenset({"kl"})
    needs = frozenset({"logits"})
    own_record = True

    @checked
    def __init__(self, n: Count = 25_600) -> None:
        self.n = n

    def n_fake(self, protocol: Protocol) -> int:
        return self.n

    def start(self, real: None, protocol: Protocol) -> Accumulator:
        return ClassCounts(self.n)
