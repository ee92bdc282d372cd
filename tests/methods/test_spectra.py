"""Singular values of weights: values by hand, against numpy, without side effects, and logged in training."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scenes import players
from test_loop import lines
from torch import nn

from ganlab.experiment import Experiment
from ganlab.methods import singular_values
from ganlab.methods.weight_norms import SpectralNorm, WeightNorm
from ganlab.methods.weights import raw_weight, weighted_layers
from ganlab.training import trainer
from ganlab.types import ImageShape

Make = Callable[..., Experiment]
pytestmark = pytest.mark.usefixtures("one_thread")


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 5, 4), nn.Flatten(), nn.Linear(20, 1))


def test_values_are_numpys_and_transposed_convolutions_count_their_outputs() -> None:
    net = small()
    matrices = singular_values.matrices(net)
    assert {k: tuple(m.shape) for k, m in matrices.items()} == {"0": (8, 27), "1": (5, 128), "3": (1, 20)}
    assert list(singular_values.matrices(net, only_convolutions=True)) == ["0", "1"]
    by_hand = net[1].weight.detach().double().numpy().transpose(1, 0, 2, 3).reshape(5, -1)
    s = singular_values.singular_values(matrices["1"])
    assert s.dtype == torch.float64
    np.testing.assert_allclose(s.numpy(), np.linalg.svd(by_hand, compute_uv=False), rtol=1e-6)
    assert singular_values.spectral_norms(net)["1"] == pytest.approx(float(s[0]))
    assert singular_values.raw_spectral_norms(net) == {}


def test_effective_weights_of_weight_norm_have_squares_that_sum_to_the_rows() -> None:
    """SNGAN, appendix D: sum of squared singular values = d_out."""
    net = small()
    before = singular_values.spectral_norms(net)
    WeightNorm().prepare(players(net))
    for matrix in singular_values.matrices(net).values():
        assert float(singular_values.singular_values(matrix).square().sum()) == pytest.approx(
            len(matrix), rel=1e-5
        )
    assert singular_values.raw_spectral_norms(net) == pytest.approx(before)


def test_reading_a_spectrally_normalised_weight_moves_nothing() -> None:
    net = small().train()
    SpectralNorm().prepare(players(net))
    state = {k: v.clone() for k, v in net.state_dict().items()}
    random = torch.get_rng_state()
    layer = net[0]
    effective = singular_values.effective_weight(layer)
    sigma = torch.dot(
        state["0.parametrizations.weight.0.u"],
        raw_weight(layer).flatten(1).mv(state["0.parametrizations.weight.0.v"]),
    )
    torch.testing.assert_close(effective, raw_weight(layer).detach().flatten(1) / sigma.detach())
    singular_values.spectral_norms(net)
    singular_values.raw_spectral_norms(net)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(m.training for m in net.modules())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_concentration_by_hand() -> None:
    assert singular_values.share_of_largest(torch.tensor([1.0, 1.0, 1.0, 1.0])) == 0.25
    assert singular_values.share_of_largest(torch.tensor([1.0, 2.0])) == pytest.approx(0.8)
    assert singular_values.effective_rank(torch.ones(5)) == pytest.approx(5)
    assert singular_values.effective_rank(torch.tensor([3.0, 0.0, 0.0])) == pytest.approx(1)
    p = (0.75, 0.25)
    by_hand = math.exp(-sum(q * math.log(q) for q in p))
    assert singular_values.effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(by_hand)
    assert bool(singular_values.singular_values(torch.tensor([[math.nan, 1.0]])).isnan().all())


def records(run: Path, kind: str) -> list[dict[str, float]]:
    return [r for r in lines(run) if r["kind"] == kind]


def test_training_records_the_norms_and_is_not_moved_by_it(tiny: Make, tmp_path: Path) -> None:
    """The same run with and without: the same losses, to the last bit; the record is the checkpoint's own."""
    runs = {}
    for every in (0, 4):
        e = tiny(spectral_every=every, run_dir=str(tmp_path / f"run{every}"), steps=8, eval_every=0)
        trainer.train(e, {"steps": 8, "spectral_every": every}, {}, [])
        runs[every] = tmp_path / f"run{every}"
    assert records(runs[0], "spectral") == []
    logged = records(runs[4], "spectral")
    assert [r["step"] for r in logged] == [0, 4, 8]
    for a, b in zip(records(runs[0], "train"), records(runs[4], "train"), strict=True):
        assert {k: v for k, v in a.items() if "loss" in k} == {k: v for k, v in b.items() if "loss" in k}
    from ganlab.config import saved_run
    from ganlab.runs.folder import RunFolder

    game, _ = saved_run.restore(RunFolder(runs[4]), tiny(steps=8), "last", torch.device("cpu"))
    for name, value in singular_values.spectral_norms(game.discriminator).items():
        assert logged[-1][f"spectral/{name}"] == pytest.approx(value)
    for name, value in singular_values.raw_spectral_norms(game.discriminator).items():
        assert logged[-1][f"spectral_raw/{name}"] == pytest.approx(value)
    names = [name for name, _ in weighted_layers(game.discriminator)]
    assert [k.partition("/")[2] for k in logged[0] if k.startswith("spectral/")] == names


def test_spectral_every_may_change_when_a_run_goes_on(tiny: Make, tmp_path: Path) -> None:
    trainer.train(tiny(steps=4, eval_every=0), {"steps": 4}, {}, [])
    trainer.train(tiny(steps=8, eval_every=0, spectral_every=2), {"steps": 8, "spectral_every": 2}, {}, [])
    assert [r["step"] for r in records(tmp_path / "run", "spectral")] == [6, 8]


def test_shape_of_cnn_layers_is_figure_3s() -> None:
    """27, 64, 128, 128, 256, 256, 512 singular values, the ticks of the paper's axes."""
    from ganlab.models.cnn import CNN

    d = CNN().discriminator(ImageShape(3, 32, 32), 0, None)
    counts = [min(m.shape) for m in singular_values.matrices(d, only_convolutions=True).values()]
    assert counts == [27, 64, 128, 128, 256, 256, 512]
