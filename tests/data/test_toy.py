"""Points in the plane: data as WGAN-GP's code makes it, its nets, their scores, a fixed generator."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MeanExtractor
from sklearn.datasets import make_swiss_roll
from test_loop import interrupted, state

from ganlab import rng
from ganlab.analysis.subjects import Subject
from ganlab.cli import main
from ganlab.config import compose
from ganlab.data.points import EightGaussians, Gaussian, PointSet, SwissRoll, TwentyFiveGaussians
from ganlab.errors import ConfigError
from ganlab.experiment import Experiment, Scoring
from ganlab.methods.losses import Wasserstein
from ganlab.methods.penalties import GradientPenalty
from ganlab.methods.priors import Normal
from ganlab.metrics.base import Fakes, MetricError, Real
from ganlab.metrics.modes import Modes, coverage
from ganlab.metrics.protocol import Protocol
from ganlab.metrics.wasserstein1 import Wasserstein1, distance
from ganlab.models.mlp import MLP
from ganlab.report.read import collect
from ganlab.training import trainer
from ganlab.training.build import build_gan
from ganlab.training.step import update
from ganlab.types import Batch, PointShape

CPU = torch.device("cpu")
PROTOCOL = Protocol(name="toy", is_n_fake=300, fid_n_fake=300)
SETS = (EightGaussians, TwentyFiveGaussians, SwissRoll, Gaussian)
Make = Callable[..., Experiment]
pytestmark = pytest.mark.usefixtures("one_thread")


def experiment(**changes: Any) -> Experiment:
    """A toy experiment of a dozen quick updates."""
    metrics = {"w1": Wasserstein1(n=100), "modes": Modes()}
    values: dict[str, Any] = {
        "dataset": EightGaussians(n=400),
        "architecture": MLP(width=0.03),
        "normalization": {"gp": GradientPenalty(weight=0.1)},
        "loss": Wasserstein(),
        "prior": Normal(),
        "optimizer": functools.partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.9)),
        "metric": Scoring(MeanExtractor(), PROTOCOL, metrics),
        "steps": 12,
        "d_steps": 2,
        "batch_size": 16,
        "device": "cpu",
        "log_every": 2,
        "save_every": 4,
        "eval_every": 6,
        "threads": 1,
    }
    return Experiment(**values | changes)


# ---- data ------------------------------------------------------------------------------------------------


def test_eight_gaussians_lie_on_a_circle_as_released() -> None:
    points = EightGaussians(n=8000).load()
    centres, std = EightGaussians().modes()
    r = 2 / math.sqrt(2)
    wanted = [(2, 0), (-2, 0), (0, 2), (0, -2), (r, r), (r, -r), (-r, r), (-r, -r)]
    assert np.allclose(centres, np.array(wanted) / 1.414, atol=1e-6)
    assert std == pytest.approx(0.02 / 1.414)
    offsets, counts = _around(points.images, centres)
    assert offsets.std() == pytest.approx(std, rel=0.03)
    assert np.abs(offsets).max() < 6 * std
    assert counts.min() > 850  # uniform over the modes
    assert points.images.dtype == np.float32


def test_25_gaussians_are_a_fixed_set_gone_through_in_order() -> None:
    made = TwentyFiveGaussians(per_mode=40)
    points = made.load()
    centres, std = made.modes()
    grid = list(itertools.product((-4, -2, 0, 2, 4), repeat=2))
    assert np.allclose(centres, np.array(grid) / 2.828, atol=1e-6)
    assert std == pytest.approx(0.05 / 2.828)
    offsets, counts = _around(points.images, centres)
    assert counts.tolist() == [40] * 25
    assert offsets.std() == pytest.approx(std, rel=0.05)
    first = np.abs(points.images[:25, None] - centres).sum(-1).argmin(1)
    assert first.tolist() != sorted(first.tolist())  # shuffled
    for seed in (0, 1):  # the run's seed does not move it, an epoch begins where it began
        batches = points.batches(CPU, seed)
        assert np.array_equal(batches.batch(0, 600).x, points.images[:600])
        assert np.array_equal(batches.batch(900, 200).x, np.roll(points.images, 100, 0)[:200])
    assert len(TwentyFiveGaussians().load()) == 100_000


def test_the_swiss_roll_is_scikit_learns() -> None:
    random = np.random.RandomState(3)
    whole = make_swiss_roll(50, noise=0.25, random_state=np.random.RandomState(3))[0]
    points = SwissRoll().draw(50, random)
    assert np.array_equal(points, (whole[:, [0, 2]] / 7.5).astype(np.float32))
    assert SwissRoll().modes() is None


def test_a_gaussian_on_a_line_has_its_mean_and_deviation() -> None:
    points = Gaussian(mean=3, std=0.5, n=20_000).load()
    assert points.shape == PointShape(1)
    assert points.images.shape == (20_000, 1)
    assert points.images.mean() == pytest.approx(3, abs=0.02)
    assert points.images.std() == pytest.approx(0.5, abs=0.02)
    fresh = points.batches(CPU, 0).batch(0, 4000).x
    assert float(fresh.mean()) == pytest.approx(3, abs=0.05)


def _around(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of points from their nearest centre, and how many each centre has."""
    which = np.linalg.norm(points[:, None] - centres, axis=-1).argmin(1)
    return points - centres[which], np.bincount(which, minlength=len(centres))


@pytest.mark.parametrize("kind", [EightGaussians, SwissRoll])
def test_fresh_points_are_a_function_of_seed_and_place(kind: Any) -> None:
    points = kind(n=50).load()
    a, b = points.batches(CPU, 5), points.batches(CPU, 5)
    late = b.batch(64, 32).x
    assert torch.equal(a.batch(0, 32).x, b.batch(0, 32).x)
    assert torch.equal(a.batch(64, 32).x, late)
    assert not torch.equal(a.batch(0, 32).x, late)
    assert not torch.equal(points.batches(CPU, 6).batch(64, 32).x, late)
    assert a.batch(0, 500).x.shape == (500, 2)  # more than ``n``: there is no end to them


@pytest.mark.parametrize("kind", SETS)
def test_splits_differ_and_stay(kind: Any) -> None:
    made = kind()
    train, test = made.load(), made.load(split="test")
    assert isinstance(train, PointSet)
    assert train.shape == PointShape(1 if kind is Gaussian else 2)
    assert train.fingerprint == kind().load().fingerprint != test.fingerprint
    assert kind(data_seed=1).load().fingerprint != train.fingerprint


# ---- networks --------------------------------------------------------------------------------------------


def test_networks_have_the_released_size_and_start() -> None:
    torch.manual_seed(0)
    nets = MLP()
    g, d = nets.generator(PointShape(2), 0), nets.discriminator(PointShape(2), 0, None)
    assert sum(p.numel() for p in g.parameters()) == 527_874
    assert sum(p.numel() for p in d.parameters()) == 527_361
    assert g(torch.randn(5, 2)).shape == (5, 2)
    values = d(torch.randn(5, 2))
    assert values.score.shape == (5,)
    assert values.features.shape == (5, 512)
    hidden, last = d.layers[1].weight, d.layers[-1].weight
    assert float(hidden.detach().abs().max()) == pytest.approx(math.sqrt(6 / 512), rel=1e-3)  # He-uniform
    assert float(last.detach().abs().max()) == pytest.approx(math.sqrt(6 / 513), rel=0.02)  # Glorot-uniform
    assert all(not layer.bias.any() for layer in d.layers)


# ---- scores ----------------------------------------------------------------------------------------------


def test_w1_against_closed_forms() -> None:
    random = np.random.RandomState(0)
    a = random.randn(200, 2)
    assert distance(a, random.permutation(a)) == pytest.approx(0, abs=1e-6)
    assert distance(a, a + np.array([3.0, -4.0])) == pytest.approx(5)  # a shift costs its length
    line, other = np.zeros((200, 2)), np.zeros((200, 2))
    line[:, 0], other[:, 0] = random.randn(200), random.rand(200)
    wanted = np.abs(np.sort(line[:, 0]) - np.sort(other[:, 0])).mean()  # on a line: sorted against sorted
    assert distance(line, other) == pytest.approx(wanted)
    a[0, 0] = np.nan
    with pytest.raises(MetricError, match="not finite"):
        distance(a, line)


def test_coverage_by_hand() -> None:
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    points = torch.tensor([[0.0, 0.0], [0.25, 0.0], [0.26, 0.0], [1.0, 0.2], [1.0, 0.4]])
    assert coverage(points, centres, 0.25) == {"modes": 2.0, "high_quality": pytest.approx(3 / 5)}
    far = coverage(points + 100, centres, 0.25)
    assert far == {"modes": 0.0, "high_quality": 0.0}


def test_of_real_points_98_9_per_cent_are_of_high_quality() -> None:
    data = TwentyFiveGaussians()
    real = Real(data.load().images, data.load().manifest)
    others = torch.from_numpy(data.load(split="test").images)
    values = Modes()(real, Fakes(samples=others), Protocol(name="all", is_n_fake=10, fid_n_fake=len(others)))
    assert values["modes"] == 25
    assert values["high_quality"] == pytest.approx(1 - math.exp(-4.5), abs=0.002)  # 3 deviations in the plane
    with pytest.raises(MetricError, match="swissroll has no modes"):
        Modes().check(PROTOCOL, Real(facts={"name": "swissroll"}))


def test_a_run_is_scored_and_a_set_without_modes_has_w1_alone(tmp_path: Path) -> None:
    for data, names in ((EightGaussians(n=200), {"w1", "modes", "high_quality"}), (SwissRoll(n=200), {"w1"})):
        run = tmp_path / data.name
        train(experiment(dataset=data, run_dir=str(run), steps=2, eval_every=0))
        (run_info,) = collect.collect([run])
        assert {s.name for s in run_info.scores if s.checkpoint == "last"} == names


# ---- runs ------------------------------------------------------------------------------------------------


def train(e: Experiment) -> None:
    choices = {"experiment": None, "dataset": e.dataset.name, "architecture": "mlp", "loss": "wasserstein"}
    trainer.train(
        e, {"steps": e.steps, "seed": e.seed}, choices | {"normalization": list(e.normalization)}, []
    )


RUNS: dict[str, Callable[[], dict[str, Any]]] = {
    "fresh": dict,
    "fixed": lambda: {"fixed_generator": 1.0},  # G's optimizer never steps
}


@pytest.mark.parametrize("name", RUNS)
def test_resume_is_bitwise(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def make(**changes: Any) -> Experiment:
        return experiment(**RUNS[name]() | changes)

    train(make(run_dir=str(whole)))
    interrupted(make, monkeypatch, parts, 6)
    assert state(whole, 12) == state(parts, 12) != state(whole, 8)


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_a_fixed_generator_is_real_points_moved_and_stays(
    shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    game = build_gan(experiment(fixed_generator=0.5, fixed_shift=shift), CPU)
    before = [p.clone() for p in game.generator.parameters()]
    d_before = [p.clone() for p in game.discriminator.parameters()]
    batches_seen: list[Batch] = []
    pairs = type(game).verdicts

    def spy(self: Any, real: Batch, fake: Batch) -> Any:
        batches_seen.extend((real, fake))
        return pairs(self, real, fake)

    monkeypatch.setattr(type(game), "verdicts", spy)
    real = torch.arange(64.0).view(32, 2)
    rng.seed_default(CPU, 0, "train", 1)
    values = update(game, lambda: Batch(real))
    rng.seed_default(CPU, 0, "train", 1)
    noise = torch.randn(32, 2)
    assert len(batches_seen) == 2 * game.d_steps
    assert torch.equal(batches_seen[0].x, real)
    assert torch.equal(
        batches_seen[1].x, real + shift + 0.5 * noise
    )  # each its own noise, beside its own real point
    assert not torch.equal(batches_seen[1].x, batches_seen[3].x)
    assert all(torch.equal(a, b) for a, b in zip(before, game.generator.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(d_before, game.discriminator.parameters(), strict=True))
    assert {"d", "gp", "d_real", "d_fake"} <= set(values)


def test_a_fixed_generator_has_no_scores_and_its_fakes_are_shown(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(experiment(fixed_generator=1.0, run_dir=str(run), steps=2))
    (run_info,) = collect.collect([run])
    assert run_info.status == "finished"
    assert run_info.scores == []
    subject = Subject(run_info)
    subject.__dict__["experiment"] = experiment(fixed_generator=1.0)
    game, _ = subject.restore()
    real, fake = subject.real(game, 300, 0).x, subject.fake(game, 300, 0).x
    assert float((fake - real).std()) == pytest.approx(1, abs=0.1)
    assert torch.equal(fake, subject.fake(game, 300, 0).x)


# ---- what does not go together -----------------------------------------------------------------------------


def composed(*words: str) -> Experiment:
    built: Experiment = compose.build(compose.compose(["device=cpu", *words]))
    return built


def test_images_and_points_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dataset=8gaussians", "architecture=cnn", "metric=[fid]", "dequantize=true", "flip=true"]
    assert main.main(["train", *words]) == 2
    said = capsys.readouterr().err
    for line in (
        "architecture: generates images, but dataset 8gaussians has points; use architecture=mlp",
        "metric.scores.fid: scores images, but dataset 8gaussians has points; use metric=[modes,wass",
        "dequantize: works on images only, but dataset 8gaussians has points; set it to false",
        "flip: works on images only, but dataset 8gaussians has points; set it to false",
    ):
        assert line in said
    with pytest.raises(ConfigError, match=r"metric\.scores\.w.*scores points, but dataset digits has images"):
        composed("dataset=digits", "metric=[wasserstein1]")


def test_an_option_not_chosen_takes_what_the_experiment_says_of_it_along() -> None:
    """The toy experiments set normalization.gp.weight; the command line chooses clipping."""
    clipped = composed("+experiment=wgan_gp_toy", "normalization=wc", "normalization.wc.scope=all")
    assert list(clipped.normalization) == ["wc"]
    both = composed("+experiment=wgan_gp_toy", "normalization=[wc,gp]")
    assert list(both.normalization) == ["wc", "gp"]
    assert both.normalization["gp"].weight == 0.1  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"normalization\.gp"):  # one's own words are not dropped
        composed("+experiment=wgan_gp_toy", "normalization=wc", "normalization.gp.weight=1")


@pytest.mark.parametrize("name", ["wgan_gp_toy", "wgan_gp_toy_released"])
def test_the_experiments_have_the_codes_values(name: str) -> None:
    e = composed(f"+experiment={name}", "dataset=swissroll")
    gp = e.normalization["gp"]
    assert isinstance(gp, GradientPenalty)
    assert (gp.weight, e.d_steps, e.batch_size, e.architecture.z_dim) == (0.1, 5, 256, 2)
    if name.endswith("released"):
        nets = e.architecture
        assert sum(p.numel() for p in nets.generator(e.shape, 0).parameters()) == 527_874
        made = e.optimizer([torch.nn.Parameter(torch.zeros(1))])
        assert (made.defaults["lr"], tuple(made.defaults["betas"]), e.steps) == (1e-4, (0.5, 0.9), 100_000)
