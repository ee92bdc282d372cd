"""Spectral norm against the exact SVD and equation 12; the singular values of SNGAN's appendix D."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from scenes import players
from torch import nn
from torch.nn.utils import parametrize

from ganlab.experiment import Experiment
from ganlab.methods.base import Player
from ganlab.methods.constraints import WeightClip
from ganlab.methods.penalties import Orthonormal
from ganlab.methods.weight_norms import (
    FrobeniusNorm,
    LearnedScale,
    SpectralNorm,
    SpectralNormalized,
    WeightNorm,
)
from ganlab.methods.weights import as_matrix, out_dim, power_iteration, raw_weight, weighted_layers
from ganlab.models.cnn import CNN
from ganlab.training.build import build_gan
from ganlab.training.gan import GAN
from ganlab.training.step import update
from ganlab.types import Batch, ImageShape

Make = Callable[..., Experiment]
LAYERS = {
    "linear": lambda: nn.Linear(12, 7),
    "conv": lambda: nn.Conv2d(3, 8, 4, 2, 1),
    "deconv": lambda: nn.ConvTranspose2d(5, 6, 3),
    "embedding": lambda: nn.Embedding(10, 4),
}


def normalised(kind: str, **options: object) -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(LAYERS[kind]())
    SpectralNorm(**options).prepare(players(net))  # type: ignore[arg-type]
    return net


def state_of(layer: nn.Module) -> SpectralNormalized:
    module = layer.parametrizations.weight[0]
    assert isinstance(module, SpectralNormalized)
    return module


@pytest.mark.parametrize("kind", LAYERS)
def test_sigma_is_the_largest_singular_value(kind: str) -> None:
    net = normalised(kind, iterations=200)
    weight = net[0].weight  # a read in training mode iterates
    exact = torch.linalg.svdvals(as_matrix(raw_weight(net[0]), out_dim(net[0])))[0]
    sigma = torch.linalg.svdvals(as_matrix(weight, out_dim(net[0])))[0]
    assert sigma.item() == pytest.approx(1.0, abs=1e-5)
    assert (raw_weight(net[0]) / weight).mean().item() == pytest.approx(exact.item(), rel=1e-5)


def test_gradient_is_equation_12() -> None:
    """dV/dW = (1/sigma) (delta h^T - lambda u v^T), lambda = delta^T Wbar h, with u and v held constant."""
    net = normalised("linear").double()
    layer = net[0].eval()
    h, delta = torch.randn(12).double(), torch.randn(7).double()
    (delta @ (layer(h) - layer.bias)).backward()
    u, v = state_of(layer).u, state_of(layer).v
    w = raw_weight(layer).detach()
    sigma = u @ w @ v
    scale = delta @ (w / sigma) @ h
    expected = (torch.outer(delta, h) - scale * torch.outer(u, v)) / sigma
    assert torch.allclose(raw_weight(layer).grad, expected, rtol=1e-10, atol=1e-12)


def test_per_forward_iterates_once_each_pass_and_evaluation_leaves_no_trace() -> None:
    net = normalised("linear")
    u0 = state_of(net[0]).u.clone()
    x = torch.randn(2, 12)
    net(x)
    w = raw_weight(net[0])
    v1 = nn.functional.normalize(w.T @ u0, dim=0)
    u1 = nn.functional.normalize(w @ v1, dim=0)
    assert torch.allclose(state_of(net[0]).u, u1, atol=1e-6)
    net(x)
    assert not torch.allclose(state_of(net[0]).u, u1, atol=1e-6)
    before = copy.deepcopy(net.state_dict())
    net.eval()
    net(x)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize("order", ["d_first", "g_first"])
@pytest.mark.parametrize("clip", [False, True])
def test_per_update_iterates_once_for_each_new_set_of_weights(order: str, clip: bool, tiny: Make) -> None:
    """The first set included; a set is what the constraints have left of it."""

    def start(rule: SpectralNorm) -> tuple[GAN, nn.Module]:
        norms = {"sn": rule, "wc": WeightClip(bound=0.02)} if clip else {"sn": rule}
        game = build_gan(tiny(normalization=norms, order=order, d_steps=3), torch.device("cpu"))
        return game, next(layer for _, layer in weighted_layers(game.discriminator))

    def matrix() -> torch.Tensor:
        return as_matrix(raw_weight(layer).detach(), out_dim(layer)).clone()

    rule = SpectralNorm(update="per_update")
    noise = state_of(start(SpectralNorm())[1]).u  # of the same seed, and nothing has iterated it
    game, layer = start(rule)
    own = game.methods["sn"]
    sets, after = [matrix()], own.after_update

    def watched(gan: GAN, player: Player) -> None:
        if player == "d":
            sets.append(matrix())
        after(gan, player)

    own.after_update = watched  # type: ignore[method-assign]
    for _ in range(2):
        update(game, lambda: Batch(torch.rand(8, 1, 16, 16)))
    game.discriminator(torch.rand(2, 1, 16, 16))  # whoever looks at D
    assert len(sets) == 1 + 2 * 3
    assert not clip or all(w.abs().max() < 0.0201 for w in sets[1:])
    u = noise
    for w in sets:
        u, _ = power_iteration(w, u, 1, 1e-12)
    assert torch.allclose(state_of(layer).u, u, atol=1e-5)
    once_less, _ = power_iteration(sets[0], noise, 1, 1e-12)
    assert not torch.allclose(once_less, noise, atol=1e-3), "an iteration is seen"


def test_every_layer_of_d_is_normalised_and_nothing_else_changes() -> None:
    d = CNN(width=0.125).discriminator(ImageShape(3, 32, 32), 0, None)
    count, names = sum(p.numel() for p in d.parameters()), [n for n, _ in weighted_layers(d)]
    SpectralNorm().prepare(players(d))
    assert sum(p.numel() for p in d.parameters()) == count
    assert len(names) == 8
    assert all(parametrize.is_parametrized(layer, "weight") for _, layer in weighted_layers(d))


def test_a_layer_of_zeros_is_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    nn.init.zeros_(net[0].weight)
    with pytest.raises(ValueError, match="has an all-zero weight"):
        SpectralNorm().prepare(players(net))


def test_norms_stay_in_fp32_under_autocast() -> None:
    net = normalised("linear")
    with torch.autocast("cpu", torch.bfloat16):
        assert net[0].weight.dtype == torch.float32
        assert net(torch.randn(2, 12)).dtype == torch.bfloat16
    assert state_of(net[0]).u.dtype == torch.float32


@pytest.mark.parametrize("kind", LAYERS)
def test_weight_norm_rows_and_identity(kind: str) -> None:
    """Appendix D: with weight norm the squared singular values sum to d_out, and sigma_1 <= sqrt(d_out)."""
    net = nn.Sequential(LAYERS[kind]())
    WeightNorm().prepare(players(net))
    matrix = as_matrix(net[0].weight, out_dim(net[0]))
    assert torch.allclose(matrix.norm(dim=1), torch.ones(len(matrix)), atol=1e-6)
    values = torch.linalg.svdvals(matrix).square()
    assert values.sum().item() == pytest.approx(len(matrix), rel=1e-5)
    assert values[0].item() <= len(matrix) + 1e-4


def values_of(layer: nn.Module) -> torch.Tensor:
    return torch.linalg.svdvals(as_matrix(layer.weight.detach(), out_dim(layer)))


@pytest.mark.parametrize("kind", LAYERS)
def test_frobenius_norm_squares_sum_to_one(kind: str) -> None:
    """Appendix D."""
    net = nn.Sequential(LAYERS[kind]())
    FrobeniusNorm().prepare(players(net))
    assert values_of(net[0]).square().sum().item() == pytest.approx(1.0, rel=1e-5)
    w = raw_weight(net[0])
    assert torch.allclose(net[0].weight, w / w.norm(), atol=1e-6)


@pytest.mark.parametrize("kind", LAYERS)
def test_spectral_norm_fixes_the_first_alone(kind: str) -> None:
    """Appendix D: sigma_1 = 1, and the others are where the weight has them."""
    net = normalised(kind, method="svd")
    values = values_of(net[0])
    raw = torch.linalg.svdvals(as_matrix(raw_weight(net[0]).detach(), out_dim(net[0])))
    assert values[0].item() == pytest.approx(1.0, abs=1e-6)
    assert torch.allclose(values, raw / raw[0], atol=1e-6)
    assert values.square().sum() > 1.5


@pytest.mark.parametrize("kind", LAYERS)
def test_svd_and_many_iterations_agree(kind: str) -> None:
    """The same u, v up to their common sign, the same weight, the same gradient."""
    exact, power = normalised(kind, method="svd"), normalised(kind, iterations=500)
    raw_weight(power[0]).data.copy_(raw_weight(exact[0]).data)
    weights, gradients = [], []
    for net in (exact, power):
        weights.append(net[0].weight)
        (weights[-1] * torch.arange(float(weights[-1].numel())).view_as(weights[-1])).sum().backward()
        gradients.append(raw_weight(net[0]).grad)
    assert torch.allclose(*weights, atol=1e-5)
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-3 * gradients[0].abs().max().item())
    alike = torch.dot(state_of(exact[0]).u, state_of(power[0]).u).abs()
    assert alike.item() == pytest.approx(1.0, abs=1e-4)


def test_svd_is_renewed_at_the_same_moments_as_power() -> None:
    for when, renewed in (("per_forward", True), ("per_update", False)):
        net = nn.Sequential(nn.Linear(6, 5))
        rule = SpectralNorm(method="svd", update=when)  # type: ignore[arg-type]
        rule.prepare(players(net))
        with torch.no_grad():
            raw_weight(net[0]).copy_(torch.randn(5, 6))
        net(torch.randn(2, 6))
        assert (abs(values_of(net.eval()[0])[0].item() - 1) < 1e-5) is renewed
        rule.after_update(players(net), "d")
        assert (abs(values_of(net[0])[0].item() - 1) < 1e-5) is (renewed or when == "per_update")


def test_warmup_brings_the_start_closer() -> None:
    cold, warm = normalised("conv"), normalised("conv", warmup=30)
    assert torch.equal(raw_weight(cold[0]), raw_weight(warm[0]))
    assert abs(values_of(warm.eval()[0])[0].item() - 1) < 1e-3 < abs(values_of(cold.eval()[0])[0].item() - 1)


NORMS = {"sn": SpectralNorm, "wn": WeightNorm, "fn": FrobeniusNorm}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", NORMS)
def test_gamma_starts_at_the_norm_that_is_divided_by_and_is_learned(name: str, kind: str) -> None:
    """Appendix E: gamma * W / N(W), a scalar a layer."""
    torch.manual_seed(5)
    net = nn.Sequential(LAYERS[kind]())
    matrix = as_matrix(net[0].weight.detach(), out_dim(net[0]))
    values, rows = torch.linalg.svdvals(matrix), matrix.square().sum(1).sqrt()
    exact = {"sn": values[0], "wn": rows.sum() / len(rows), "fn": values.square().sum().sqrt()}[name].item()
    before = {n for n, _ in net.named_parameters()}
    options = {"method": "svd"} if name == "sn" else {}
    NORMS[name](gamma="learned", **options).prepare(players(net))  # type: ignore[arg-type]
    names = {n for n, _ in net.named_parameters()}
    assert names - before == {"0.parametrizations.weight.original", "0.parametrizations.weight.1.gamma"}
    scale = net[0].parametrizations.weight[1]
    assert isinstance(scale, LearnedScale)
    assert scale.gamma.shape == ()
    assert scale.gamma.item() == pytest.approx(exact, rel=1e-5)
    unit = net[0].parametrizations.weight[0](raw_weight(net[0]))
    assert torch.allclose(net[0].weight, exact * unit, rtol=1e-5, atol=1e-7)
    (net[0].weight * torch.ones_like(unit)).sum().backward()
    assert scale.gamma.grad is not None
    assert scale.gamma.grad.item() == pytest.approx(unit.sum().item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_gamma_per_channel_starts_d_where_it_was(kind: str) -> None:
    """Salimans & Kingma 2016, equation 2."""
    net = nn.Sequential(LAYERS[kind]())
    plain = net[0].weight.detach().clone()
    WeightNorm(gamma="per_channel").prepare(players(net))
    scale = net[0].parametrizations.weight[1]
    assert scale.gamma.shape == (plain.shape[out_dim(net[0])],)
    assert torch.allclose(net[0].weight, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NORMS)
def test_with_a_learned_gamma_d_starts_about_as_steep_as_without(name: str) -> None:
    """From sigma on, as all three once did, FN's critic had a slope of 1e-9 and learned nothing."""

    def slope(rule: WeightNorm | SpectralNorm | FrobeniusNorm | None) -> float:
        torch.manual_seed(0)
        d = CNN(width=0.25).discriminator(ImageShape(3, 32, 32), 0, None)
        if rule is not None:
            rule.prepare(players(d))
        x = (torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1).requires_grad_()
        (gradient,) = torch.autograd.grad(d.eval()(x).score.sum(), x)
        return float(gradient.flatten(1).norm(dim=1).mean())

    options = {"method": "svd"} if name == "sn" else {}
    learned, plain = slope(NORMS[name](gamma="learned", **options)), slope(None)  # type: ignore[arg-type]
    assert learned == pytest.approx(plain, rel=0.1 if name == "wn" else 1e-4)


def test_a_norm_is_of_the_weights_that_another_start_leaves(tiny: Make) -> None:
    norms = {"fn": FrobeniusNorm(gamma="learned"), "orthonormal": Orthonormal(weight=0)}
    d = build_gan(tiny(normalization=norms), torch.device("cpu")).discriminator
    for _, layer in weighted_layers(d):
        assert torch.allclose(layer.weight, raw_weight(layer), rtol=1e-5, atol=1e-7)  # type: ignore[arg-type]


def test_one_weight_norm_at_a_time() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    SpectralNorm().prepare(players(net))
    with pytest.raises(ValueError, match=r"normalization.wn: layer '0' already has a normalized weight"):
        WeightNorm().prepare(players(net))
    with pytest.raises(ValueError, match="scale"):
        SpectralNorm(gamma="learned", scale=2.0)
    with pytest.raises(ValueError, match=r"normalization.fn: .*all-zero weight"):
        FrobeniusNorm().prepare(players(nn.Sequential(nn.Linear(3, 2).requires_grad_(False).apply(emptied))))


def emptied(layer: nn.Module) -> None:
    nn.init.zeros_(layer.get_parameter("weight"))


def test_names_of_d_without_options_are_the_old_ones() -> None:
    """Checkpoints of existing runs stay loadable."""
    d = CNN(width=0.05).discriminator(ImageShape(1, 16, 16), 0, None)
    SpectralNorm().prepare(players(d))
    assert {k for k in d.state_dict() if k.startswith("convs.3.")} == {
        "convs.3.bias",
        "convs.3.parametrizations.weight.original",
        "convs.3.parametrizations.weight.0.u",
        "convs.3.parametrizations.weight.0.v",
    }
