"""Parts outside the core (``tests/exam``) train, resume to the bit, and agree recorded and on two ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.ranks import at, equal, in_float64, resumed, send
from test_engine import everything, start

from ganlab.config import compose, targets
from ganlab.experiment import Experiment
from ganlab.training.build import pack_gan, unpack_gan
from ganlab.training.engine import Engine, Graphed

EXAM = Path(__file__).parents[1] / "exam"
PARTS = {
    "relativistic": ["loss=wasserstein", "loss._target_=exam.relativistic.Relativistic"],
    "began": [
        "loss=wasserstein",
        "loss._target_=exam.began.BEGAN",
        "architecture._target_=exam.began.AutoencoderCNN",
    ],
    "reference_norm": [
        "+normalization.vbn={_target_: exam.reference_norm.VirtualBatchNorm}",
        "ema=0.9",
    ],
    "whole_batch_head": ["architecture._target_=exam.whole_batch_head.DeviationCNN"],
    "growing": [
        "architecture._target_=exam.growing.GrowingCNN",
        "+timetable={_target_: exam.growing.Phases}",
        "ema=0.9",
    ],
    "augmentation": ["+normalization.ada={_target_: exam.augmentation.Brightness}"],
}
ALL = "feature_matching,minibatch_discrimination,historical_averaging,label_smoothing,virtual_batch_norm"
TECHNIQUES = {  # Improved Techniques, arXiv:1606.03498
    "techniques": [f"technique=[{ALL}]", "loss=standard", "ema=0.9", "normalization=[wn]"],
    "semi-supervised": [
        *(
            "architecture=improved_mlp",
            "architecture.head=k_plus_1",
            "loss=k_plus_1",
            "class_loss=labelled",
            "labelled_per_class=3",
        ),
        *("normalization=none", "technique=[feature_matching]", "prior=uniform"),
    ],
    "joint batch": [
        "technique=[feature_matching,minibatch_discrimination]",
        "technique.feature_matching.layer=convs.1",
        "technique.minibatch_discrimination.form=joint",
    ],
}
GROWN = {  # what the exam's own parts show in short
    "BEGAN": ["architecture=began", "architecture.width=0.04", "loss=began", "loss.rate=0.5",
              "loss.patience=2", "loss.window=1", "normalization=none", "order=together"],
    "Progressive GAN": ["architecture=progan", "architecture.channels=64", "+timetable=progressive",
                        "timetable.phase=32", "timetable.fade=16", "normalization=[gp,drift,equalized_lr]",
                        "loss=wasserstein", "setting=progan", "ema=0.9", "steps=7"],
    "dropout": ["architecture=improved_conv", "dataset.resolution=32", "loss=standard", "normalization=none"],
}  # fmt: skip
SCHEDULED = [
    "+schedules={ema: {_target_: ganlab.methods.timetable.Linear, end: 20}}",
    "ema=0.9",
    "normalization=[gp]",
    "loss=wasserstein",
    "lr_decay=linear",
]
FEW = "metric.protocol.is_n_fake=8"  # images to score
USUAL = ["dataset.resolution=16", "architecture.width=0.05", "architecture.z_dim=8", "prior=normal"]
pytestmark = pytest.mark.usefixtures("one_thread")


def trust(_: int = 0) -> None:
    """Let a config name the exam's classes; a user's own lie under ``ganlab``."""
    targets.TRUSTED = (*targets.TRUSTED, "exam.")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Experiment]:
    monkeypatch.setattr(targets, "TRUSTED", (*targets.TRUSTED, "exam."))
    return lambda words: compose.build(compose.compose([*USUAL, "steps=12", "batch_size=8", *words]))


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_a_file_of_at_most_40_lines(part: str) -> None:
    code = (EXAM / f"{part}.py").read_text().splitlines()
    assert len([line for line in code if line.strip()]) <= 40


@pytest.mark.parametrize("part", [*PARTS, *TECHNIQUES, "scheduled"])
def test_recorded_updates_are_the_eager_ones(part: str, made: Callable[[list[str]], Experiment]) -> None:
    """Where a phase begins at step 6 recording begins anew, after three eager updates."""
    words = (PARTS | TECHNIQUES).get(part, SCHEDULED)
    eager, plain = (Engine(e, *start(e)) for e in (made(words), made(words)))
    traced = Graphed(plain)
    first = everything(eager.gan)
    graphs = set()
    steps = 11 if part == "growing" else 7
    for step in range(steps):
        eager.update(step)
        traced.update(step)
        graphs.add(traced.graph)
    assert traced.graph is not None, traced.why
    assert len(graphs) == (3 if part == "growing" else 2)
    after, replayed = everything(eager.gan), everything(traced.gan)
    assert [k for k in after if not torch.equal(after[k], replayed[k])] == []
    assert any(not torch.equal(first[k], after[k]) for k in first)
    assert eager.loss_buffer.means(steps) == traced.loss_buffer.means(steps)


def but_one_slow(parts: Iterable[str], quick: str) -> list[Any]:
    return [part if part == quick else pytest.param(part, marks=pytest.mark.slow) for part in parts]


@pytest.mark.parametrize("part", but_one_slow([*PARTS, *TECHNIQUES], "began"))
def test_a_stopped_run_resumes_to_the_bit(part: str, tmp_path: Path) -> None:
    def stopped(rank: int) -> None:
        trust()
        at(9, 0, send(15))(rank)

    resumed([*(PARTS | TECHNIQUES)[part], FEW], stopped, 143, tmp_path, 1, trust)


@pytest.mark.parametrize("part", but_one_slow([*PARTS, *TECHNIQUES, *GROWN], "began"))
def test_two_ranks_are_one_process(part: str, tmp_path: Path) -> None:
    def before(rank: int) -> None:
        trust()
        in_float64()

    # G's biases before batch norm have rounding for a gradient; averaging moves them on, Adam magnifies it
    more = {"growing": ["steps=8"], "techniques": ["technique.historical_averaging.g=0"]}.get(part, [])
    assert equal([*(PARTS | TECHNIQUES | GROWN)[part], *more], 2, tmp_path, before)["difference"] <= 1e-6


@pytest.mark.parametrize("part", TECHNIQUES)
def test_techniques_go_on_to_the_bit_in_one_process(
    part: str, made: Callable[[list[str]], Experiment]
) -> None:
    """As a resume does it: built without data, state unpacked, in the middle of all that has state."""
    whole = Engine(made(TECHNIQUES[part]), *start(made(TECHNIQUES[part])))
    for step in range(4):
        whole.update(step)
    kept = {name: value.clone() for name, value in pack_gan(whole.gan)[0].items()}, pack_gan(whole.gan)[1]
    for step in range(4, 7):
        whole.update(step)
    resumed_one = Engine(made(TECHNIQUES[part]), *start(made(TECHNIQUES[part])))
    unpack_gan(resumed_one.gan, *kept, "here")
    for step in range(4, 7):
        resumed_one.update(step)
    after, again = everything(whole.gan), everything(resumed_one.gan)
    assert [k for k in after if not torch.equal(after[k], again[k])] == []
    assert any(not torch.equal(v, after[k]) for k, v in kept[0].items() if k in after)
