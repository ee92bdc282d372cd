"""What a gradient penalty does to D's weights: its derivative, in float64, against central differences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scenes import players, scene
from test_loop import go
from test_penalties import LinearD
from torch import Tensor, nn

from ganlab.experiment import Experiment
from ganlab.methods.base import Method
from ganlab.methods.feature_norms import BatchNorm, InstanceNorm, LayerNorm
from ganlab.methods.losses import Wasserstein
from ganlab.methods.penalties import R1, R2, GradientPenalty
from ganlab.methods.weight_norms import SpectralNorm, WeightNorm
from ganlab.types import Batch, Verdict

Make = Callable[..., Experiment]


def smooth_elu(x: Tensor) -> Tensor:
    """softplus(2x + 2) / 2 - 1: WGAN-GP's appendix D."""
    return F.softplus(2 * x + 2) / 2 - 1


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "lrelu": lambda x: F.leaky_relu(x, 0.2),
    "tanh": torch.tanh,
    "smooth elu": smooth_elu,
}
PENALTIES: dict[str, Method] = {
    "gp": GradientPenalty(),
    "gp, one-sided": GradientPenalty(target=0.1, sides="one"),
    "gp, target 0, weight 0.1": GradientPenalty(weight=0.1, target=0.0),
    "r1": R1(),
    "r2": R2(gamma=3.0),
}
NORMS: dict[str, Callable[[], Method | None]] = {
    "none": lambda: None,
    "ln": lambda: LayerNorm(affine="full"),
    "in": lambda: InstanceNorm(affine="full"),
    "sn, exact": lambda: SpectralNorm(method="svd"),
    "sn, u and v as they stand": SpectralNorm,
    "wn": lambda: WeightNorm(gamma="learned"),
}


class ConvD(nn.Module):
    """Two convolutions with a norm and an activation behind each, then a dense layer; images of 5x5."""

    def __init__(
        self, activation: Callable[[Tensor], Tensor], norm: Callable[[int], nn.Module] | None
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(2, 3, 3, 1, 1), nn.Conv2d(3, 4, 3, 2, 1)])
        self.norms = nn.ModuleList([norm(3), norm(4)] if norm else [nn.Identity(), nn.Identity()])
        self.dense, self.activation = nn.Linear(36, 1), activation

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.activation(norm(conv(x)))
        return Verdict(self.dense(x.flatten(1)).squeeze(1))


def built(activation: str, norm: str) -> ConvD:
    torch.manual_seed(3)
    rule = NORMS[norm]()
    d = ConvD(ACTIVATIONS[activation], rule.feature_norm() if rule else None).double()
    with torch.no_grad():
        for p in d.parameters():  # large enough that norms lie on both sides of their target
            p.add_(0.3 * torch.randn_like(p))
    if rule:
        rule.prepare(players(d))
        d.double()
    return d.eval() if norm == "sn, u and v as they stand" else d


CASES = [
    *(("tanh", norm, "gp") for norm in NORMS),
    *(("lrelu", "ln", penalty) for penalty in PENALTIES),
    ("smooth elu", "none", "r1"),
]


@pytest.mark.parametrize(("activation", "norm", "penalty"), CASES)
def test_against_central_differences(activation: str, norm: str, penalty: str) -> None:
    """Along random directions of every parameter: the second derivatives that reach D's weights."""
    d, rule = built(activation, norm), PENALTIES[penalty]
    random = torch.Generator().manual_seed(4)
    real, fake = (Batch(torch.randn(4, 2, 5, 5, generator=random).double()) for _ in range(2))

    def value() -> Tensor:
        torch.manual_seed(5)  # the same points between real and generated
        return rule.d_term(scene(d, real, fake))

    names, parameters = zip(*d.named_parameters(), strict=True)
    gradients = torch.autograd.grad(value(), parameters, allow_unused=True)
    seen = 0.0
    for name, p, gradient in zip(names, parameters, gradients, strict=True):
        direction = torch.randn(p.shape, generator=random).double()
        ends, h = [], 1e-6
        for sign in (1, -1):
            with torch.no_grad():
                p.add_(direction, alpha=sign * h)
            ends.append(value().item())
            with torch.no_grad():
                p.add_(direction, alpha=-sign * h)
        expected = (ends[0] - ends[1]) / (2 * h)
        got = 0.0 if gradient is None else float((gradient * direction).sum())
        assert got == pytest.approx(expected, rel=2e-5, abs=1e-6), name
        seen = max(seen, abs(got))
    assert seen > 1e-3, "it does move the weights"


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_gradient_of_zero_is_no_nan(penalty: str) -> None:
    """Where D is flat the norm has a corner; its derivative there is taken for 0."""
    rule, real, fake = PENALTIES[penalty], Batch(torch.randn(3, 1, 2, 2)), Batch(torch.randn(3, 1, 2, 2))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        flat[1].bias.fill_(-100)  # every unit is dead

    class Flat(nn.Module):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
            return Verdict(flat(x).squeeze(1))

    for d, parameters in ((LinearD(torch.zeros(4)), None), (Flat(), [*flat.parameters()])):
        value = rule.d_term(scene(d, real, fake))
        target = getattr(rule, "target", 0.0)
        below = getattr(rule, "sides", "two") == "one"
        assert value.item() == pytest.approx(0.0 if below else getattr(rule, "weight", 0) * target**2)
        for gradient in torch.autograd.grad(value, parameters or [*d.parameters()], allow_unused=True):
            assert gradient is None or torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize(
    ("norm", "penalty", "warned"),
    [
        (BatchNorm(), GradientPenalty(), True),
        (LayerNorm(), GradientPenalty(), False),
        (BatchNorm(), None, False),
    ],
)
def test_a_penalty_beside_batch_norm_is_warned_of_once(
    norm: Method, penalty: Method | None, warned: bool, tiny: Make, tmp_path: Path
) -> None:
    parts: dict[str, Any] = {"norm": norm, **({"gp": penalty} if penalty else {})}
    e = tiny(normalization=parts, loss=Wasserstein(), steps=1, eval_every=0, sample_every=0)
    go(e)
    said = (tmp_path / "run" / "log.txt").read_text()
    assert said.count("normalization.gp: the penalty is defined per sample") == int(warned)
    assert ("normalization=ln" in said) is warned
