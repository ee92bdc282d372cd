"""What real samples score against others like them, and the warning where a generator is better than that."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from report_runs import make_run
from test_evaluate import Noise, evaluator, generate
from torch import Tensor

from ganlab import report, rng
from ganlab.evaluation.scores import SUSPICIOUS
from ganlab.metrics.base import Fakes, Protocol, Real, Reference, moments, square_root
from ganlab.metrics.fid import FID, frechet_distance
from ganlab.metrics.wasserstein1 import Wasserstein1
from ganlab.runs.result import score_entry


def features(n: int, seed: int) -> Tensor:
    """(n, 24), correlated and not Gaussian."""
    mix = torch.randn(24, 24, generator=torch.Generator().manual_seed(0)) / 5
    return (torch.randn(n, 24, generator=torch.Generator().manual_seed(seed)) @ mix).relu()


@pytest.mark.parametrize(("n_real", "n_fake"), [(1000, 100), (300, 2000)])
def test_fid_among_real_images_is_what_a_perfect_generator_has(n_real: int, n_fake: int) -> None:
    """Parts of one set, brought to the protocol's counts, against real draws of just as many."""
    protocol = Protocol(name="t", is_n_fake=10, fid_n_fake=n_fake)
    bounds, drawn = [], []
    for seed in range(12):
        pool = features(n_real, 2 * seed + 1)
        mean, cov = moments(pool)
        real = Reference(n_real, mean, cov, square_root(cov), pool)
        bounds.append(FID().among_real(real, protocol)["fid"])
        drawn.append(frechet_distance(mean, cov, real.root, *moments(features(n_fake, 2 * seed + 2))))
    assert np.mean(bounds) == pytest.approx(np.mean(drawn), rel=0.15)
    assert FID().among_real(Reference(3, mean, cov, real.root, pool[:3]), protocol) == {}


def replay(n: int, start: int, random: torch.Generator) -> Tensor:
    """The real images, over and over."""
    images = torch.from_numpy(Noise().load().images)
    return images[(start + torch.arange(n)) % len(images)]


def test_a_generator_that_knows_its_data_by_heart_is_suspected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = evaluator(tmp_path)
    e.check()
    honest, copied = e.score(generate), e.score(replay)
    bound = honest.among_real["fid_tiny"]
    assert honest.among_real == copied.among_real == {"fid_tiny": bound}
    assert (honest.values["fid_tiny"] or 0) > bound > (copied.values["fid_tiny"] or 0)
    assert not [w for w in honest.warnings if SUSPICIOUS in w]
    assert [w.partition(" is better")[0][:8] for w in copied.warnings if SUSPICIOUS in w] == ["fid_tiny"]
    assert score_entry(copied)["among_real"] == {"fid_tiny": bound}
    assert copied.protocol_id == honest.protocol_id, "it is no part of how a score is measured"
    monkeypatch.setattr(FID, "among_real", lambda *_: pytest.fail("it lies beside the reference statistics"))
    assert evaluator(tmp_path).score(generate).among_real == {"fid_tiny": bound}
    monkeypatch.undo()
    assert evaluator(tmp_path, fid_n_fake=150).score(generate).among_real["fid_tiny"] > bound


def test_points_that_are_copies_are_suspected_and_new_ones_are_not() -> None:
    points = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    metric, protocol = Wasserstein1(n=200), Protocol(name="t", is_n_fake=200, fid_n_fake=200)
    real = Real(points.numpy(), {})
    bound = metric.among_real(real, protocol)["w1"]

    def w1(samples: Tensor) -> float:
        return metric(real, Fakes(samples=samples), protocol)["w1"]

    fresh = [torch.randn(200, 2, generator=torch.Generator().manual_seed(i)) for i in range(1, 9)]
    assert 0.8 * bound < min(map(w1, fresh)) < 1.5 * bound
    compared = torch.randperm(2000, generator=rng.generator("cpu", protocol.seed, "metric", 6))[:200]
    assert w1(points[compared]) < 0.01 * bound
    assert metric.among_real(Real(points[:399].numpy()), protocol) == {}


def test_the_report_says_which_scores_are_suspicious(tmp_path: Path) -> None:
    for seed, fid in ((0, 40.0), (1, 1.5)):
        run = make_run(tmp_path / "runs", seed=seed, fid=fid)
        record = json.loads((run / "result.json").read_text())
        record["scores"]["last"]["among_real"] = {"fid": 2.0, "is": "x", "kid": None}
        (run / "result.json").write_text(json.dumps(record))
    report.report([tmp_path / "runs"], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.count(SUSPICIOUS) == 1
    assert "FID 1.5 is better than 2, " in text
    assert SUSPICIOUS in (tmp_path / "out" / "report.html").read_text()
