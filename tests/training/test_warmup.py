"""D's warm-up (WGAN's code): more D updates before some of G's, and the same real images by place in the run.

Beside it the optimiser's arguments that are others for D.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine import played, small, start
from test_loop import go, interrupted, state
from test_ranks import one_of

from ganlab.config import compose
from ganlab.distributed import collectives
from ganlab.errors import ConfigError
from ganlab.experiment import Experiment
from ganlab.methods.losses import Wasserstein
from ganlab.methods.penalties import GradientPenalty
from ganlab.methods.weight_norms import SpectralNorm
from ganlab.runs.checkpoint import Checkpoints
from ganlab.runs.folder import RunFolder
from ganlab.sweeps.cost import UpdateTimer
from ganlab.training import step
from ganlab.training.build import build_gan
from ganlab.training.engine import Engine, Graphed
from ganlab.training.gan import GAN
from ganlab.types import Batch

Make = Callable[..., Experiment]
WARM: dict[str, Any] = {"d_steps": 2, "d_warmup_steps": 5, "d_warmup_updates": 2, "d_warmup_every": 4}
pytestmark = pytest.mark.usefixtures("one_thread")


def test_wgans_rule() -> None:
    """gen_iterations < 25 or gen_iterations % 500 == 0: 100 updates of D, else 5 (main.py of its code)."""
    e = compose.build(
        compose.compose(["d_steps=5", "d_warmup_steps=100", "d_warmup_updates=25", "d_warmup_every=500"])
    )
    for i in (0, 1, 24, 25, 26, 499, 500, 501, 999, 1000):
        assert e.timetable.round(i).d_steps == (100 if i < 25 or i % 500 == 0 else 5), i


@pytest.mark.parametrize(("first", "every"), [(0, 3), (7, 0), (7, 3), (1, 1)])
def test_what_came_before_an_update_in_closed_form(first: int, every: int, tiny: Make) -> None:
    e = tiny(d_steps=2, d_warmup_steps=6, d_warmup_updates=first, d_warmup_every=every)
    for at in range(25):
        counted = sum(e.timetable.round(i).d_steps for i in range(at))
        assert e.timetable.round(at).first_sample == counted * e.batch_size, at


def test_every_image_of_the_run_comes_once_and_in_order(tiny: Make) -> None:
    e = tiny(**WARM)
    _, feed = start(e)
    _, plain = start(tiny())
    batches = []
    for at in range(8):
        feed.place(at)
        batches += [feed().x for _ in range(e.timetable.round(at).d_steps)]
    assert len(batches) == 5 * 3 + 2 * 5, "updates 0, 1 and 4 warm up"
    for at, x in enumerate(batches):
        plain.place(at)
        assert torch.equal(x, plain().x), f"batch {at} is that of a run of one batch an update"


def test_d_and_g_are_updated_as_often_as_said(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    played_: list[str] = []
    for name in ("update_discriminator", "update_generator"):
        real = getattr(step, name)

        def counted(*args: Any, real: Any = real, name: str = name) -> Any:
            played_.append(name[7])
            return real(*args)

        monkeypatch.setattr(step, name, counted)
    e = tiny(**WARM)
    made = Engine(e, *start(e))
    for at in range(6):
        made.update(at)
    assert "".join(played_) == "dddddg" * 2 + "ddg" * 2 + "dddddg" + "ddg"


def test_warm_updates_among_recorded_ones(tiny: Make) -> None:
    """A recorded update has its number of D updates; those that warm up run eagerly, before and after."""

    def fresh() -> Experiment:
        norms = {"sn": SpectralNorm(), "gp": GradientPenalty()}
        return small(tiny, **WARM, ema=0.9, normalization=norms, loss=Wasserstein())

    e = fresh()
    eager, losses = played(Engine(e, *start(e)), 12)
    e = fresh()
    traced = Graphed(Engine(e, *start(e)))
    warm: list[int] = []
    inner = traced.inner._run_update
    traced.inner._run_update = lambda at: (warm.append(at), inner(at))[1]  # type: ignore[method-assign]
    replayed, losses_too = played(traced, 12)
    assert traced.graph is not None, traced.why
    assert warm == [0, 1, 2, 3, 4, 5, 8], "2 runs eagerly, 3 is recorded, 5 compared; the others warm D up"
    assert [k for k in eager if not torch.equal(eager[k], replayed[k])] == []
    assert losses == losses_too


def test_resume_about_a_warmup_is_bitwise(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {**WARM, "flip": True, "dequantize": True, "steps": 6, "eval_every": 0, "sample_every": 0}
    go(tiny(run_dir=str(tmp_path / "whole"), **more))
    for polls in (1, 5):
        interrupted(tiny, monkeypatch, tmp_path / f"parts{polls}", polls, **more)
        assert state(tmp_path / "whole", 6) == state(tmp_path / f"parts{polls}", 6)


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["d_warmup_steps=100"], ["d_warmup_steps: 100 updates of D, but no update of G uses them; set"]),
        (
            ["d_warmup_updates=25", "d_warmup_every=500"],
            ["d_warmup_updates: has no effect with d_warmup_steps=0; set"],
        ),
        (["d_steps=5", "d_warmup_steps=3", "d_warmup_every=9"], ["d_warmup_steps: 3 is less than d_steps=5"]),
        (
            ["d_warmup_steps=9", "d_warmup_updates=1", "joint_fakes=true"],
            ["joint_fakes: can't generate the images of all 9 updates of a warm-up in one pass of G; set"],
        ),
        (
            ["d_warmup_steps=-1", "d_optimizer.weight_decy=1e-3", "d_optimizer.lr=-1"],
            [
                "d_warmup_steps: -1 is not an integer >= 0",
                "did you mean 'd_optimizer.weight_decay'?",
                "d_optimizer.lr: -1 is not a number >= 0",
            ],
        ),
        (["d_optimizer=4e-4"], ["d_optimizer: 0.0004 is not a mapping or null"]),
        (["d_optimizer._target_=torch.optim.SGD"], ["is a class, not arguments; omit its _target_"]),
        (
            ["setting=A", "optimizer={_target_: torch.optim.RMSprop, betas: [0.5, 0.9]}"],
            ["optimizer.betas: "],
        ),
    ],
)
def test_mistakes_are_a_line(words: list[str], lines: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose.build(compose.compose(words))
    mistakes = [str(m) for m in caught.value.mistakes]
    assert all(any(line in m for m in mistakes) for line in lines), mistakes
    assert not any("did you mean 'd_optimizer.betas'" in m for m in mistakes), "a wrong key is no suggestion"


def test_the_shares_of_ranks_make_up_a_warm_update(tiny: Make) -> None:
    e = tiny(**WARM)
    _, whole = start(e)
    shares = []
    for rank in range(2):
        with collectives.use_ranks(one_of(rank, 2)):
            _, feed = start(e)
            feed.place(4)
            shares.append(feed.current.x.unflatten(0, (-1, 4)))
    whole.place(4)
    assert torch.equal(torch.cat(shares, 1), whole.current.x.unflatten(0, (-1, 8)))


def test_what_is_timed_for_an_estimate_is_a_usual_update(tiny: Make) -> None:
    for changes, first in ((WARM, 2), ({**WARM, "d_warmup_every": 0}, 2), ({}, 0)):
        trial = UpdateTimer(tiny(**changes), torch.device("cpu"))
        assert next(trial.steps) == first
        trial.update()


# ---- d_optimizer


@pytest.mark.parametrize(
    "words",
    [
        ["d_optimizer.weight_decay=1e-3", "d_optimizer.lr=4e-4"],
        ["d_optimizer={lr: 4e-4, weight_decay: 1e-3}"],
    ],
)
def test_ds_own_arguments(words: list[str]) -> None:
    e = compose.build(compose.compose(["architecture.width=0.04", "setting=B", *words]))
    gan = build_gan(e, torch.device("cpu"))
    (of_g,), (of_d,) = gan.g_optimizer.param_groups, gan.d_optimizer.param_groups
    assert (of_g["lr"], of_g["weight_decay"], of_g["betas"]) == (1e-4, 0, (0.5, 0.999))
    assert (of_d["lr"], of_d["weight_decay"], of_d["betas"]) == (4e-4, 1e-3, (0.5, 0.999))
    assert (of_g["initial_lr"], of_d["initial_lr"]) == (1e-4, 4e-4)
    gan.schedule("optimizer.lr", 0.5)
    assert (of_g["lr"], of_d["lr"]) == (5e-5, 2e-4), "both fall by the same factor"


def test_weight_decay_on_d_alone_by_hand(tiny: Make) -> None:
    """SGD: w - lr (gradient + decay w); with a loss of no gradient for D, w (1 - lr decay)."""

    class Silent(Wasserstein):
        def discriminator(self, real: Any, fake: Any) -> torch.Tensor:
            return 0 * (real.score.sum() + fake.score.sum())  # type: ignore[no-any-return]

    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    e = tiny(optimizer=sgd, d_optimizer={"weight_decay": 0.5}, normalization={}, loss=Silent())
    gan: GAN = build_gan(e, torch.device("cpu"))
    before = copy.deepcopy(gan.discriminator)
    step.update(gan, lambda: Batch(torch.rand(8, *e.shape)))
    for old, new in zip(before.parameters(), gan.discriminator.parameters(), strict=True):
        assert torch.allclose(new, old * 0.95, atol=1e-7)


def test_another_d_optimizer_on_resume_is_refused_and_allowed_by_name(tiny: Make) -> None:
    def config(**changes: Any) -> dict[str, Any]:
        return {"_target_": "ganlab.experiment.Experiment", "d_optimizer": None, **changes}

    go(tiny(steps=4), config())
    with pytest.raises(ConfigError, match=r"d_optimizer: this run folder was made with .*resume_allow"):
        go(tiny(steps=8, d_optimizer={"lr": 4e-4}), config(d_optimizer={"lr": 4e-4}))
    allowed = tiny(steps=8, d_optimizer={"lr": 4e-4}, resume_allow=["d_optimizer"])
    go(allowed, config(d_optimizer={"lr": 4e-4}))
    folder = RunFolder(Path(str(allowed.run_dir)))
    _, _, kept = Checkpoints(folder.checkpoints, folder.run_id).load()
    assert kept["game"]["d_optimizer"]["param_groups"][0]["lr"] == 4e-4


def test_options_that_do_not_go_together_are_ds_mistake(tiny: Make) -> None:
    with pytest.raises(ConfigError, match="d_optimizer: rejects these options"):
        go(tiny(d_optimizer={"fused": True, "foreach": True}))


def test_images_have_a_buffer_that_stays_for_each_number_of_them(tiny: Make) -> None:
    """A recorded update reads one; what warm-ups between its replays write lies in another."""
    _, feed = start(tiny(**WARM))
    seen = [(feed.place(at).d_steps, feed.current.x.data_ptr()) for at in range(6)]
    assert [n for n, _ in seen] == [5, 5, 2, 2, 5, 2]
    assert len({*seen}) == 2
