"""Heads of D: how its features and a label become a verdict."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ganlab.models.base import glorot_init
from ganlab.types import Verdict

Head = Literal["none", "concat", "projection", "ac", "k_plus_1"]


def k_plus_1(logits: Tensor, features: Tensor) -> Verdict:
    """The verdict of K class logits (B, K), that of class K + 1, generated, being 0.

    The score is logsumexp of them, so that sigmoid(score) = Z / (Z + 1) with Z = sum_k exp(l_k): Salimans et
    al. 2016, arXiv:1606.03498, section 5."""
    return Verdict(torch.logsumexp(logits.float(), 1), features, logits)


class Headed(nn.Module):
    """A D that ends in a head, whose layers are its own: ``dense``, from features to the score, and one more.

    none: no label. concat: ``embed``, to ``embedded`` numbers that ``join`` repeats over a map (SNGAN, Table
    6). projection: the score is dense(phi) + <embed(y), phi> (arXiv:1802.05637, equation 3). ac: an auxiliary
    classifier, ``classify``, from phi to class logits (arXiv:1610.09585); the score does not see the label.
    k_plus_1: ``dense`` makes class logits, whose logsumexp is the score.
    """

    head: Head

    def add_head(self, head: Head, features: int, num_classes: int, embedded: int, bias: bool) -> None:
        """Create the layers, after all others."""
        self.head = head
        self.dense = nn.Linear(features, num_classes if head == "k_plus_1" else 1, bias=bias)
        glorot_init(self.dense)
        if self.head in ("concat", "projection"):
            self.embed = nn.Embedding(num_classes, embedded if self.head == "concat" else features)
            glorot_init(self.embed)
        if self.head == "ac":
            self.classify = nn.Linear(features, num_classes)
            glorot_init(self.classify)

    def join(self, x: Tensor, y: Tensor | None) -> Tensor:
        """The map x (B, C, H, W) with the label's numbers as further channels; channels last."""
        label = self.embed(y).to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        return torch.cat([x, label.contiguous(memory_format=torch.channels_last)], 1)

    def judge(self, features: Tensor, y: Tensor | None) -> Verdict:
        """The verdict from features (B, F)."""
        if self.head == "k_plus_1":
            return k_plus_1(self.dense(features), features)
        score = self.dense(features).squeeze(1)
        if self.head == "projection":
            score = score + (self.embed(y) * features).sum(1)
        return Verdict(score, features, self.classify(features) if self.head == "ac" else None)
