"""The numbers of ``ganlab analyze``, against direct computations and values by hand."""

from __future__ import annotations

import csv
import json
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import players

from ganlab import analysis
from ganlab.analysis import nearest, series, speed, subjects
from ganlab.analysis.subjects import as_bytes, generate
from ganlab.config.files import user_dirs
from ganlab.data.base import SampleSet
from ganlab.evaluation.generate import evaluating
from ganlab.extractors.base import Extractor
from ganlab.methods import singular_values
from ganlab.methods.operator_norm import layer_norms
from ganlab.methods.weight_norms import WeightNorm
from ganlab.methods.weights import weighted_layers
from ganlab.report.read.cells import Group
from ganlab.samples.latents import interpolate
from ganlab.types import Features

pytestmark = pytest.mark.usefixtures("one_thread")
Runs = dict[str, Path]
Make = Callable[..., list[dict[str, str]]]


@pytest.fixture
def made(analysis_runs: Runs, tmp_path: Path) -> Make:
    """Makes an analysis of named runs; returns its table, or the one whose name ends in ``more``."""

    def make(name: str, names: list[str], *options: str, more: str = "") -> list[dict[str, str]]:
        analysis.analyze([analysis_runs[n] for n in names], name, tmp_path, options)
        with open(tmp_path / f"{name}{more}.csv", newline="") as file:
            return list(csv.DictReader(file))

    return make


def opened(runs: Runs, name: str) -> subjects.Subject:
    return subjects.open_runs([runs[name]])[0]


def close(value: str | float, expected: float, rel: float = 1e-5) -> bool:
    return math.isclose(float(value), expected, rel_tol=rel, abs_tol=1e-9)


def test_singular_values_are_those_of_the_weight_that_acts(made: Make, analysis_runs: Runs) -> None:
    rows = made("singular_values", ["sn", "wn"])
    for name in ("sn", "wn"):
        gan, _ = opened(analysis_runs, name).restore()
        d = gan.discriminator.eval()
        for layer, module in weighted_layers(d):
            own = [r for r in rows if (r["method"], r["layer"]) == (name, layer)]
            if layer == "dense":
                assert own == []
                continue
            w = module.weight.detach().double().flatten(1).numpy()
            s = np.linalg.svd(w, compute_uv=False)
            assert [int(r["index"]) for r in own] == list(range(1, len(s) + 1))
            np.testing.assert_allclose([float(r["squared"]) for r in own], s**2, rtol=1e-4, atol=1e-9)
            np.testing.assert_allclose(
                [float(r["scaled"]) for r in own], s**2 / s[0] ** 2, rtol=1e-4, atol=1e-9
            )
    layers = made("singular_values", ["wn"], "layers=all", more="_layers")
    assert [r["layer"] for r in layers][-1] == "dense"
    assert {r["step"] for r in layers} == {"3"}
    for r in layers:  # rows of length 1: the squares sum to d_out
        total = float(r["largest"]) ** 2 / float(r["share_of_largest"])
        assert close(float(r["area"]) * int(r["values"]) * float(r["share_of_largest"]), 1)
        assert close(total, round(total), 1e-4)


def test_spectral_norms_join_the_log_and_the_checkpoints(made: Make, analysis_runs: Runs) -> None:
    rows = made("spectral_norms", ["sn"])
    log = [json.loads(x) for x in (analysis_runs["sn"] / "metrics.jsonl").read_text().splitlines()]
    logged = {r["step"]: r for r in log if r["kind"] == "spectral"}
    assert {int(r["step"]) for r in rows} == set(logged) == {0, 1, 2, 3}
    for r in rows:
        prefix = "spectral" if r["kind"] == "effective" else "spectral_raw"
        assert close(r["norm"], logged[int(r["step"])][f"{prefix}/{r['layer']}"])
    rows = made("spectral_norms", ["wn"])  # nothing logged: the checkpoints alone
    assert {r["source"] for r in rows} == {"checkpoint"}
    gan, step = opened(analysis_runs, "wn").restore()
    expected = singular_values.spectral_norms(gan.discriminator)
    last = {r["layer"]: float(r["norm"]) for r in rows if (r["step"], r["kind"]) == (str(step), "effective")}
    assert last == pytest.approx(expected)
    assert {int(r["step"]) for r in made("spectral_norms", ["sn"], "since=2")} == {2, 3}


def test_operator_norms_are_the_layers_own(made: Make, analysis_runs: Runs) -> None:
    rows = made("operator_norms", ["sn"])
    gan, _ = opened(analysis_runs, "sn").restore()
    expected = layer_norms(gan.discriminator, (1, 16, 16))
    assert [r["layer"] for r in rows] == [n["layer"] for n in expected]
    for r, n in zip(rows, expected, strict=True):
        assert close(r["exact"], n["exact"])
        assert close(r["reshaped"], n["reshaped"])
        assert r["input"] == "x".join(map(str, n["input"]))
    assert any(float(r["ratio"]) > 1.05 for r in rows)  # the reshaped matrix is no operator


def test_gradient_norms_by_finite_differences(made: Make, analysis_runs: Runs) -> None:
    rows = made("gradient_norm", ["wn"], "n=5")
    assert [r["kind"] for r in rows] == ["data"] * 5 + ["between"] * 5 + ["samples"] * 5
    subject = opened(analysis_runs, "wn")
    gan, _ = subject.restore()
    d = gan.discriminator.eval().double()
    x = subject.real(gan, 5, 0).x.double()[:1]
    slopes = torch.stack(
        [d(x + 1e-6 * e.view_as(x)).score - d(x - 1e-6 * e.view_as(x)).score for e in torch.eye(256).double()]
    )
    assert close(rows[0]["norm"], float((slopes / 2e-6).detach().norm()), 1e-3)
    summary = made("gradient_norm", ["wn"], "n=5", more="_summary")
    for kind in summary:
        own = [float(r["norm"]) for r in rows if r["kind"] == kind["kind"]]
        assert close(kind["mean"], statistics.fmean(own))
        assert close(kind["std"], statistics.pstdev(own))


def test_scores_are_ds_own(made: Make, analysis_runs: Runs) -> None:
    rows = made("scores", ["sn"], "n=7")
    subject = opened(analysis_runs, "sn")
    gan, _ = subject.restore()
    with torch.no_grad(), evaluating(gan.discriminator), evaluating(gan.generator):
        real = gan.discriminator(subject.real(gan, 7, 0).x).score
        z, _ = subject.draw(gan, 7, 0)
        fake = gan.discriminator(gan.generator(z)).score
    assert [r["kind"] for r in rows] == ["training images"] * 7 + ["samples"] * 7  # digits hold nothing out
    np.testing.assert_allclose(
        [float(r["score"]) for r in rows], torch.cat([real, fake]), rtol=1e-4, atol=1e-6
    )


def test_real_images_are_the_data_sets_without_repetition(analysis_runs: Runs) -> None:
    subject = opened(analysis_runs, "sn")
    gan, _ = subject.restore()
    images = torch.from_numpy(subject.images().images).float() / 127.5 - 1
    x = subject.real(gan, 20, 0).x
    indices = {int((images == image).flatten(1).all(1).nonzero()[0]) for image in x}
    assert len(indices) == 20
    assert not torch.equal(x, subject.real(gan, 20, 1).x)
    assert len(subject.real(gan, 10**6, 0).x) == len(images)


def result(run: Path, score: str = "is_cifar") -> float:
    return float(json.loads((run / "result.json").read_text())["scores"]["last"]["values"][score])


@pytest.mark.parametrize(
    ("name", "key", "names", "places"),
    [
        ("d_steps", "d_steps", ["sn", "sn-s1", "sn-d2", "wn"], {"sn": 3, "wn": 1}),
        ("feature_dim", "last_factor", ["sn", "sn-s1", "sn-f2"], {"sn": 3}),
    ],
)
def test_curves_are_the_runs_scores(
    name: str, key: str, names: list[str], places: dict[str, int], made: Make, analysis_runs: Runs,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rows = made(name, names)
    assert {m: sum(r["method"] == m for r in rows) for m in places} == places
    at = {(r["method"], float(r[key]), int(r["seed"])): float(r["value"]) for r in rows}
    assert at["sn", 1.0, 0] == result(analysis_runs["sn"])
    assert at["sn", 1.0, 1] == result(analysis_runs["sn-s1"])
    assert at["sn", 2.0, 0] == result(analysis_runs[names[2]])
    both = [at["sn", 1.0, 0], at["sn", 1.0, 1]]
    output = capsys.readouterr().out
    assert f"1: {statistics.fmean(both):.2f} ± {statistics.stdev(both):.2f}" in output
    rows = made(name, names, "score=fid_cifar")
    at = {(r["method"], float(r[key]), int(r["seed"])): float(r["value"]) for r in rows}
    assert at["sn", 1.0, 1] == result(analysis_runs["sn-s1"], "fid_cifar")


def test_learning_curves_are_the_logs(made: Make, analysis_runs: Runs) -> None:
    rows = made("learning_curves", ["sn", "sn-s1", "wn"], "score=fid_cifar")
    log = [json.loads(x) for x in (analysis_runs["sn-s1"] / "metrics.jsonl").read_text().splitlines()]
    expected = {r["step"]: r["scores"]["fid_cifar"] for r in log if r["kind"] == "eval"}
    own = {int(float(r["step"])): float(r["value"]) for r in rows if (r["method"], r["seed"]) == ("sn", "1")}
    assert own == expected
    assert len(rows) == 9


def test_learning_curves_over_the_training_s_own_time(made: Make, analysis_runs: Runs) -> None:
    rows = made("learning_curves", ["sn", "sn-s1", "wn"], "score=fid_cifar", "x=both")
    log = [json.loads(x) for x in (analysis_runs["sn-s1"] / "metrics.jsonl").read_text().splitlines()]
    spent = [1 / r["it_per_s"] for r in log if r["kind"] == "train"]  # a line an update
    own = [r for r in rows if (r["method"], r["seed"]) == ("sn", "1")]
    assert [int(float(r["step"])) for r in own] == [1, 2, 3]
    assert all(close(r["train_s"], sum(spent[: i + 1])) for i, r in enumerate(own))
    walls = [r["wall_s"] for r in log if r["kind"] == "eval"]
    assert float(own[-1]["train_s"]) < walls[-1]  # scoring is in that one


def test_lines_are_told_apart_by_their_optimizer() -> None:
    """WGAN-GP's Figure 3: two settings of one method, called by the optimizer where that tells all apart."""
    gp, bn = Group("wgan-gp", ""), Group("bn", "")
    lines: dict[series.Line, dict[float, series.Place]] = {(gp, "A"): {}, (gp, "wgan_tf"): {}, (bn, "C"): {}}
    used = {("wgan-gp", "A"): "Adam", ("wgan-gp", "wgan_tf"): "RMSProp", ("bn", "C"): "Adam"}
    assert list(series._names(lines, used).values()) == ["WGAN-GP (Adam)", "WGAN-GP (RMSProp)", "BN (Adam)"]
    alike = dict.fromkeys(used, "Adam")
    names = ["WGAN-GP, setting A", "WGAN-GP, setting wgan_tf", "BN, setting C"]
    assert list(series._names(lines, alike).values()) == names
    two_of_one = {**used, ("bn", "D"): "Adam"}
    assert series._names({**lines, (bn, "D"): {}}, two_of_one)[bn, "D"] == "BN, setting D"


def test_overfitting_is_the_log_of_runs_that_look(
    made: Make, analysis_runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = made("overfitting", ["gp-held", "sn"])
    log = [json.loads(x) for x in (analysis_runs["gp-held"] / "metrics.jsonl").read_text().splitlines()]
    names = {
        "train": "critic/negative_critic_loss_train",
        "validation": "critic/negative_critic_loss_validation",
    }
    expected = [{k: r[name] for k, name in names.items()} for r in log if r["kind"] == "train"]
    assert [{k: float(row[k]) for k in names} for row in rows] == expected
    assert [int(row["step"]) for row in rows] == [1, 2, 3]
    assert {row["curve"] for row in rows} == {"negative critic loss"}
    for row in rows:
        assert float(row["gap"]) == float(row["train"]) - float(row["validation"])
    output = capsys.readouterr().out
    assert re.search(r"^  SN.*: trained without validation=true$", output, re.MULTILINE)
    assert [int(r["step"]) for r in made("overfitting", ["gp-held"], "since=2")] == [2, 3]


def test_equilibrium_is_the_log_of_began(made: Make, analysis_runs: Runs) -> None:
    rows = made("equilibrium", ["began"])
    log = [json.loads(x) for x in (analysis_runs["began"] / "metrics.jsonl").read_text().splitlines()]
    log = [r for r in log if r["kind"] == "train"]
    assert [[float(row[k]) for k in ("real", "fake", "ratio", "k", "m_global")] for row in rows] == [
        [-r["loss/d_real"], r["loss/g"], r["loss/g"] / -r["loss/d_real"], r["began/k"], r["began/m_global"]]
        for r in log
    ]


def test_reconstructions_are_of_real_mirrored_and_generated_images(made: Make, analysis_runs: Runs) -> None:
    rows = made("reconstructions", ["began"], "columns=3")
    subject = opened(analysis_runs, "began")
    gan, _ = subject.restore()
    real = subject.real(gan, 3, 0).x
    for kind, x in (("real", real), ("mirrored", real.flip(3)), ("generated", subject.fake(gan, 3, 0).x)):
        with torch.no_grad():
            errors = (x - gan.discriminator.reconstruct(x)).abs().mean((1, 2, 3))  # type: ignore[operator]
        assert [float(r["error"]) for r in rows if r["kind"] == kind] == pytest.approx(
            errors.tolist(), rel=1e-4
        )


def test_interpolations_begin_and_end_at_the_latents(made: Make, analysis_runs: Runs) -> None:
    rows = made("interpolations", ["sn"], "pairs=2", "columns=4")
    subject = opened(analysis_runs, "sn")
    gan, _ = subject.restore()
    z, _ = subject.draw(gan, 4, 0)
    way = interpolate(z[:2], z[2:], 4).view(2, 4, -1)
    torch.testing.assert_close(way[:, 0], z[:2])
    torch.testing.assert_close(way[:, -1], z[2:])
    x = generate(gan, way.flatten(0, 1), None).view(2, 4, -1)
    for r in rows:
        pair, a, b = (int(r[k]) for k in ("pair", "from", "to"))
        assert close(r["rms_change"], float((x[pair, a] - x[pair, b]).square().mean().sqrt()), 1e-4)
    assert len(rows) == 6


def test_samples_show_the_scored_g_at_its_place(made: Make, analysis_runs: Runs, tmp_path: Path) -> None:
    rows = made("samples", ["sn", "wn", "none-A", "sn-s1"], "side=2")
    assert [(r["method"], r["setting"], r["seed"]) for r in rows] == [
        ("none", "A", "0"), ("wn", "C", "0"), ("sn", "C", "0"),
    ]  # fmt: skip
    subject = opened(analysis_runs, "sn")
    gan, _ = subject.restore()
    first = as_bytes(generate(gan, *subject.draw(gan, 4, 0)))[0]
    tile = first.expand(3, -1, -1).permute(1, 2, 0).repeat_interleave(4, 0).repeat_interleave(4, 1).numpy()
    sheet = np.asarray(Image.open(tmp_path / "samples.png"))
    places = np.argwhere((sheet[:-63, :-63] == tile[0, 0]).all(-1))
    assert any((sheet[y : y + 64, x : x + 64] == tile).all() for y, x in places)


def pixels(images: torch.Tensor) -> Features:
    """Features that are the pixels themselves."""
    return Features(images.float().flatten(1), images.float().flatten(1)[:, :1])


def test_nearest_finds_copies_and_passes_an_image_itself_over() -> None:
    """Against numpy by brute force, over several chunks."""
    random = np.random.default_rng(0)
    train = SampleSet(random.integers(0, 256, (1203, 3, 4, 4), dtype=np.uint8), None, [], "", "t", "train")
    queries = random.integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    queries[0] = train.images[777]
    queries[1] = train.images[3]
    flat = train.images.reshape(1203, -1).astype(float)
    full = np.linalg.norm(queries.reshape(5, 1, -1).astype(float) - flat, axis=2)
    rows = torch.arange(1203)
    own = torch.tensor([-1, 3, -1, -1, -1])
    extractor = cast(Extractor, pixels)
    features = nearest.features(extractor, torch.from_numpy(queries))
    neighbors = nearest.search(extractor, train, rows, features, own, 3)
    assert int(neighbors.rows[0, 0]) == 777
    assert float(neighbors.distance[0, 0]) < 1e-3
    full[1, 3] = np.inf
    np.testing.assert_array_equal(neighbors.rows.numpy(), full.argsort(1, kind="stable")[:, :3])
    np.testing.assert_allclose(neighbors.distance[1:].numpy(), np.sort(full, 1)[1:, :3], rtol=1e-6)
    numbers = nearest.compare(torch.tensor([0.5, 3.0]).double(), torch.arange(1, 101).double())
    by_hand = {"median_baseline": 50.0, "share_below_q05": 1.0, "least_sample": 0.5}
    assert numbers | by_hand == numbers


def test_nearest_of_a_run(made: Make, analysis_runs: Runs) -> None:
    rows = made("nearest", ["sn"], "n=6", "k=2", "rows=2", "n_real=300")
    assert [r["kind"] for r in rows] == ["sample"] * 12 + ["baseline"] * 12
    assert all(r["query"] != r["train_index"] for r in rows if r["kind"] == "baseline")
    (summary,) = made("nearest", ["sn"], "n=6", "k=2", "rows=2", "n_real=300", more="_summary")
    counts = {"searched": "300", "training_images": "1797", "baseline": "leave-one-out"}
    assert summary | counts == summary
    firsts = sorted(float(r["distance"]) for r in rows if (r["kind"], r["rank"]) == ("sample", "1"))
    assert close(summary["least_sample"], firsts[0])


def test_admissible_sets_obey_both_conditions_and_are_attained(made: Make, tmp_path: Path) -> None:
    rows = made("admissible", [], "d=6")
    sets: dict[tuple[str, str], list[float]] = {}
    for r in rows:
        sets.setdefault((r["norm"], r["decay"]), []).append(float(r["squared"]))
    for (norm, _), values in sets.items():
        assert len(values) == 6
        assert values == sorted(values, reverse=True)
        assert close(sum(values), 1.0) if norm == "wn" else values[0] == 1.0
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(9, 6))
    WeightNorm().prepare(players(layer))
    s = singular_values.singular_values(singular_values.effective_weight(layer[0])) / math.sqrt(6)
    assert close(float(s.square().sum()), 1.0)  # what the left-hand condition says of real weights


def test_speed_takes_turns_and_leaves_the_first_round_out(
    made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    clock = iter(range(1000))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: float(next(clock)))
    blocks = {n: (lambda n=n: calls.append(n)) for n in ("a", "b")}  # type: ignore[misc]
    times = speed.time_in_turn(blocks, 3)
    assert calls == ["a", "b"] * 4
    assert times == {"a": [1.0] * 3, "b": [1.0] * 3}
    monkeypatch.undo()
    rows = made("speed", ["sn"], "methods=none,sn+gp", "rounds=2", "updates=1", "d_steps=2")
    assert [r["method"] for r in rows] == ["none", "sn+gp"]
    assert close(rows[0]["ratio"], 1.0)
    assert all(float(r["seconds_per_100"]) > 0 for r in rows)
    assert {(r["d_steps"], r["batch_size"], r["images"], r["width"]) for r in rows} == {
        ("2", "8", "1x16x16", "0.05")
    }
    options = ["dataset.resolution=16", "architecture.width=0.05", "batch_size=4", "metric.extractor=cifar"]
    rows = made("speed", [], *options, "methods=none", "rounds=1", "updates=1", "d_steps=1")
    assert rows[0]["batch_size"] == "4"


def test_speed_knows_the_methods() -> None:
    tree = {"normalization": {"sn": {}}, "loss": {"_target_": "ganlab.methods.losses.Hinge"}}
    wgan = speed.with_method(tree, "wgan-gp", user_dirs())
    assert list(wgan["normalization"]) == ["gp"]
    assert wgan["loss"]["_target_"] == "ganlab.methods.losses.Wasserstein"
    assert speed.with_method(tree, "none", user_dirs())["normalization"] == {}
    both = speed.with_method(tree, "sn+gp", user_dirs())
    assert list(both["normalization"]) == ["sn", "gp"]
    assert both["loss"] == tree["loss"]
    assert tree["normalization"] == {"sn": {}}
