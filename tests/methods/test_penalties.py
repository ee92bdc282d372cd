"""Penalties and constraints in closed form."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from scenes import players, scene
from torch import Tensor, nn

from ganlab.methods.constraints import NormClip, WeightClip
from ganlab.methods.feature_norms import BatchNorm
from ganlab.methods.penalties import (
    R1,
    R2,
    GradientPenalty,
    Orthonormal,
    SpectralNormRegularization,
    WeightDecay,
    gradient_norms,
)
from ganlab.methods.weight_norms import SpectralNorm
from ganlab.methods.weights import as_matrix, raw_weight, weighted_layers
from ganlab.models.cnn import CNN
from ganlab.types import Batch, ImageShape, Verdict


class LinearD(nn.Module):
    """D(x) = a . x: its gradient is ``a`` everywhere."""

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(a)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        return Verdict(x.flatten(1) @ self.a)


REAL, FAKE = Batch(torch.randn(5, 1, 2, 2)), Batch(torch.randn(5, 1, 2, 2))


@pytest.mark.parametrize(
    ("norm", "options", "expected"),
    [
        (3.0, {}, 10 * 4.0),
        (0.25, {}, 10 * 0.5625),
        (0.25, {"sides": "one"}, 0.0),
        (3.0, {"sides": "one", "weight": 2.0}, 8.0),
        (2.0, {"target": 5.0, "weight": 1.0}, 9.0),
        (2.0, {"target": 5.0, "weight": 1.0, "sides": "one"}, 0.0),
        (7.0, {"target": 4.0, "weight": 1.0, "sides": "one"}, 9.0),
    ],
)
def test_gradient_penalty_of_a_linear_d(norm: float, options: dict[str, float], expected: float) -> None:
    a = nn.functional.normalize(torch.tensor([1.0, -2.0, 0.5, 3.0]), dim=0) * norm
    got = GradientPenalty(**options).d_term(scene(LinearD(a), REAL, FAKE))
    assert got.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


class QuadraticD(nn.Module):
    """D(x, y) = (y + 1) |x|^2 / 2: its gradient is (y + 1) x."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        score = x.flatten(1).square().sum(1) / 2
        return Verdict(score if y is None else (y + 1) * score)


def test_zero_centered_penalties_by_hand() -> None:
    """gamma / 2 times the mean over samples of the squared norm; each on images and labels of its own."""
    real, fake = torch.arange(12.0).view(3, 1, 2, 2), torch.full((3, 1, 2, 2), 5.0)
    of_real = (0 + 1 + 4 + 9 + 16 + 25 + 36 + 49 + 64 + 81 + 100 + 121) / 3
    assert R1(gamma=3.0).d_term(scene(QuadraticD(), Batch(real), Batch(fake))).item() == pytest.approx(
        1.5 * of_real
    )
    assert R2(gamma=3.0).d_term(scene(QuadraticD(), Batch(real), Batch(fake))).item() == pytest.approx(
        1.5 * 100
    )
    assert R1().d_term(scene(QuadraticD(), Batch(real), Batch(fake))).item() == pytest.approx(5 * of_real)
    y_real, y_fake = torch.tensor([1, 1, 1]), torch.tensor([0, 0, 3])
    labelled = Batch(real, y_real), Batch(fake, y_fake)
    assert R1(gamma=1.0).d_term(scene(QuadraticD(), *labelled)).item() == pytest.approx(0.5 * 4 * of_real)
    assert R2(gamma=1.0).d_term(scene(QuadraticD(), *labelled)).item() == pytest.approx(
        0.5 * 100 * (1 + 1 + 16) / 3
    )


def test_gradient_penalty_takes_the_labels_of_real_images() -> None:
    ones = torch.ones(3, 1, 2, 2)  # |grad| is 2 (y + 1), wherever between real and generated
    labels = torch.tensor([0, 1, 2]), torch.tensor([7, 7, 7])
    got = GradientPenalty(weight=1.0).d_term(scene(QuadraticD(), *(Batch(ones, y) for y in labels)))
    assert got.item() == pytest.approx((1 + 9 + 25) / 3)


def test_gradient_penalty_reaches_d_by_the_chain_rule() -> None:
    """d/da 10 (|a| - 1)^2 = 20 (|a| - 1) a / |a|."""
    d = LinearD(torch.tensor([3.0, 0.0, 4.0, 0.0]))
    GradientPenalty().d_term(scene(d, REAL, FAKE)).backward()
    assert torch.allclose(d.a.grad, 20 * 4 * torch.tensor([0.6, 0.0, 0.8, 0.0]), atol=1e-4)


class SmallD(nn.Module):
    """Two layers about a tanh: its score has second derivatives in x and in the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dense = nn.Conv2d(1, 3, 2, padding=1), nn.Linear(27, 1)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        return Verdict(self.dense(torch.tanh(self.conv(x)).flatten(1)).squeeze(1))


@pytest.mark.parametrize("options", [{"method": "svd"}, {"method": "svd", "gamma": "learned"}])
def test_gradient_penalty_through_spectral_norm_against_finite_differences(options: dict[str, str]) -> None:
    """Holding u and v constant is exact where they are the singular vectors, in the second derivative too."""
    torch.manual_seed(1)
    d = SmallD().double()
    SpectralNorm(**options).prepare(players(d))  # type: ignore[arg-type]
    x = torch.randn(3, 1, 2, 2).double()

    def penalty() -> Tensor:  # training mode: each read renews u and v, at the moved weight too
        return (gradient_norms(d, x, None) - 1).square().mean()

    names = [n for n, _ in d.named_parameters() if "bias" not in n]
    assert len(names) == (4 if "gamma" in options else 2)
    for name in names:
        p, h = d.get_parameter(name), 1e-6
        (gradient,) = torch.autograd.grad(penalty(), p)
        assert gradient.abs().max() > 1e-3
        for i in range(0, p.numel(), 5):
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    p.view(-1)[i] += sign * h
                ends.append(penalty().item())
                with torch.no_grad():
                    p.view(-1)[i] -= sign * h
            expected = (ends[0] - ends[1]) / (2 * h)
            assert gradient.reshape(-1)[i].item() == pytest.approx(expected, rel=1e-5, abs=1e-8), (name, i)


def test_interpolates_lie_between_real_and_generated() -> None:
    seen: list[Tensor] = []

    class Spy(LinearD):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
            seen.append(x.detach())
            return super().forward(x)

    GradientPenalty().d_term(scene(Spy(torch.ones(4)), REAL, FAKE))
    share = ((seen[0] - FAKE.x) / (REAL.x - FAKE.x)).flatten(1)
    assert ((share > -1e-4) & (share < 1 + 1e-4)).all()
    assert torch.allclose(share, share[:, :1].expand_as(share), atol=1e-3), "one coefficient a sample"
    assert share[:, 0].std() > 0.01, "and another for each sample"


def test_orthonormal_penalty_by_hand() -> None:
    net = nn.Sequential(nn.Linear(2, 3, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    got = Orthonormal(weight=0.5, init=False).d_term(scene(net, REAL, FAKE))
    assert got.item() == pytest.approx(0.5 * 9.0)  # W^T W - I = diag(0, 3)


def test_orthonormal_start_has_no_penalty() -> None:
    d = CNN(width=0.125).discriminator(ImageShape(3, 32, 32), 0, None)
    rule = Orthonormal(weight=1.0)
    before = rule.d_term(scene(d, REAL, FAKE)).item()
    rule.prepare(players(d))
    assert rule.d_term(scene(d, REAL, FAKE)).item() < 1e-6 < before
    assert Orthonormal(weight=0.0).d_term(scene(d, REAL, FAKE)) is None, "the start alone"
    for _, layer in weighted_layers(d):
        values = torch.linalg.svdvals(as_matrix(raw_weight(layer)))
        assert torch.allclose(values, torch.ones_like(values), atol=1e-4)


def test_orthonormal_start_of_a_transposed_convolution() -> None:
    layer = nn.ConvTranspose2d(3, 4, 3)
    Orthonormal(weight=0.0).prepare(players(nn.Sequential(layer)))
    values = torch.linalg.svdvals(as_matrix(layer.weight, 1))
    assert torch.allclose(values, torch.ones(4), atol=1e-5)


def test_orthonormal_start_under_spectral_norm_is_what_sn_normalises() -> None:
    net = nn.Sequential(nn.Linear(9, 4))
    for rule in (Orthonormal(weight=0.0), SpectralNorm(method="svd")):
        rule.prepare(players(net))
    assert torch.allclose(torch.linalg.svdvals(net[0].weight), torch.ones(4), atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "conv", "deconv"])
def test_spectral_norm_regularisation_is_half_sigma_squared(kind: str) -> None:
    torch.manual_seed(0)
    layers = {"linear": nn.Linear(7, 5), "conv": nn.Conv2d(3, 4, 3), "deconv": nn.ConvTranspose2d(3, 4, 3)}
    net = nn.Sequential(layers[kind])
    rule = SpectralNormRegularization(weight=0.3, iterations=500)
    rule.prepare(players(net))
    rule.d_term(scene(net, REAL, FAKE)).backward()
    matrix = as_matrix(raw_weight(net[0]).detach(), 1 if kind == "deconv" else 0)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    assert rule.d_term(scene(net, REAL, FAKE)).item() == pytest.approx(0.15 * values[0].item() ** 2, rel=1e-5)
    gradient = as_matrix(raw_weight(net[0]).grad, 1 if kind == "deconv" else 0)
    expected = 0.3 * values[0] * torch.outer(left[:, 0], right[0])
    assert torch.allclose(gradient, expected, atol=1e-4), "weight * sigma u v^T (arXiv:1705.10941)"


def test_spectral_norm_regularisation_keeps_its_vectors_with_d() -> None:
    """One iteration a call, from where the last one ended; the next D starts apart."""
    d = CNN(width=0.125).discriminator(ImageShape(3, 32, 32), 0, None)
    rule = SpectralNormRegularization(scope="convolutions")
    rule.prepare(players(d))
    kept = {k: v.clone() for k, v in d.state_dict().items() if k.endswith("snr_u")}
    assert len(kept) == 7, "not the dense layer's"
    values = [rule.d_term(scene(d, REAL, FAKE)).item() for _ in range(30)]
    assert all(b > a * (1 - 1e-5) for a, b in itertools.pairwise(values)), "from below"
    exact = sum(torch.linalg.matrix_norm(as_matrix(c.weight), 2).square().item() for c in d.convs)
    assert values[0] < 0.8 * values[-1] < 1.0001 * 0.005 * exact
    assert not any(torch.equal(v, d.state_dict()[k]) for k, v in kept.items())


def test_spectral_norm_regularisation_iterates_once_an_update() -> None:
    """However many micro batches ask for it: the same u, v and value until the next update begins."""
    net = nn.Sequential(nn.Linear(12, 6))
    rule = SpectralNormRegularization()
    rule.prepare(players(net))
    seen = []
    for _ in range(2):
        rule.before_round(players(net))
        values = [rule.d_term(scene(net, REAL, FAKE)).item() for _ in range(3)]
        assert values == [values[0]] * 3
        seen.append((values[0], net[0].snr_u.clone()))
    assert seen[0][0] < seen[1][0]
    assert not torch.equal(seen[0][1], seen[1][1])


def test_spectral_norm_regularisation_pulls_the_norm_down() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 6))
    rule = SpectralNormRegularization(weight=1.0, iterations=200)
    rule.prepare(players(net))
    before = torch.linalg.svdvals(net[0].weight.detach())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(5):
        optimizer.zero_grad()
        rule.d_term(scene(net, REAL, FAKE)).backward()
        optimizer.step()
    after = torch.linalg.svdvals(net[0].weight.detach())
    assert after[0] < 0.9 * before[0]
    assert torch.allclose(after[3:], before[3:], atol=1e-5), "the small ones stay"


def test_orthonormal_scope_leaves_the_dense_layer() -> None:
    d = CNN(width=0.125).discriminator(ImageShape(3, 32, 32), 0, None)
    dense = d.dense.weight.detach().clone()
    Orthonormal(scope="convolutions").prepare(players(d))
    assert torch.equal(d.dense.weight, dense)


def test_weight_clip_all_takes_norms_and_biases_too() -> None:
    norm = BatchNorm(affine="full").feature_norm()
    for scope, clipped in (("convolutions", 7), ("weights", 8), ("all", 16 + 12)):
        d = CNN(width=0.125).discriminator(ImageShape(3, 32, 32), 0, norm)
        with torch.no_grad():
            [p.fill_(-1.0) for p in d.parameters()]
        WeightClip(bound=0.01, scope=scope).after_update(players(d), "d")  # type: ignore[arg-type]
        assert sum(bool((p == -0.01).all()) for p in d.parameters()) == clipped


def test_clipping_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no convolutions, so nothing would be clipped; set scope=weights"):
        WeightClip().change_networks(nn.Linear(2, 2), nn.Linear(2, 1))


def test_clip_under_spectral_norm_acts_on_the_trained_weight() -> None:
    d = nn.Sequential(nn.Linear(4, 4))
    SpectralNorm().prepare(players(d))
    WeightClip(bound=0.01, scope="weights").after_update(players(d), "d")
    assert raw_weight(d[0]).abs().max() <= 0.01


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="bound"):
        WeightClip(bound=0.0)
    with pytest.raises(ValueError, match="weight"):
        GradientPenalty(weight=-1.0)
    with pytest.raises(ValueError, match=r"weight.*nothing"):
        Orthonormal(weight=0.0, init=False)
    with pytest.raises(ValueError, match=r"sides.*two, one"):
        GradientPenalty(sides="three")  # type: ignore[arg-type]


def test_a_clipped_norm_is_the_bound_and_a_small_one_stands() -> None:
    d = LinearD(torch.tensor([3.0, 0.0, -4.0, 0.0]))
    NormClip(bound=10.0).after_update(players(d), "d")
    assert d.a.tolist() == [3, 0, -4, 0]
    NormClip(bound=2.5).after_update(players(d), "d")
    assert d.a.tolist() == pytest.approx([1.5, 0, -2, 0])
    zero = LinearD(torch.zeros(4))
    NormClip().after_update(players(zero), "d")
    assert zero.a.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("norm", "value", "slope"), [("l2", 0.1 / 2 * 25, [0.3, 0, -0.4, 0]), ("l1", 0.1 * 7, [0.1, 0, -0.1, 0])]
)
def test_weight_decay_is_its_formula(norm: Any, value: float, slope: list[float]) -> None:
    d = LinearD(torch.tensor([3.0, 0.0, -4.0, 0.0]))
    penalty = WeightDecay(weight=0.1, norm=norm).d_term(scene(d, REAL, FAKE))
    assert float(penalty) == pytest.approx(value)
    (gradient,) = torch.autograd.grad(penalty, d.a)
    assert gradient.tolist() == pytest.approx(slope)
