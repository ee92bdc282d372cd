"""BEGAN's losses, its k and M_global by hand, its networks, and updates of both players at once."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from ganlab.experiment import Experiment
from ganlab.methods.began import BEGAN
from ganlab.methods.timetable import Halving
from ganlab.models.began import AutoEncoderGAN
from ganlab.training.build import build_gan
from ganlab.training.step import update
from ganlab.types import Batch, ImageShape, Verdict

Make = Callable[..., Experiment]
CPU = torch.device("cpu")
SHAPE = ImageShape(3, 16, 16)


def balanced(loss: BEGAN, real: float, fake: float, gan: object = None) -> None:
    means = {"d_real": torch.tensor(-real), "g": torch.tensor(fake)}
    loss.after_round(gan, means)


def test_losses_and_k_by_hand() -> None:
    loss = BEGAN(gamma=0.5, rate=0.1)
    real, fake = Verdict(torch.tensor([-2.0, -4.0])), Verdict(torch.tensor([-1.0, -1.0]))
    assert loss.discriminator(real, fake) == 3, "k starts at 0"
    balanced(loss, 3.0, 1.0)  # 0.5 * 3 - 1 = 0.5
    assert loss.k == pytest.approx(0.05)
    assert loss.m == pytest.approx(3.5)
    assert loss.discriminator(real, fake) == pytest.approx(3 - 0.05)
    assert loss.generator(None, fake) == 1
    balanced(loss, 1.0, 2.0)  # 0.5 - 2: k would be negative
    assert loss.k == 0
    assert loss.m == pytest.approx(2.5)
    assert loss.scores() == {"m_global": pytest.approx(3.0)}


def test_rates_are_halved_when_the_measure_stalls() -> None:
    rates: list[float] = []
    gan = SimpleNamespace(scale_rates=lambda factor: rates.append(float(factor)))
    loss = BEGAN(patience=3, window=1)
    for value in (5.0, 4.0, 4.0, 4.5, 4.0, 3.0, 3.0, 3.0, 3.0):
        balanced(loss, value, value / 2, gan)
    assert rates == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]
    assert [Halving(10, 0.3)(step) for step in (0, 9, 10, 19, 20, 99)] == [1, 1, 0.5, 0.5, 0.3, 0.3]


@pytest.mark.parametrize(("side", "g", "encoder"), [(32, 1_421_443, 5_707_200), (64, 1_716_611, 11_688_768)])
def test_networks_have_the_published_sizes(side: int, g: int, encoder: int) -> None:
    shape, networks = ImageShape(3, side, side), AutoEncoderGAN()
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in net.parameters())
            for net in (networks.generator(shape, 0), networks.discriminator(shape, 0, None))
        ]
    assert sizes == [g, encoder + g]


def test_d_scores_the_error_of_its_reconstruction_and_both_sides_have_gradients() -> None:
    torch.manual_seed(0)
    d = AutoEncoderGAN(width=0.04).discriminator(SHAPE, 0, None).double()
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    error = (x - d.reconstruct(x)).abs()
    assert torch.allclose(d(x).score.double(), -error.mean((1, 2, 3)), atol=1e-6)
    (gradient,) = torch.autograd.grad(error.mean(), x)
    (without,) = torch.autograd.grad((x - d.reconstruct(x).detach()).abs().mean(), x)
    assert not torch.allclose(gradient, without)


def players(tiny: Make, **changes: object) -> Experiment:
    return tiny(
        architecture=AutoEncoderGAN(width=0.04, z_dim=8), loss=BEGAN(rate=0.5), normalization={}, **changes
    )


@pytest.mark.parametrize(("order", "player"), [("d_first", "discriminator"), ("g_first", "generator")])
def test_both_players_are_updated_from_the_same_weights_and_latents(
    tiny: Make, order: str, player: str
) -> None:
    """As the player that moves first is from the same weights and latents."""
    weights = []
    for each in (order, "together"):
        gan = build_gan(players(tiny, order=each), CPU, shape=SHAPE)
        x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
        torch.manual_seed(3)
        update(gan, lambda x=x: Batch(x))
        weights.append(getattr(gan, player).state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_bad_settings(tiny: Make) -> None:
    with pytest.raises(ValueError, match="gamma"):
        BEGAN(gamma=1.5)
    with pytest.raises(ValueError, match="loss: D is no auto-encoder; use architecture=began"):
        tiny(loss=BEGAN())
    with pytest.raises(ValueError, match="order: both players"):
        players(tiny, order="together", d_steps=2)
