"""Label smoothing of the adversarial loss (Salimans et al. 2016, arXiv:1606.03498, section 3.4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from torch import Tensor

from ganlab.methods.base import Method, Player, Scene
from ganlab.schema import Range, checked

Target = Annotated[float, Range(ge=0, le=1)]


class LabelSmoothing(Method):
    """D's target for real samples is ``real`` instead of 1, and ``fake`` instead of 0 for generated ones.

    The paper smooths the real side alone: with a target above 0 for generated samples the optimal D is
    (real p_data + fake p_G) / (p_data + p_G), whose numerator has p_G in it, and G's mistakes reinforce
    themselves where data are rare. ``generator``: G's target instead of 1; the paper's ImageNet code has
    real=0.75, generator=0.375. Added to the loss as terms of their own, so that the curves stay comparable.
    Raises ValueError unless fake < real.
    """

    schedulable = frozenset({"real", "fake", "generator"})

    @checked
    def __init__(self, real: Target = 0.9, fake: Target = 0.0, generator: Target = 1.0) -> None:
        if fake >= real:
            raise ValueError(f"fake: {fake:g} is not below real={real:g}; lower it")
        self.real, self.fake, self.generator = real, fake, generator
        self.smooths_fakes, self.smooths_g = fake > 0, generator < 1

    def mistakes(self, e: Any, data: Any = None) -> Iterator[str]:
        score = torch.zeros(1)
        for player, has in (("d", True), ("g", self.smooths_g)):
            if has and e.loss.moved_target(player, score, 1.0, 0.5) is None:
                what = f"{type(e.loss).__name__}'s loss of {player.upper()} has no targets to smooth"
                yield f"{what}; use loss=standard or lsgan"

    def _moved(self, scene: Scene, player: Player, score: Tensor, old: float, new: float) -> Tensor:
        term: Tensor | None = scene.gan.loss.moved_target(player, score, old, new)
        assert term is not None
        return term

    def d_term(self, scene: Scene) -> Tensor | None:
        term = self._moved(scene, "d", scene.d_real.score, 1.0, self.real)
        return (
            term + self._moved(scene, "d", scene.d_fake.score, 0.0, self.fake) if self.smooths_fakes else term
        )

    def g_term(self, scene: Scene) -> Tensor | None:
        return self._moved(scene, "g", scene.d_fake.score, 1.0, self.generator) if self.smooths_g else None
