"""Progressive GAN: timetable, networks and methods by hand; runs that resume in the middle of a fade."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_engine import everything, start

from ganlab.cli.main import main
from ganlab.config import compose
from ganlab.errors import ConfigError
from ganlab.experiment import Experiment
from ganlab.methods.progressive import Progressive
from ganlab.models.progan import ProGAN, Stddev
from ganlab.sweeps import cost
from ganlab.training.build import build_gan
from ganlab.training.engine import Engine, Graphed
from ganlab.types import ImageShape

CPU = torch.device("cpu")
SHAPE = ImageShape(3, 16, 16)
SMALL = ["dataset.resolution=16", "architecture.channels=64", "architecture.z_dim=8", "batch_size=4"]
SMALL += ["timetable.phase=16", "timetable.fade=8", "metric.extractor=cifar", "metric.protocol=smoke"]
SMALL += ["metric=[is]", "eval_every=0", "sample_every=0", "device=cpu"]
pytestmark = pytest.mark.usefixtures("one_thread")


def small(*words: str) -> Experiment:
    return compose.build(compose.compose(["+experiment=progan_cifar", "dataset=digits", *SMALL, *words]))


def test_phases() -> None:
    e = small()
    rounds = [e.timetable.round(step) for step in range(12)]
    assert [r.first_sample for r in rounds] == [4 * step for step in range(12)]
    assert [r.progress for r in rounds] == [0, 0, 0.25, 0.5, 0.5, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert [step for step in range(12) if e.timetable.boundary(step)] == [2, 4, 6, 8]


def test_pictures_at_the_ends_of_phases_and_half_through_fades(tmp_path: Path) -> None:
    words = ["+experiment=progan_cifar", "dataset=digits", *SMALL, "steps=10", "sample_every=100"]
    assert main(["train", *words, f"run_dir={tmp_path}"]) == 0
    steps = [int(path.stem.removeprefix("step-")) for path in sorted((tmp_path / "samples").iterdir())]
    assert steps == [0, 2, 3, 4, 6, 7, 8, 10], "a phase and a fade have two updates here"
    assert json.loads((tmp_path / "result.json").read_text())["phases"] == [2, 4, 6, 8]


def test_the_cost_of_a_run_is_weighed_by_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """A phase costs as many seconds here as it has pixels on a side; 4 px have 16 updates, 8 px have 32."""
    e = small()
    assert e.timetable.stretches(5) == [(0, 2), (2, 2), (4, 1)]
    assert sum(updates for _, updates in e.timetable.stretches(100)) == 100
    longer, timed = small("timetable.phase=128", "timetable.fade=64"), list[float]()

    def seconds(update: Callable[[], object], _: object) -> float:
        update()
        game: Any = update.__self__.game  # type: ignore[attr-defined]
        timed.append(float(4 << game.generator.level))
        return timed[-1]

    monkeypatch.setattr(cost, "_median", seconds)
    monkeypatch.setattr(cost, "scoring_seconds", lambda *_: None)
    mean = (16 * 4 + 32 * 8 + 32 * 16) / 80
    assert cost.measure(longer, CPU, longer.timetable.stretches(80)).update == pytest.approx(mean)
    assert timed == [4, 8, 8, 16, 16]


def test_batches_and_rates_by_resolution() -> None:
    e = small("timetable.batch={8: 2}", "timetable.rate={16: 1.5}")
    rounds = [e.timetable.round(step) for step in range(12)]
    assert [r.batch for r in rounds] == [4, 4, *[2] * 8, 4, 4]
    assert [r.first_sample for r in rounds] == [0, 4, *range(8, 24, 2), 24, 28]
    assert [e.schedules["optimizer.lr"](step) for step in (9, 10)] == [1, 1.5]


def test_the_networks_have_the_published_sizes() -> None:
    networks, shape = ProGAN(1.0, 4096, 128, 128), ImageShape(3, 32, 32)
    counts = [
        sum(p.numel() for p in net.parameters())
        for net in (networks.generator(shape, 0), networks.discriminator(shape, 0, None))
    ]
    assert counts == [1_296_908, 1_298_689]


def test_a_fade_begins_with_the_old_images_and_ends_with_the_new_ones() -> None:
    torch.manual_seed(0)
    networks = ProGAN(1.0, 64, 8, 8, stddev="none")
    g, d = networks.generator(SHAPE, 0).eval(), networks.discriminator(SHAPE, 0, None)
    z, x = torch.randn(4, 8), torch.randn(4, 3, 16, 16)

    def at(progress: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        g.set_progress(progress)  # type: ignore[operator]
        d.set_progress(progress)  # type: ignore[operator]
        return g(z), d(x).score, F.interpolate(d.real(x), size=16)  # type: ignore[operator]

    for first, last in ((0.0, 0.5), (0.5, 1.0)):
        for old, new in zip(at(first), at(first + 1e-6), strict=True):
            assert torch.allclose(old, new, atol=1e-4)
        for old, new in zip(at(last - 1e-6), at(last), strict=True):
            assert torch.allclose(old, new, atol=1e-4)
    middle = at(0.75)[0]
    coarse, fine = at(0.5)[0], at(1.0)[0]
    assert torch.allclose(middle, (coarse + fine) / 2, atol=1e-6)


def test_deviation_by_hand() -> None:
    x = torch.tensor([0.0, 2.0, 1.0, 1.0]).view(4, 1, 1, 1).expand(4, 2, 3, 3)
    assert Stddev(2)(x)[:, -1, 0, 0].tolist() == pytest.approx([1, 1, 1e-4, 1e-4])
    assert Stddev(0)(x)[:, -1, 0, 0].tolist() == pytest.approx([0.5**0.5] * 4)


@pytest.mark.parametrize("scale", ["he", "rms"])
def test_equalized_rates_keep_the_weights_and_equalize_the_steps(scale: str) -> None:
    """One Adam step moves each effective weight by rate * gain / sqrt(fan_in)."""
    e = small(f"normalization.equalized_lr.scale={scale}")
    torch.manual_seed(0)
    layer = build_gan(e, CPU, shape=SHAPE).discriminator.convs[1]  # type: ignore[index]
    weight, c = layer.weight.detach().clone(), (2 / layer.weight[0].numel()) ** 0.5
    assert weight.std() == pytest.approx(c, rel=0.05)
    stored = layer.parametrizations.weight.original
    assert stored.detach().std() == pytest.approx(1, rel=0.05)
    optimizer = torch.optim.Adam([stored], lr=1e-3, eps=0)
    layer.weight.sum().backward()
    optimizer.step()
    assert torch.allclose(weight - layer.weight, torch.tensor(c * 1e-3), rtol=0.1)


@pytest.mark.slow
def test_resume_in_the_middle_of_a_fade_is_bitwise(tmp_path: Path) -> None:
    def trained(name: str, *steps: int) -> dict[str, torch.Tensor]:
        words = [
            "+experiment=progan_cifar",
            "dataset=digits",
            *SMALL,
            "ema=0.9",
            f"run_dir={tmp_path / name}",
        ]
        for n in steps:
            assert main(["train", *words, f"steps={n}"]) == 0
        (file,) = (tmp_path / name / "checkpoints").glob(f"step-{steps[-1]:09d}/*.safetensors")
        return load_file(file)

    whole, stopped = trained("whole", 10), trained("stopped", 3, 5, 7, 10)
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())


def test_recorded_updates_are_the_eager_ones() -> None:
    """Recorded anew for each phase; a fade's weight is read from a buffer."""
    eager, recorded = start(small("ema=0.9")), start(small("ema=0.9"))
    engines = [Engine(small("ema=0.9"), *eager), Graphed(Engine(small("ema=0.9"), *recorded))]
    for step in range(10):
        for engine in engines:
            engine.update(step)
    a, b = everything(eager[0]), everything(recorded[0])
    assert all(torch.allclose(value, b[name], atol=1e-6) for name, value in a.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset.resolution=24"], "can't be grown from 4x4 by doubling; set dataset.resolution=32"),
        (["timetable.first=32"], "32 is no power of two up to the images' 16 pixels"),
        (["architecture.stddev=3"], "batch_size: 4 images of a pass are no groups of 3"),
        (["timetable.batch={8: 9}", "accumulate=2"], "accumulate: timetable.batch=9 does not split into 2"),
        (["timetable.batch={12: 8}"], "timetable.batch: '12' is no resolution; use 4, 8, 16, ..., 1024"),
        (["timetable.fade=16"], "16 images are not less than the 16 of a phase"),
    ],
)
def test_bad_settings(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(*words)


def test_networks_that_do_not_grow_have_no_such_timetable() -> None:
    with pytest.raises(
        ConfigError, match="timetable: this architecture does not grow; use architecture=progan"
    ):
        compose.build(compose.compose(["dataset=digits", "+timetable=progressive"]))


def test_a_restored_generator_is_at_its_stage() -> None:
    networks: Callable[[], Any] = lambda: ProGAN(1.0, 64, 8, 8).generator(SHAPE, 0)  # noqa: E731
    g, restored = networks(), networks()
    g.set_progress(0.5)
    restored.load_state_dict(g.state_dict())
    assert restored.level == 1
    assert Progressive().fade == 600_000
