"""WGAN-GP's Figure 1: gradients by layer, weights and value surfaces against nets whose numbers are known."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ganlab import analysis
from ganlab.analysis import loss_curves, value_line
from ganlab.analysis.layer_gradients import Norms, by_layer, factor
from ganlab.analysis.value_surface import auc, steepest, surface
from ganlab.analysis.weight_histograms import histogram, summarize, weights
from ganlab.cli import main
from ganlab.errors import DataError
from ganlab.methods.losses import Hinge, Loss, Minimax, Wasserstein
from ganlab.metrics.wasserstein1 import distance
from ganlab.report.read.history import Curve
from ganlab.types import Batch, Verdict

pytestmark = pytest.mark.usefixtures("one_thread")
Runs = dict[str, Path]


class Linear(nn.Module):
    """A deep linear D without biases: its gradients are products of its matrices."""

    def __init__(self, *matrices: Tensor) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(m.shape[1], m.shape[0], bias=False) for m in matrices)
        for layer, matrix in zip(self.layers, matrices, strict=True):
            layer.weight = nn.Parameter(matrix.clone())

    def forward(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        for layer in self.layers:
            x = layer(x)
        return Verdict(x.squeeze(1))


def gan_of(d: nn.Module, loss: Loss) -> Any:
    return SimpleNamespace(discriminator=d, loss=loss, verdict=d, device=torch.device("cpu"))


def test_gradients_of_a_deep_linear_net_are_products_of_its_matrices() -> None:
    torch.manual_seed(0)
    matrices = [torch.randn(4, 2), torch.randn(3, 4), torch.randn(1, 3)]
    d = Linear(*matrices)
    gan = gan_of(d, Wasserstein())
    norms = by_layer(gan, Batch(torch.randn(7, 2)), Batch(torch.randn(7, 2)))
    assert [n.layer for n in norms] == ["layers.0", "layers.1", "layers.2"]
    a, b, c = matrices
    for layer, matrix in zip(norms, (c @ b @ a, c @ b, c), strict=True):  # whatever the samples are
        assert layer.norm == pytest.approx(float(matrix.norm()), rel=1e-5)
    assert all(p.grad is None for p in d.parameters())
    assert not any(layer._forward_pre_hooks for layer in d.layers)


def test_each_sample_counts_by_its_own_part_of_the_loss() -> None:
    """Hinge with D(x) = x: gradient -1 on real samples below 1, +1 on generated ones above -1, else 0."""
    gan = gan_of(Linear(torch.ones(1, 1)), Hinge())
    real = Batch(torch.tensor([[0.5], [2.0], [3.0], [0.0]]))  # two of four
    fake = Batch(torch.tensor([[-2.0], [0.0], [-3.0], [-4.0]]))  # one of four
    (layer,) = by_layer(gan, real, fake)
    assert layer.norm == pytest.approx((2 / 4 + 1 / 4) / 2)


def test_the_factor_between_layers_is_a_geometric_mean() -> None:
    norms = [Norms("a", 8.0), Norms("b", 1.0), Norms("c", 2.0), Norms("d", 1.0)]
    assert factor(norms) == pytest.approx(2)
    assert math.isnan(factor(norms[:1]))


def test_layers_of_a_convolutional_d_come_in_the_order_of_their_calls(
    analysis_runs: Runs, tmp_path: Path
) -> None:
    analysis.analyze([analysis_runs["sn"]], "layer_gradients", tmp_path, ["n=8"])
    rows = read(tmp_path / "layer_gradients.csv")
    assert [r["layer"] for r in rows] == [*(f"convs.{i}" for i in range(7)), "dense"]
    assert [int(r["place"]) for r in rows] == list(range(1, 9))
    assert all(float(r["norm"]) > 0 for r in rows)


def test_histograms_of_known_weights() -> None:
    d = Linear(torch.tensor([[0.1, -0.1], [0.05, 0.1]]), torch.tensor([[0.0995, -0.02]]))
    values = weights(gan_of(d, Wasserstein()))
    assert sorted(values) == pytest.approx([-0.1, -0.02, 0.05, 0.0995, 0.1, 0.1])
    counts, edges = histogram(values, 4)
    assert edges == pytest.approx([-0.1, -0.05, 0, 0.05, 0.1])
    assert counts.sum() == 6
    assert counts[0] == 1
    statistics = summarize(values)
    assert statistics["at_the_edge"] == pytest.approx(4 / 6)  # within 1 % of 0.1
    assert statistics["largest"] == pytest.approx(0.1)
    assert histogram(np.zeros(3), 2)[0].sum() == 3  # no weight is anywhere else


def test_clipped_weights_lie_within_the_bound(analysis_runs: Runs, tmp_path: Path) -> None:
    runs = [analysis_runs["points-wc"], analysis_runs["points-gp"]]
    analysis.analyze(runs, "weight_histograms", tmp_path, ["bins=10"])
    wc, gp = read(tmp_path / "weight_histograms_summary.csv")
    assert (wc["method"], gp["method"]) == ("wc", "wgan-gp")
    assert float(wc["largest"]) == pytest.approx(0.01)
    assert float(gp["largest"]) > 0.1
    assert float(wc["at_the_edge"]) > 0.5 > float(gp["at_the_edge"])
    rows = read(tmp_path / "weight_histograms.csv")
    assert sum(int(r["count"]) for r in rows[:10]) == int(wc["weights"])


def test_a_surface_is_ds_value_at_each_point() -> None:
    gan = gan_of(Linear(torch.tensor([[2.0, -3.0]])), Wasserstein())
    axis = np.linspace(-1, 1, 5)
    values = surface(gan, axis)
    assert values[0, 4] == pytest.approx(2 * 1 - 3 * -1)  # row: y, column: x
    assert values[3, 1] == pytest.approx(2 * -0.5 - 3 * 0.5)
    assert steepest(values, axis) == pytest.approx(math.sqrt(2**2 + 3**2))


def test_auc_counts_pairs() -> None:
    assert auc(np.array([1.0, 3.0]), np.array([0.0, 2.0, 3.0])) == pytest.approx((1 + 2.5) / 6)
    assert auc(np.array([5.0]), np.array([5.0])) == 0.5


@pytest.mark.parametrize("loss", [Wasserstein(), Minimax()])
def test_the_steepness_of_gs_loss_on_a_line(loss: Loss) -> None:
    """D(x) = 3 x: of a critic 3 everywhere; of the minimax game sigmoid(3 x) * 3, which vanishes."""
    x = [-2.0, 0.5]
    gan = gan_of(Linear(torch.tensor([[3.0]])), loss)
    by_hand = [-3 / (1 + math.exp(-3 * at)) if isinstance(loss, Minimax) else -3 for at in x]
    assert value_line.gradients(gan, torch.tensor(x)[:, None]) == pytest.approx(by_hand, rel=1e-5)


def test_the_line_between_two_gaussians_is_trained_once_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["analyze", "analysis=value_line", "points=200", "places=9", "steps=60", "device=cpu", "threads=1"]
    line += ["optimizer.lr=1e-2", "d_steps=1", "batch_size=64"]
    assert main.main(line) == 0
    summary = {r["method"]: r for r in read(tmp_path / "outputs/analysis/value_line_summary.csv")}
    assert {*summary} == {"none", "wc"}
    assert float(summary["none"]["w1"]) == pytest.approx(4, abs=0.5)
    assert 0.4 < float(summary["none"]["js_estimate"]) < math.log(2)  # 0.63 of an optimal D
    assert summary["wc"]["js_estimate"] == ""
    assert 1 < float(summary["wc"]["gap_over_slope"]) < 4
    for r in summary.values():
        assert 0 <= float(r["weakest"]) <= float(r["median"])
    rows = read(tmp_path / "outputs/analysis/value_line.csv")
    assert [float(r["x"]) for r in rows[:9]] == [-8, -6, -4, -2, 0, 2, 4, 6, 8]
    minimax = [float(r["value"]) for r in rows if r["method"] == "none"]
    assert minimax[3] > 0.9 > 0.1 > minimax[5]  # D is sure of both means
    capsys.readouterr()
    assert main.main(line) == 0
    assert capsys.readouterr().out.count("finished at step 60") == 2


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))


def test_the_surfaces_of_a_grid_of_runs(analysis_runs: Runs, tmp_path: Path) -> None:
    names = ("points-gp", "points-wc", "points-trained")
    options = ["grid=5", "reach=2", "points=20"]
    analysis.analyze([analysis_runs[n] for n in names], "value_surface", tmp_path, options)
    rows = read(tmp_path / "value_surface.csv")
    assert len(rows) == 3 * 25
    assert {(r["method"], r["dataset"]) for r in rows} == {
        ("wc", "8gaussians"),
        ("wgan-gp", "8gaussians"),
        ("wgan-gp", "swissroll"),
    }
    assert {float(r["x"]) for r in rows} == {-2, -1, 0, 1, 2}
    for row in read(tmp_path / "value_surface_summary.csv"):
        assert 0 <= float(row["auc"]) <= 1
        assert float(row["gap_over_slope"]) == pytest.approx(float(row["gap"]) / float(row["steepest"]))
        assert float(row["gap_over_slope"]) < float(row["w1"])  # weak duality, up to the grid


def test_the_film_has_a_frame_per_checkpoint(analysis_runs: Runs, tmp_path: Path) -> None:
    options = ["frames=true", "grid=8", "points=20"]
    for place in ("a", "b"):
        analysis.analyze([analysis_runs["points-trained"]], "value_surface", tmp_path / place, options)
    content = (tmp_path / "a" / "value_surface.gif").read_bytes()
    assert content == (tmp_path / "b" / "value_surface.gif").read_bytes()
    with Image.open(io.BytesIO(content)) as film:
        assert film.format == "GIF"
        assert film.n_frames == 3  # type: ignore[attr-defined]
        assert film.info["loop"] == 0


def test_what_can_not_be_filmed_is_told(
    analysis_runs: Runs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = str(analysis_runs["points-trained"])
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    for step in (1, 2):
        shutil.rmtree(copied / "checkpoints" / f"step-{step:09d}")
    both = [run, str(analysis_runs["points-gp"])]
    out = f"out={tmp_path / 'out'}"
    assert main.main(["analyze", str(copied), "analysis=value_surface", "frames=true", out]) == 3
    error = capfd.readouterr().err
    assert "too few checkpoints (steps 3); a film needs at least 3" in error
    assert "keep_every=N" in error
    assert main.main(["analyze", *both, "analysis=value_surface", "frames=true", out]) == 3
    assert "frames: applies to a single run, got 2; pass one run" in capfd.readouterr().err
    assert main.main(["analyze", str(analysis_runs["sn"]), "analysis=value_surface", out]) == 3
    assert "for runs on points only" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_median_filter_by_hand() -> None:
    raw_curve = Curve(array("q", [1, 2, 3, 4, 5]), array("d", [1.0, 9.0, 2.0, math.nan, 3.0]))
    curve = loss_curves.smoothed("x", raw_curve, 3)
    assert curve.steps == [1, 2, 3, 5]
    assert curve.raw.tolist() == [1, 9, 2, 3]
    assert curve.filtered.tolist() == [1, 2, 3, 3]  # of (1, 1, 9), (1, 9, 2), (9, 2, 3), (2, 3, 3)
    assert loss_curves.smoothed("x", raw_curve, 1).filtered.tolist() == [1, 9, 2, 3]
    assert loss_curves.correlation(curve, {1: 10.0, 2: 20.0, 3: 30.0}) == pytest.approx(1)
    assert loss_curves.correlation(curve, {1: 30.0, 2: 20.0, 3: 10.0}) == pytest.approx(-1)
    assert loss_curves.correlation(curve, {3: 1.0, 5: 2.0}) is None  # the curve stands still there


def test_estimates_are_those_of_the_losses(analysis_runs: Runs, tmp_path: Path) -> None:
    runs = [analysis_runs["gp-held"], analysis_runs["sn"]]
    analysis.analyze(runs, "loss_curves", tmp_path, ["median=1"])
    rows = read(tmp_path / "loss_curves.csv")
    assert {r["method"]: r["curve"] for r in rows} == {
        "wgan-gp": "critic/wasserstein_estimate",
        "sn": "critic/js_estimate",
    }
    for run, method in zip(runs, ("wgan-gp", "sn"), strict=True):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        d = [line["loss/d"] for line in lines if "loss/d" in line]
        expected = [-v if method == "wgan-gp" else math.log(2) - v / 2 for v in d]
        assert [float(r["value"]) for r in rows if r["method"] == method] == pytest.approx(expected)
    for r in read(tmp_path / "loss_curves_summary.csv"):
        assert r["score"] == "is_cifar"
        assert int(r["evaluations"]) == 3
        assert r["correlation"] == "" or -1 <= float(r["correlation"]) <= 1  # none where a score stands still
    analysis.analyze(runs, "loss_curves", tmp_path / "g", ["curve=loss/g"])
    assert {r["curve"] for r in read(tmp_path / "g" / "loss_curves.csv")} == {"loss/g"}
    with pytest.raises(DataError, match="no run has loss/x"):
        analysis.analyze(runs, "loss_curves", tmp_path, ["curve=loss/x"])


def test_parallel_lines_are_as_far_apart_as_told(tmp_path: Path) -> None:
    analysis.analyze([], "parallel_lines", tmp_path, ["places=5", "reach=2"])
    rows = read(tmp_path / "parallel_lines.csv")
    z = np.linspace(0, 1, 50)
    for r in rows:
        theta = float(r["theta"])
        lines = [np.stack([np.full(50, x), z], 1) for x in (0.0, theta)]
        assert float(r["wasserstein"]) == pytest.approx(distance(*lines), abs=1e-9)
        assert float(r["js"]) == (0 if theta == 0 else math.log(2))
    assert [float(r["theta"]) for r in rows] == [-2, -1, 0, 1, 2]
