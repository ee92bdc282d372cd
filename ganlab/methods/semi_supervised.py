"""Semi-supervised learning with K + 1 classes (Salimans et al. 2016, arXiv:1606.03498, section 5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from ganlab.methods.base import Player, Scene
from ganlab.methods.losses import ClassLoss, Standard, cross_entropy
from ganlab.schema import NonNegative, checked
from ganlab.types import Verdict


class KPlusOne(Standard):
    """The unsupervised half of the classifier's loss, for a D whose score is logsumexp of its K class logits.

    The logit of class K + 1, generated, is fixed to 0, so D(x) = Z / (Z + 1) with Z = sum_k exp(l_k), and
    -log D(x) - log(1 - D(G(z))) = -lse(x) + softplus(lse(x)) + softplus(lse(G(z))): ``Standard`` of the
    score, here halved as in the paper's code. ``generator``: ``saturating``, as in the code where features
    are not matched: G minimizes log(1 - D(G(z))); or ``non_saturating``. ``weight``: of D's loss, the code's
    unlabeled_weight; 0: D learns from labels alone.
    """

    schedulable = frozenset({"weight"})

    @checked
    def __init__(
        self,
        generator: Literal["saturating", "non_saturating"] = "saturating",
        weight: NonNegative = 1.0,
    ) -> None:
        self.form, self.weight = generator, weight

    def discriminator(self, real: Verdict, fake: Verdict) -> Tensor:
        return self.weight * super().discriminator(real, fake) / 2

    def generator(self, real: Verdict | None, fake: Verdict) -> Tensor:
        if self.form == "saturating":
            return -F.softplus(fake.score).mean()
        return super().generator(real, fake)

    def moved_target(self, player: Player, score: Tensor, old: float, new: float) -> Tensor | None:
        if player == "g":
            return None if self.form == "saturating" else super().moved_target(player, score, old, new)
        return self.weight * (old - new) * score.mean() / 2

    def curves(self, d: float, penalties: float) -> dict[str, float]:
        return {}

    def mistakes(self, e: Any, data: Any = None) -> Iterator[str]:
        if not getattr(e.architecture, "k_plus_1", False):
            yield "D has no head of K + 1 classes; use architecture.head=k_plus_1"


class LabelledLoss(ClassLoss):
    """D: weight * cross-entropy of its K class logits on the labelled samples, with their labels.

    They are a stream of their own with ``labelled_per_class``, else all of D's real samples. Source: the
    paper's L_supervised; -mean l_y + mean logsumexp(l) in its code.
    """

    needs = frozenset({"labelled"})
    schedulable = frozenset({"weight"})

    @checked
    def __init__(self, weight: NonNegative = 1.0) -> None:
        self.weight = weight

    def d_term(self, scene: Scene) -> Tensor:
        assert scene.labelled is not None
        own_stream = scene.labelled.x is not scene.real.x
        verdict = scene.gan.verdict(scene.labelled.x) if own_stream else scene.d_real
        return self.weight * cross_entropy(verdict, scene.labelled.y)

    def g_term(self, scene: Scene) -> None:
        return None

    def mistakes(self, e: Any, data: Any = None) -> Iterator[str]:
        if not getattr(e.architecture, "k_plus_1", False):
            yield "D's classes see no fakes; use architecture.head=k_plus_1, or class_loss=acgan with head=ac"
        elif data is not None and len(data.classes) != e.architecture.classes:
            yield f"the data have {len(data.classes)} classes; set architecture.classes={len(data.classes)}"
