"""How fast scores are made: the evaluation's own code, nothing changed by looking, its share told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import MeanExtractor

from ganlab.evaluation.generate import CHUNK
from ganlab.experiment import Experiment, Scoring
from ganlab.metrics.fid import FID
from ganlab.metrics.protocol import Protocol
from ganlab.sweeps import cost
from ganlab.sweeps.cost import scoring_pass
from ganlab.training import trainer
from ganlab.training.build import build_gan, pack_gan
from ganlab.types import Features

CPU = torch.device("cpu")


def scored(extractor: MeanExtractor, batch_size: int | None = None) -> Scoring:
    return Scoring(extractor, Protocol("t", 10, 10, batch_size=batch_size), {"fid": FID()})


def test_a_timed_pass_is_an_evaluations_and_leaves_the_game_as_it_is(tiny: Callable[..., Experiment]) -> None:
    sizes: list[int] = []

    class Counting(MeanExtractor):
        def __call__(self, images: torch.Tensor) -> Features:
            sizes.append(len(images))
            return super().__call__(images)

    e = tiny(metric=scored(Counting(), 400))
    game = build_gan(e, CPU)
    before, random = {k: v.clone() for k, v in pack_gan(game)[0].items()}, torch.get_rng_state()
    once = scoring_pass(e, game, CPU, CHUNK + 100)
    assert once is not None
    once()
    assert sizes == [400, 100, 100]
    seconds = cost.scoring_seconds(e, game, CPU)
    assert seconds is not None
    assert seconds > 0
    assert set(sizes[3:]) == {e.batch_size}
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in pack_gan(game)[0].items())
    assert torch.is_grad_enabled()


def test_a_run_tells_what_evaluation_costs(
    tiny: Callable[..., Experiment], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.train(tiny(), {"seed": 0}, {}, [])
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("; evaluation is ") == 2  # at 6 and at 12 of 12 updates
    share = json.loads((tmp_path / "run" / "result.json").read_text())["eval_share"]
    assert 0 < share < 1
    assert f"; evaluation {share:.1%} of the time" in log
