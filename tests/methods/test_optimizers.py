"""TensorFlow's RMSProp: how far it moves, in updates that are recorded, and in configs."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from test_engine import played, small, start
from torch import nn

from ganlab.config import compose
from ganlab.errors import ConfigError
from ganlab.experiment import Experiment
from ganlab.methods.constraints import WeightClip
from ganlab.methods.losses import Wasserstein
from ganlab.sweeps import grid, plan
from ganlab.training import engine
from ganlab.training.engine import Engine, Graphed
from ganlab.training.optimizers import RMSpropTF, use_fused_kernels

Make = Callable[..., Experiment]


def test_first_steps_are_as_small_as_tensorflows() -> None:
    """In units of the rate, at a gradient of 1e-3; torch's own moves by 51, 203 and 624 (decay 0.99)."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.double))
    optimizer, moved = RMSpropTF([weight], lr=0.5), {}
    for step in range(1, 501):
        weight.grad = torch.full_like(weight, 1e-3)
        optimizer.step()
        moved[step] = -weight.item() / 0.5
    assert [round(moved[10], 2), round(moved[100], 1), int(moved[500])] == [0.01, 3.7, 382]


def test_eps_is_under_the_root_and_what_has_no_gradient_stays() -> None:
    random = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(3, 2, generator=random).double()) for _ in range(3)]
    expected, mean_square = (
        [w.detach().clone() for w in weights],
        [torch.ones(3, 2).double() for _ in weights],
    )
    optimizer = RMSpropTF(
        [{"params": weights[:2]}, {"params": weights[2:], "lr": 0.3}], lr=0.1, alpha=0.8, eps=0.05
    )
    for _ in range(5):
        for i in (0, 2):
            weights[i].grad = torch.randn(3, 2, generator=random).double()
            mean_square[i] = 0.8 * mean_square[i] + 0.2 * weights[i].grad ** 2
            expected[i] = (
                expected[i] - (0.1 if i == 0 else 0.3) * weights[i].grad / (mean_square[i] + 0.05) ** 0.5
            )
        optimizer.step()
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(weights, expected, strict=True))
    assert weights[1] not in optimizer.state


def test_an_update_with_it_can_be_recorded(tiny: Make, one_thread: None) -> None:
    def fresh() -> Experiment:
        optimizer = functools.partial(RMSpropTF, lr=5e-3)
        return small(tiny, optimizer=optimizer, normalization={"wc": WeightClip()}, loss=Wasserstein())

    eager, losses = played(Engine(fresh(), *start(fresh())), 7)
    traced = Graphed(Engine(fresh(), *start(fresh())))
    replayed, losses_too = played(traced, 7)
    assert traced.graph is not None, traced.why
    assert [k for k in eager if not torch.equal(eager[k], replayed[k])] == []
    assert losses == losses_too
    optimizer = use_fused_kernels(RMSpropTF([nn.Parameter(torch.ones(2))]), torch.device("cpu"))

    assert engine.is_graph_safe(optimizer)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["optimizer.lr=-1"], "optimizer.lr: -1 is not a number >= 0"),
        (["optimizer.alpha=1"], "optimizer.alpha: 1 is not a number >= 0 and < 1"),
        (
            ["optimizer.momentum=0.9"],
            "optimizer.momentum: ganlab.training.optimizers.RMSpropTF has no 'momentum'",
        ),
        (["optimizer._partial_=false"], "optimizer._partial_: must be true"),
        (["d_optimizer.eps=0"], "d_optimizer.eps: 0 is not a number > 0"),
    ],
)
def test_mistakes_are_a_line(words: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose.build(compose.compose(["setting=wgan_tf", *words]))
    (mistake,) = caught.value.mistakes
    assert line in str(mistake)


def test_the_clipping_runs_of_wgan_gps_figures_have_it() -> None:
    for name in ("wgan_gp_fig1a", "wgan_gp_fig1b"):  # of the others, see tests/models/test_wgan_nets.py
        jobs = plan.plan_grid(name, [], grid.Scale(), None).jobs
        clipped = [job.tree for job in jobs if "wc" in job.tree["normalization"]]
        assert clipped
        assert {tree["optimizer"]["_target_"] for tree in clipped} == {
            "ganlab.training.optimizers.RMSpropTF"
        }, name


def test_the_grid_of_appendix_e_records_what_figure_15a_draws() -> None:
    jobs = plan.plan_grid("sngan_appendix_e", [], grid.Scale(), None).jobs
    assert {job.tree["validation"] for job in jobs} == {True}
