"""Losses at scores worked out by hand, and the gradients' directions."""

from __future__ import annotations

import math

import pytest
import torch

from ganlab.errors import ConfigError
from ganlab.methods.losses import Hinge, LeastSquares, Loss, Minimax, Standard, Wasserstein
from ganlab.types import Verdict

REAL, FAKE = Verdict(torch.tensor([2.0, 0.5])), Verdict(torch.tensor([-3.0, 1.0]))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


D_STANDARD = (softplus(-2) + softplus(-0.5)) / 2 + (softplus(-3) + softplus(1)) / 2


@pytest.mark.parametrize(
    ("loss", "d", "g"),
    [
        (Standard(), D_STANDARD, (softplus(3) + softplus(-1)) / 2),
        (Minimax(), D_STANDARD, -(softplus(-3) + softplus(1)) / 2),
        (Hinge(), 0.25 + 1.0, 1.0),  # relu(1-2), relu(1-.5); relu(1-3), relu(1+1)
        (Hinge(margin=3.0), 1.75 + 2.0, 1.0),
        (Wasserstein(), -1.0 - 1.25, 1.0),
        (LeastSquares(), ((1 + 0.25) / 2 + (9 + 1) / 2) / 2, (16 + 0) / 2),
    ],
)
def test_values_by_hand(loss: Loss, d: float, g: float) -> None:
    assert loss.discriminator(REAL, FAKE).item() == pytest.approx(d, abs=1e-6)
    assert loss.generator(None, FAKE).item() == pytest.approx(g, abs=1e-6)


@pytest.mark.parametrize("loss", [Standard(), Minimax(), Hinge(), Wasserstein(), LeastSquares()])
def test_d_is_told_to_part_and_g_to_rise(loss: Loss) -> None:
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    loss.discriminator(Verdict(real), Verdict(fake)).backward()
    assert real.grad is not None
    assert (real.grad < 0).all(), "D's loss falls as real scores rise"
    if not isinstance(loss, LeastSquares):  # at 0 a generated image is where least squares wants it
        assert fake.grad is not None
        assert (fake.grad > 0).all()
    fake.grad = None
    loss.generator(None, Verdict(fake)).backward()
    assert fake.grad is not None
    assert (fake.grad < 0).all(), "G's loss falls as its scores rise"


@pytest.mark.parametrize("loss", [Standard(), Minimax()])
def test_large_scores_stay_finite(loss: Loss) -> None:
    far = Verdict(torch.tensor([1e4, -1e4]))
    assert torch.isfinite(loss.discriminator(far, far))
    assert torch.isfinite(loss.generator(None, far))


def test_hinge_refuses_an_impossible_margin() -> None:
    with pytest.raises(ValueError, match=r"margin: 0\.0 is not a number > 0"):
        Hinge(margin=0.0)


@pytest.mark.parametrize(
    ("hooks", "fix"),
    [
        (
            {"generator_needs_real": True},
            "generator_needs_real is of an older interface; use needs = frozenset",
        ),
        ({"penalty": lambda self, d, real, fake: 0}, "penalty is of an older interface; use d_term"),
        ({"prepare": lambda self, d: None}, "prepare is of an older interface; use prepare(self, gan"),
    ],
)
def test_hooks_of_the_first_interface_are_one_line(hooks: dict[str, object], fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        type("Old", (Hinge,), hooks)
    assert str(caught.value).startswith(f"{__name__}.Old: {fix}")
