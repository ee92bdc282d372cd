"""One round of the gan: micro batches against whole ones, the order of the players, the class loss."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scenes import scene
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ganlab.experiment import Experiment
from ganlab.methods.base import Scene
from ganlab.methods.losses import ClassLoss, Hinge, Loss, Wasserstein
from ganlab.methods.penalties import Orthonormal, SpectralNormRegularization
from ganlab.methods.weight_norms import SpectralNorm
from ganlab.methods.weights import weighted_layers
from ganlab.models.base import Architecture, Norm
from ganlab.models.resnet import ResNet
from ganlab.training.build import build_gan
from ganlab.training.gan import GAN
from ganlab.training.step import (
    freeze_power_iteration,
    update,
    update_discriminator,
    update_ema,
    update_generator,
)
from ganlab.types import Batch, ImageShape, Verdict

Make = Callable[..., Experiment]
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


class Plain(Architecture):
    """A G without batch norm and a small D: what accumulation must leave as it is."""

    z_dim = 4

    def check(self, shape: ImageShape) -> None:
        pass

    def generator(self, shape: ImageShape, num_classes: int) -> nn.Module:
        net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 256), nn.Unflatten(1, tuple(shape)))

        class G(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
                return self.net(z).tanh()  # type: ignore[no-any-return]

        return G()

    def discriminator(self, shape: ImageShape, num_classes: int, norm: Norm) -> nn.Module:
        class D(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.dense = nn.Conv2d(1, 8, 4, 2, 1), nn.Linear(8 * 64, 1)

            def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
                return Verdict(self.dense(F.relu(self.conv(x)).flatten(1)).squeeze(1))

        return D()


class NeedsReal(Hinge):
    """A loss whose G looks at real images too, one by one."""

    needs = frozenset({"real_in_g"})

    def generator(self, real: Verdict | None, fake: Verdict) -> Tensor:
        assert real is not None
        return real.score.square().mean() - fake.score.mean()


def played(tiny: Make, rounds: int = 3, **changes: Any) -> tuple[list[Tensor], dict[str, float]]:
    """All weights after some rounds on the same real images, and the last round's numbers."""
    gan = build_gan(tiny(architecture=Plain(), batch_size=16, **changes), CPU)
    torch.manual_seed(0)
    batches = iter(torch.rand(40, 16, 1, 16, 16) * 2 - 1)
    losses: dict[str, Tensor] = {}
    for _ in range(rounds):
        losses = update(gan, lambda: Batch(next(batches)))
    weights = [*gan.generator.state_dict().values(), *gan.discriminator.state_dict().values()]
    return weights, {name: float(value) for name, value in losses.items()}


def test_the_moving_average_follows_weights_and_buffers(tiny: Make) -> None:
    """It becomes G first, then moves by a quarter, batch norm's averages and counts with it."""
    gan = build_gan(tiny(ema=0.75), CPU)
    assert gan.ema is not None

    def state(net: nn.Module) -> dict[str, Tensor]:
        return {k: v.clone() for k, v in net.state_dict().items()}

    names = state(gan.generator)
    assert {k.rpartition(".")[2] for k in names} >= {"weight", "running_mean", "running_var"}
    expected: dict[str, Tensor] = {}
    for number in range(3):
        with torch.no_grad():
            for value in gan.generator.state_dict().values():
                value.add_(torch.randn(value.shape) if value.is_floating_point() else 9)
        update_ema(gan)
        g = state(gan.generator)
        for k, new in g.items():
            old = expected.get(k, new)
            mixed = 0.75 * old.double() + 0.25 * new.double()
            expected[k] = mixed.float() if new.is_floating_point() else mixed.long()
        for k, value in state(gan.ema.module).items():
            assert torch.allclose(value, expected[k], atol=1e-6), (number, k)
    assert gan.ema.n_averaged == 3


def test_every_update_of_g_moves_the_average(tiny: Make) -> None:
    gan = build_gan(tiny(ema=0.75, batch_size=4), CPU)
    assert gan.ema is not None
    batches = iter(torch.rand(40, 4, 1, 16, 16) * 2 - 1)
    expected: list[Tensor] = []
    for _ in range(3):
        update(gan, lambda: Batch(next(batches)))
        new = [v.clone() for v in [*gan.generator.parameters(), *gan.generator.buffers()]]
        expected = [
            a.lerp(b, 0.25) if a.is_floating_point() else b for a, b in zip(expected or new, new, strict=True)
        ]
        averages = [*gan.ema.module.parameters(), *gan.ema.module.buffers()]
        for a, b in zip(averages, expected, strict=True):
            assert not a.is_floating_point() or torch.allclose(a, b, atol=1e-6)


def test_scores_are_told_of_the_last_update_of_d_alone(tiny: Make) -> None:
    gan = build_gan(tiny(architecture=Plain(), batch_size=16, d_steps=2, loss=Wasserstein()), CPU)
    images = torch.rand(16, 1, 16, 16) * 2 - 1
    losses = update(gan, lambda: Batch(images))
    assert losses["d"] == pytest.approx(float(losses["d_fake"] - losses["d_real"]), rel=1e-5)
    assert {"d_real", "d_fake"} & update_discriminator(gan, Batch(images), log_scores=False).keys() == set()


def sgd(lr: float = 0.1) -> Callable[..., Any]:
    return functools.partial(torch.optim.SGD, lr=lr)


@pytest.mark.parametrize("loss", [Hinge, NeedsReal])
def test_micro_batches_make_the_same_update(tiny: Make, loss: type[Loss]) -> None:
    def changes() -> dict[str, Any]:
        norms = {"sn": SpectralNorm(update="per_update"), "orthonormal": Orthonormal()}
        return {"loss": loss(), "normalization": norms, "d_steps": 2, "g_batch_size": 32, "optimizer": sgd()}

    whole, losses = played(tiny, **changes())
    parts, losses_too = played(tiny, accumulate=4, **changes())
    start, _ = played(tiny, rounds=0, **changes())
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-6) for a, b in zip(whole, parts, strict=True))
    assert losses == pytest.approx(losses_too, rel=1e-5, abs=1e-6)
    assert any((a - b).abs().max() > 1e-2 for a, b in zip(whole, start, strict=True)), "it was a long way"


@pytest.mark.parametrize("accumulate", [1, 4])
def test_spectral_norms_iterate_as_often_with_micro_batches(
    accumulate: int, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice in D's update and once in G's, as in the authors' code: once for each pass of a micro batch."""
    from ganlab.methods.weight_norms import AtOnce

    counted = 0
    renew = AtOnce.renew

    def count(self: AtOnce, iterations: int | None) -> Any:
        nonlocal counted
        counted += len(self.lists) * (iterations or 0)
        return renew(self, iterations)

    monkeypatch.setattr(AtOnce, "renew", count)
    gan = build_gan(tiny(architecture=Plain(), batch_size=16, accumulate=accumulate), CPU)
    layers = len(list(weighted_layers(gan.discriminator)))
    counted = 0
    update_discriminator(gan, Batch(torch.rand(16, 1, 16, 16)))
    assert counted == 2 * layers
    update_generator(gan, lambda: pytest.fail("hinge needs no real images for G"))
    assert counted == 3 * layers
    assert all(m.training for m in gan.discriminator.modules()), "and all are as they were"


def test_regularised_spectral_norms_iterate_once_an_update(tiny: Make) -> None:
    """D's vectors ``snr_u`` are where the whole batch leaves them, and so are the weights."""
    runs = [
        played(
            tiny,
            accumulate=n,
            normalization={"snr": SpectralNormRegularization(weight=1.0)},
            d_steps=2,
            optimizer=sgd(),
        )
        for n in (1, 4)
    ]
    (whole, losses), (parts, losses_too) = runs
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(whole, parts, strict=True))
    assert losses == pytest.approx(losses_too, rel=1e-4)


def test_still_is_for_parametrisations_alone(tiny: Make) -> None:
    d = build_gan(tiny(architecture=Plain()), CPU).discriminator
    module = d.conv.parametrizations.weight[0]
    assert parametrize.is_parametrized(d.conv)
    with freeze_power_iteration(d):
        assert (d.training, d.conv.training, module.training) == (True, True, False)
    assert module.training


def test_micro_batches_are_never_whole(tiny: Make) -> None:
    gan = build_gan(tiny(architecture=Plain(), batch_size=16, g_batch_size=8, accumulate=4), CPU)
    seen: list[int] = []
    gan.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    update(gan, lambda: Batch(torch.rand(16, 1, 16, 16)))
    assert seen == [4] * 8 + [2] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"accumulate": 3},
            "accumulate: batch_size=8 does not split into 3 micro batches of at least 2; choose",
        ),
        (
            {"accumulate": 8},
            "accumulate: batch_size=8 does not split into 8 micro batches of at least 2; choose",
        ),
        (
            {"accumulate": 4, "g_batch_size": 10},
            "g_batch_size=10 does not split into 4 micro batches of at least 2; choose",
        ),
        (
            {"architecture": ResNet(head="ac")},
            "class_loss: architecture.head=ac has a classifier, but no loss is set; set",
        ),
        ({"class_loss": ClassLoss()}, "class_loss: D has no classifier; set architecture.head=ac"),
    ],
)
def test_mistakes(tiny: Make, changes: dict[str, Any], message: str) -> None:
    from ganlab.data.digits import Digits

    with pytest.raises(ValueError, match=message):
        tiny(dataset=Digits(), **changes)


def turns(gan: GAN) -> list[str]:
    """Whose optimiser moved, in order."""
    moved: list[str] = []
    for name, optimizer in (("d", gan.d_optimizer), ("g", gan.g_optimizer)):
        optimizer.register_step_post_hook(lambda *_, name=name: moved.append(name))
    update(gan, lambda: Batch(torch.rand(8, 1, 16, 16)))
    return moved


def test_order_of_the_players(tiny: Make) -> None:
    first = {order: build_gan(tiny(d_steps=3, order=order), CPU) for order in ("d_first", "g_first")}
    assert {order: "".join(turns(gan)) for order, gan in first.items()} == {
        "d_first": "dddg",
        "g_first": "gddd",
    }


# ---- the class loss ------------------------------------------------------------------------------------


def verdicts() -> tuple[Verdict, Tensor, Verdict, Tensor]:
    torch.manual_seed(0)
    real, fake = (Verdict(torch.randn(4), None, torch.randn(4, 3)) for _ in range(2))
    return real, torch.tensor([0, 1, 2, 2]), fake, torch.tensor([1, 1, 0, 2])


def by_hand(verdict: Verdict, y: Tensor) -> float:
    assert verdict.class_logits is not None
    rows = zip(verdict.class_logits.tolist(), y.tolist(), strict=True)
    return sum(math.log(sum(map(math.exp, row))) - row[c] for row, c in rows) / len(y)


@pytest.mark.parametrize(
    ("loss", "d_fake", "g_fake"), [(ClassLoss(), 0.0, 0.1), (ClassLoss(1.0, 1.0, 1.0), 1.0, 1.0)]
)
def test_class_loss_is_its_formula(loss: ClassLoss, d_fake: float, g_fake: float) -> None:
    real, real_y, fake, fake_y = verdicts()
    wanted = by_hand(real, real_y) + d_fake * by_hand(fake, fake_y)
    x = torch.zeros(4, 1)
    seen = scene(torch.nn.Identity(), Batch(x, real_y), Batch(x, fake_y), (real, fake))
    assert loss.d_term(seen).item() == pytest.approx(wanted, rel=1e-5)
    assert loss.g_term(seen).item() == pytest.approx(g_fake * by_hand(fake, fake_y), rel=1e-5)


def test_the_class_loss_moves_both_players_and_is_told(tiny: Make) -> None:
    from ganlab.data.digits import Digits

    def after(**changes: Any) -> tuple[dict[str, Tensor], list[Tensor]]:
        resnet = ResNet(width=0.03, z_dim=4, head="ac")
        e = tiny(architecture=resnet, dataset=Digits(), optimizer=sgd(), batch_size=4, **changes)
        gan = build_gan(e, CPU, 10)
        torch.manual_seed(0)
        losses = update(gan, lambda: Batch(torch.rand(4, 1, 32, 32), torch.arange(4)))
        return losses, [gan.discriminator.classify.weight, gan.generator.dense.weight]

    losses, (d, g) = after(class_loss=ClassLoss(1.0, 1.0, 1.0))
    none, (d_none, g_none) = after(class_loss=ClassLoss(0.0, 0.0, 0.0))
    _, (d_real, _) = after(class_loss=ClassLoss(1.0, 0.0, 0.0))
    assert {"d_class", "g_class"} <= set(losses)
    assert float(losses["g_class"]) > 0 == float(none["g_class"])
    assert not torch.equal(d, d_none)
    assert not torch.equal(d, d_real), "the fakes' term counts"
    assert not torch.equal(g, g_none)


def test_labels_reach_a_term_that_needs_them_and_no_unconditional_network(tiny: Make) -> None:
    seen: list[Tensor] = []

    class Supervised(Hinge):
        needs = frozenset({"labelled"})

        def d_term(self, scene: Scene) -> Tensor | None:
            assert scene.labelled is not None
            assert (scene.real.y, scene.fake.y) == (None, None)
            seen.append(scene.labelled.y)  # type: ignore[arg-type]
            return super().d_term(scene)

    gan = build_gan(tiny(loss=Supervised()), CPU)
    update(gan, lambda: Batch(torch.rand(8, 1, 16, 16), torch.arange(8)))
    assert [y.tolist() for y in seen] == [list(range(8))]
