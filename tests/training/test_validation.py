"""D's loss on held-out images, and the papers' names of a critic's curves: looked at, and nothing moves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_loop import go, interrupted, lines, state
from test_ranks import one_of

from ganlab.data.base import Dataset, SampleSet
from ganlab.data.digits import Digits
from ganlab.data.fingerprint import fingerprint
from ganlab.data.mnist import Mnist
from ganlab.distributed import collectives
from ganlab.errors import ConfigError
from ganlab.experiment import Experiment
from ganlab.methods.base import Method
from ganlab.methods.feature_norms import BatchNorm
from ganlab.methods.losses import Hinge, LeastSquares, Loss, Minimax, Standard, Wasserstein
from ganlab.methods.penalties import GradientPenalty, SpectralNormRegularization
from ganlab.models.resnet import ResNet
from ganlab.training import validation
from ganlab.training.build import build_gan, pack_gan
from ganlab.training.validation import Validation

Make = Callable[..., Experiment]
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


class Halves(Dataset):
    """Digits of 16x16 in two splits; ``other``: what the second is called."""

    name, split, resolution, channels = "halves", "train", 16, 1

    def __init__(self, other: str = "test", labels: bool = True) -> None:
        self.other, self.labels = other, labels

    def splits(self) -> tuple[str, ...]:
        return ("train", self.other)

    def load(self, *, split: str | None = None) -> SampleSet:
        whole, split = Digits(resolution=16).load(), self.resolve_split(split)
        rows = slice(0, 300) if split == "train" else slice(300, 500)
        images = whole.images[rows]
        y = whole.labels[rows] if whole.labels is not None and (self.labels or split == "train") else None
        return SampleSet(images, y, whole.classes, fingerprint(images, y), self.name, split)


def wgan_gp(tiny: Make, **changes: Any) -> Experiment:
    more: dict[str, Any] = {"normalization": {"gp": GradientPenalty()}, "loss": Wasserstein()}
    return tiny(**{"dataset": Halves(), "validation_n": 60, **more, **changes})


def logged(run: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run) if line["kind"] == "train"]


# ---- curves


def test_the_critics_curves_by_hand() -> None:
    assert Wasserstein().curves(-3.0, 0.5) == {
        "critic/wasserstein_estimate": 3.0,
        "critic/negative_critic_loss": 2.5,
    }
    for loss in (Standard(), Minimax()):  # log 2 less half of D's loss, whatever the penalties
        assert loss.curves(0.5, 9.0) == {"critic/js_estimate": pytest.approx(math.log(2) - 0.25)}
    for loss in (Hinge(), LeastSquares(), Loss()):
        assert loss.curves(-3.0, 0.5) == {}


def test_a_run_tells_them_in_its_files_and_not_on_the_console(
    tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {"gp": GradientPenalty(), "snr": SpectralNormRegularization()}
    go(wgan_gp(tiny, normalization=parts))
    for line in logged(tmp_path / "run"):
        estimate = line["loss/d_real"] - line["loss/d_fake"]
        assert line["critic/wasserstein_estimate"] == pytest.approx(estimate, abs=1e-5)
        negative = -(line["loss/d"] + line["loss/gp"] + line["loss/snr"])
        assert line["critic/negative_critic_loss"] == pytest.approx(negative, abs=1e-9)
        assert not any(key.startswith("validation/") for key in line)
    said = capsys.readouterr().out
    assert "loss/gp" in said
    assert "critic/" not in said


# ---- validation


NORMALIZATIONS: dict[str, Callable[[], dict[str, Method]]] = {
    "gp": lambda: {"gp": GradientPenalty()},
    "bn": lambda: {"bn": BatchNorm()},
}


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_looking_changes_nothing(name: str, tiny: Make, tmp_path: Path) -> None:
    def run(folder: str, **more: Any) -> str:
        more |= {"normalization": NORMALIZATIONS[name](), "dequantize": True, "flip": True, "ema": 0.9}
        go(wgan_gp(tiny, steps=4, eval_every=2, run_dir=str(tmp_path / folder), **more))
        return state(tmp_path / folder, 4)

    assert run("plain") == run("looked", validation=True) == run("often", validation="test", log_every=1)
    plain, looked = logged(tmp_path / "plain"), logged(tmp_path / "looked")
    assert [{k: line[k] for k in first} for first, line in zip(plain, looked, strict=True)] == plain
    assert all("validation/d_train" in line for line in looked)
    scores = [[x["scores"] for x in lines(tmp_path / f) if x["kind"] != "train"] for f in ("plain", "looked")]
    assert scores[0] == scores[1]


def test_a_look_leaves_modes_buffers_and_generators_as_they_were(tiny: Make) -> None:
    e = wgan_gp(tiny, normalization={"bn": BatchNorm(), "gp": GradientPenalty()}, validation=True)
    gan = build_gan(e, CPU)
    look = Validation(e, gan, e.dataset.load(), e.dataset.load(split="test")).look
    gan.discriminator.train()
    before = {name: value.clone() for name, value in pack_gan(gan)[0].items()}
    modes = [m.training for net in (gan.generator, gan.discriminator) for m in net.modules()]
    random = torch.get_rng_state()
    first = look()
    assert torch.equal(torch.get_rng_state(), random)
    assert modes == [m.training for net in (gan.generator, gan.discriminator) for m in net.modules()]
    after = pack_gan(gan)[0]
    assert all(torch.equal(after[name], value) for name, value in before.items())
    torch.rand(7)
    assert look() == first, "the same images, the same noise"


def test_the_numbers_are_ds_loss_on_those_images(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a plain pass over all images at once; in pieces it is the same mean."""
    e = wgan_gp(tiny, validation=True, validation_n=90)
    gan = build_gan(e, CPU)
    monkeypatch.setattr(validation, "CHUNK", 40)
    made = Validation(e, gan, e.dataset.load(), e.dataset.load(split="test"))
    values = made.look()
    gan.discriminator.eval()
    gan.generator.eval()
    with torch.no_grad():
        fake = gan.verdict(gan.generate(made.z, None).x).score.mean()
        for name, key in (("train", "train"), ("validation", "held_out")):
            real = gan.verdict(made.real[name].x).score.mean()
            assert values[f"validation/d_{key}"] == pytest.approx(float(fake - real), abs=1e-6)
            assert values[f"critic/wasserstein_estimate_{name}"] == -values[f"validation/d_{key}"]  # type: ignore[operator]
    for name in ("train", "validation"):
        penalty = (
            values[f"critic/wasserstein_estimate_{name}"] - values[f"critic/negative_critic_loss_{name}"]
        )  # type: ignore[operator]
        assert 0 < penalty < 10.5, "lambda (norm - 1)^2 of a D that is nearly flat"
    whole = {split: e.dataset.load(split=split) for split in ("train", "test")}
    for name, split in (("train", "train"), ("validation", "test")):
        originals = {image.tobytes() for image in whole[split].images}
        seen = ((made.real[name].x + 1) * 127.5).round().to(torch.uint8).numpy()
        drawn = {image.tobytes() for image in seen}
        assert drawn <= originals
        assert len(drawn) > 85, "without replacement"


def test_both_sets_are_computed_alike(tiny: Make) -> None:
    """The same images as both sets give the same numbers: points between included."""
    e = wgan_gp(tiny, validation=True, validation_n=300)
    train = e.dataset.load()
    made = Validation(e, build_gan(e, CPU), train, train)
    values = made.look()
    assert values["critic/negative_critic_loss_train"] == values["critic/negative_critic_loss_validation"]
    assert values["validation/d_train"] == values["validation/d_held_out"]


def test_what_is_not_finite_is_null(tiny: Make) -> None:
    e = wgan_gp(tiny, validation=True)
    gan = build_gan(e, CPU)
    with torch.no_grad():
        gan.discriminator.get_parameter("dense.bias").fill_(math.nan)
    made = Validation(e, gan, e.dataset.load(), e.dataset.load(split="test"))
    assert set(made.look().values()) == {None}
    json.dumps(made.look(), allow_nan=False)


def test_it_goes_on_after_a_stop_as_if_there_had_been_none(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(**changes: Any) -> Experiment:
        return wgan_gp(tiny, validation=True, **changes)

    go(make(run_dir=str(tmp_path / "whole")))
    interrupted(make, monkeypatch, tmp_path / "parts", 5)
    assert state(tmp_path / "whole", 12) == state(tmp_path / "parts", 12)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_it_may_be_turned_on_in_a_run_that_goes_on(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(value: Any) -> dict[str, Any]:
        return {"_target_": "ganlab.experiment.Experiment", "validation": value}

    go(wgan_gp(tiny, steps=4), config(None))
    go(wgan_gp(tiny, steps=8, validation=True), config(True))
    values = logged(tmp_path / "run")
    assert ["validation/d_train" in line for line in values] == [False, False, True, True]


def test_a_conditional_d_is_shown_the_labels(tiny: Make) -> None:
    net = ResNet(width=0.03, z_dim=4, head="projection")
    e = wgan_gp(tiny, architecture=net, validation=True, dataset=At32())
    train, held = e.dataset.load(), e.dataset.load(split="test")
    gan = build_gan(e, CPU, 10)
    made = Validation(e, gan, train, held)
    assert made.y is not None
    assert made.real["validation"].y is not None
    assert all(math.isfinite(v) for v in made.look().values() if v is not None)
    bare = SampleSet(held.images, None, [], held.fingerprint, "halves", "test")
    refused = "validation: halves test does not have the classes of train; choose"
    with pytest.raises(ConfigError, match=refused):
        Validation(e, gan, train, bare)


class At32(Halves):
    resolution = 32

    def load(self, *, split: str | None = None) -> SampleSet:
        values = super().load(split=split)
        images = np.repeat(np.repeat(values.images, 2, 2), 2, 3)
        return SampleSet(images, values.labels, values.classes, "x", "halves", values.split)


@pytest.mark.parametrize(
    ("dataset", "wanted", "line"),
    [
        (Digits(resolution=16), True, "validation: digits train has no test or validation split"),
        (Digits(resolution=16), "test", "validation: digits has no split 'test'; leave it out"),
        (Halves(), "train", "validation: train is the training split; choose one of test"),
        (Halves(), "tets", "validation: halves has no split 'tets'; did you mean 'test'?"),
        (Halves("extra"), True, "validation: halves train has no test or validation split; name"),
    ],
)  # fmt: skip
def test_a_split_that_is_not_there_is_a_line_before_training(
    dataset: Dataset, wanted: Any, line: str, tiny: Make, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        go(wgan_gp(tiny, dataset=dataset, validation=wanted))
    assert str(caught.value.mistakes[0]).startswith(line)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("dataset", "wanted", "split"),
    [
        (Halves(), True, "test"),
        (Halves("valid"), True, "valid"),
        (Halves("extra"), "extra", "extra"),
        (Halves(), None, None),
        (Halves(), False, None),
        (Mnist(limit=9), True, "test"),
        (Mnist(limit=9), "rest", "rest"),
        (Mnist(limit=9, split="test"), True, "rest"),
    ],
)
def test_which_split_it_is(dataset: Dataset, wanted: Any, split: str | None, tiny: Make) -> None:
    e = tiny()
    e.dataset, e.validation = dataset, wanted
    assert validation.split_of(e) == split


def test_the_first_rank_looks_by_itself(tiny: Make) -> None:
    e = wgan_gp(tiny, validation=True)
    gan = build_gan(e, CPU)
    alone = Validation(e, gan, e.dataset.load(), e.dataset.load(split="test"))
    expected = alone.look()
    with collectives.use_ranks(one_of(0, 2)):  # a rank that has met nobody: any exchange would fail
        again = Validation(e, gan, e.dataset.load(), e.dataset.load(split="test"))
        assert again.look() == expected
        assert collectives.current().size == 2
