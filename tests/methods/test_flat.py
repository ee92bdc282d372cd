"""Weights of a pass made at once from one vector, as on a GPU: the plain way's numbers, up to rounding."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganlab.data.digits import Digits
from ganlab.experiment import Experiment
from ganlab.methods.feature_norms import BatchNorm, LayerNorm, SampleNorm
from ganlab.methods.losses import Wasserstein
from ganlab.methods.penalties import GradientPenalty, Orthonormal
from ganlab.methods.spectral_norm import Vectors, power_iterations, rows
from ganlab.methods.weight_norms import SpectralNorm, WeightNorm
from ganlab.methods.weights import as_matrix, power_iteration
from ganlab.models.activations import relu
from ganlab.models.resnet import ResNet
from ganlab.training.build import build_gan, flatten_weights, pack_gan
from ganlab.training.gan import GAN
from ganlab.training.step import update
from ganlab.types import Batch

Make = Callable[..., Experiment]
CPU = torch.device("cpu")
SGD = functools.partial(torch.optim.SGD, lr=1e-3)
pytestmark = pytest.mark.usefixtures("one_thread")
RESNET = {
    "architecture": ResNet(width=0.03, head="projection"),
    "dataset": Digits(resolution=32),
    "batch_size": 4,
}
CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing to do in fp32": lambda: {"normalization": {}},
    "sn": dict,
    "sn, per update, micro batches": lambda: {
        "normalization": {"sn": SpectralNorm(update="per_update", scale=2.0)},
        "accumulate": 2,
    },
    "sn, two iterations, gp": lambda: {
        "normalization": {"sn": SpectralNorm(iterations=2), "gp": GradientPenalty()},
        "loss": Wasserstein(),
    },
    "sn, learned gamma": lambda: {"normalization": {"sn": SpectralNorm(gamma="learned")}},
    "wn": lambda: {"normalization": {"wn": WeightNorm()}},
    "bn": lambda: {"normalization": {"bn": BatchNorm()}},
    "ln, orthonormal": lambda: {"normalization": {"ln": LayerNorm(affine="full"), "o": Orthonormal()}},
    "resnet, labels": lambda: RESNET,
    "resnet, gp": lambda: RESNET | {"normalization": {"gp": GradientPenalty()}, "order": "g_first"},
}


def played(e: Experiment, flat: bool, rounds: int = 2) -> tuple[dict[str, Tensor], dict[str, Tensor], GAN]:
    game = build_gan(e, CPU, 3)
    if flat:
        flatten_weights(game)
    torch.manual_seed(0)
    for _ in range(rounds):
        x, y = torch.rand(e.batch_size, *e.shape), torch.randint(3, (e.batch_size,))
        log = update(game, lambda x=x, y=y: Batch(x, y))  # type: ignore[misc]
    return {name: value.clone() for name, value in pack_gan(game)[0].items()}, log, game


@pytest.mark.parametrize("name", CASES)
def test_the_same_game_as_with_each_layers_own_weights(name: str, tiny: Make) -> None:
    made = functools.partial(tiny, optimizer=SGD, d_steps=2, ema=0.9)
    plain, losses, _ = played(made(**CASES[name]()), False)
    fast, losses_too, game = played(made(**CASES[name]()), True)
    assert bool(game.flat) == ("sn" in game.methods)
    assert {k: float(v) for k, v in losses_too.items()} == pytest.approx(
        {k: float(v) for k, v in losses.items()}, rel=1e-4, abs=1e-4
    )
    for k, value in plain.items():
        assert torch.allclose(fast[k], value, rtol=1e-4, atol=1e-5), k


@pytest.mark.parametrize("name", CASES)
def test_in_bfloat16_it_is_as_near_to_fp32_as_the_plain_way(name: str, tiny: Make) -> None:
    made = functools.partial(tiny, optimizer=SGD, d_steps=2, ema=0.9)
    (exact, _, _), (plain, _, _), (fast, _, game) = (
        played(made(precision=p, **CASES[name]()), flat, 1)
        for p, flat in (("fp32", False), ("bf16", False), ("bf16", True))
    )
    assert len(game.flat) == 2
    for k, value in plain.items():
        assert value.is_floating_point() or torch.equal(fast[k], value), f"{k}: counts are counted"
    for part in ("generator/", "discriminator/"):
        names = [k for k, value in exact.items() if k.startswith(part) and value.is_floating_point()]
        far, near = (
            sum(float((run[k] - exact[k]).square().sum()) for k in names) ** 0.5 for run in (plain, fast)
        )
        assert near <= 2 * far, part
        assert far < 1, "or it would say nothing"


def test_whoever_moves_a_parameter_elsewhere_is_told(tiny: Make) -> None:
    _, _, game = played(tiny(), True)
    weight = next(iter(game.flat.values())).slots[0].parameter
    weight.data = weight.detach().clone()
    with pytest.raises(RuntimeError, match="does not lie"):
        update(game, lambda: Batch(torch.rand(8, 1, 16, 16)))


def test_outside_of_updates_passes_go_the_plain_way(tiny: Make) -> None:
    _, _, game = played(tiny(precision="bf16"), True)
    names = dict(game.discriminator.named_parameters())
    assert all(isinstance(p, nn.Parameter) for p in names.values())
    x = torch.rand(4, 1, 16, 16)
    assert game.discriminator.eval()(x).score.dtype == torch.float32


@pytest.mark.parametrize("iterations", [1, 3])
def test_all_vectors_at_once_are_each_weights_own(iterations: int) -> None:
    """u, v and sigma to 1e-6, of convolutions, of a transposed one, of lines, of a matrix."""
    torch.manual_seed(1)
    shapes, axes = [(8, 3, 3, 3), (6, 5, 4, 4), (7, 4, 5), (1, 40)], (0, 1, 0, 0)
    weights = [torch.randn(s) for s in shapes]
    weights[0] = weights[0].contiguous(memory_format=torch.channels_last)
    us = [torch.randn(w.shape[axis]) for w, axis in zip(weights, axes, strict=True)]
    at = Vectors(weights, axes, 1e-12)
    matrices = [rows(w, axis) for w, axis in zip(weights, axes, strict=True)]
    flat, inverse = power_iterations(matrices, us, iterations, at)
    stored = flat[at.stored].split(at.sizes)
    assert torch.equal(flat[at.stored][at.here], flat)
    for i, (w, axis, u) in enumerate(zip(weights, axes, us, strict=True)):
        matrix = as_matrix(w, axis)
        one_u, one_v = power_iteration(matrix, u, iterations, 1e-12)
        assert torch.allclose(stored[i], one_u, rtol=0, atol=1e-6)
        assert torch.allclose(stored[at.n + i], one_v, rtol=0, atol=1e-6)
        assert float(1 / inverse[i]) == pytest.approx(float(torch.dot(one_u, matrix.mv(one_v))), rel=1e-6)


def test_a_relu_without_second_derivative_is_torchs_to_the_bit() -> None:
    def penalty(f: Callable[[Tensor], Tensor]) -> list[Tensor]:
        torch.manual_seed(2)
        a, b = nn.Linear(5, 7), nn.Linear(7, 1)
        x = torch.randn(9, 5, requires_grad=True)
        (gradient,) = torch.autograd.grad(b(f(a(x))).sum(), x, create_graph=True)
        loss = gradient.norm(dim=1).sub(1).square().mean() + b(f(a(x))).mean()
        return [loss, *torch.autograd.grad(loss, [*a.parameters(), *b.parameters()])]

    assert all(torch.equal(one, two) for one, two in zip(penalty(relu), penalty(F.relu), strict=True))


def test_layer_norm_of_maps_that_lie_channels_last_copies_none() -> None:
    torch.manual_seed(3)
    norm, x = SampleNorm(6, 1e-5, "full"), torch.randn(4, 6, 5, 5)
    lies = x.contiguous(memory_format=torch.channels_last)
    y = norm(lies)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(y, norm(x), rtol=1e-5, atol=1e-6)
