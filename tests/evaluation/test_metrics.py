"""Metrics on features: by hand, in closed form, and against torch-fidelity's own functions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ganlab.metrics.base import Fakes, Metric, MetricError, Moments, Real, Reference, moments, square_root
from ganlab.metrics.density_coverage import density_coverage
from ganlab.metrics.fid import FID, frechet_distance
from ganlab.metrics.fid_infinity import FIDInfinity, intercept
from ganlab.metrics.inception_score import InceptionScore
from ganlab.metrics.kid import KID, cubic_mmd2, kernel_distance
from ganlab.metrics.precision_recall import PrecisionRecall, precision_recall, share_inside
from ganlab.metrics.protocol import OPTIONAL, Protocol, digest
from ganlab.schema import parameters

PINNED = {
    "demo": "07308eabd0aa",
    "progress5k": "b8124d85f264",
    "small2k": "2966fbe34fc8",
    "smoke": "518baf12d659",
    "sngan_paper": "8c1e6e3c2cdf",
    "ttur50k": "4ad7f79a2eef",
}
PROTOCOLS = Path(__file__).parents[2] / "configs" / "protocol"


def draw(n: int, d: int, seed: int, scale: float = 1.0, offset: float = 0.0) -> torch.Tensor:
    """Correlated features (n, d), float32, non-negative like pooled ones."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(1)) / math.sqrt(d)
    return (torch.randn(n, d, generator=g) @ mix * scale + 0.5 + offset).relu()


def reference(pool: torch.Tensor) -> Reference:
    mean, cov = moments(pool)
    return Reference(len(pool), mean, cov, square_root(cov), pool)


def small(**changes: object) -> Protocol:
    fields = {"name": "t", "is_n_fake": 100, "fid_n_fake": 100, "kid_subsets": 4, "kid_subset_size": 50}
    return Protocol(**(fields | changes))  # type: ignore[arg-type]


# --- Inception Score


def inception_score(logits: torch.Tensor, splits: int) -> tuple[float, float]:
    protocol = Protocol("t", len(logits), 2, splits)
    values = InceptionScore()(None, Fakes(logits=logits), protocol)
    return values["is"], values["is_std"]


def test_inception_score_by_hand() -> None:
    two = torch.tensor([[20.0, -20.0], [-20.0, 20.0]])  # certain of two different classes: exp(log 2)
    assert inception_score(two, 1) == pytest.approx((2.0, 0.0), abs=1e-12)
    same = torch.zeros(8, 5)
    assert inception_score(same, 2) == pytest.approx((1.0, 0.0), abs=1e-12)
    # first split: two classes, second split: one; mean 1.5, population deviation 0.5
    mixed = torch.cat([two, two[:1], two[:1]])
    assert inception_score(mixed, 2) == pytest.approx((1.5, 0.5), abs=1e-12)


def test_inception_score_survives_certainty() -> None:
    certain = torch.full((4, 3), -3000.0).index_put(
        (torch.arange(4), torch.tensor([0, 1, 2, 0])), torch.zeros(1)
    )
    mean, _ = inception_score(certain, 1)
    assert mean == pytest.approx(math.exp(-(0.5 * math.log(0.5) + 0.5 * math.log(0.25))), abs=1e-9)


@pytest.mark.parametrize(("n", "splits"), [(1003, 10), (997, 1)])
def test_inception_score_equals_torch_fidelity(n: int, splits: int) -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = torch.randn(n, 40, generator=torch.Generator().manual_seed(n)) * 3
    theirs = isc_features_to_metric(logits, splits, shuffle=False)
    mean, std = inception_score(logits, splits)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert std == pytest.approx(theirs["inception_score_std"], rel=1e-6, abs=1e-12)


def test_inception_score_takes_the_first_fakes_in_order() -> None:
    logits = torch.randn(130, 6, generator=torch.Generator().manual_seed(0))
    scores = InceptionScore()(None, Fakes(logits, logits), small(is_splits=4))
    assert scores["is"] == inception_score(logits[:100], 4)[0]


# --- FID


def test_fid_of_gaussians_in_closed_form() -> None:
    # commuting covariances: |dm|^2 + sum (sqrt(a) - sqrt(b))^2
    g = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64))
    a = torch.tensor([4.0, 1.0, 0.25, 9.0, 0.0, 1e-6], dtype=torch.float64)
    b = torch.tensor([1.0, 1.0, 4.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    m, m2 = torch.zeros(6, dtype=torch.float64), torch.arange(6, dtype=torch.float64)
    c, c2 = (q * a) @ q.T, (q * b) @ q.T
    wanted = 55.0 + float((a.sqrt() - b.sqrt()).square().sum())
    assert frechet_distance(m, c, square_root(c), m2, c2) == pytest.approx(wanted, rel=1e-7)
    assert frechet_distance(m2, c2, square_root(c2), m, c) == pytest.approx(wanted, rel=1e-7)


def test_fid_of_covariances_that_do_not_commute() -> None:
    # 2x2: tr (C C2)^(1/2) = sqrt(tr(C C2) + 2 sqrt(det C det C2))
    c = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    c2 = torch.tensor([[1.0, -0.3], [-0.3, 3.0]], dtype=torch.float64)
    cross = math.sqrt(float((c @ c2).trace()) + 2 * math.sqrt(float(c.det() * c2.det())))
    m = torch.zeros(2, dtype=torch.float64)
    assert frechet_distance(m, c, square_root(c), m, c2) == pytest.approx(3 + 4 - 2 * cross, rel=1e-12)


def test_fid_infinity_is_without_the_bias_of_the_number_of_generated_images() -> None:
    """Of N samples of a Gaussian in D dimensions: FID = |dm|^2 + D / N + D (D + 1) / (4 N) + O(N^-2)."""
    assert intercept([100, 200, 400], [0.3 + 7 / n for n in (100, 200, 400)]) == pytest.approx(0.3)
    d, n, fids, extrapolated = 16, 1000, [], []
    one = torch.eye(d, dtype=torch.float64)
    real = Reference(10**6, one[0] * 0.5, one, one, torch.empty(0))
    for seed in range(20):
        fakes = Fakes(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))
        p = small(fid_n_fake=n, seed=seed)
        fids.append(FID()(real, fakes, p)["fid"])
        extrapolated.append(FIDInfinity()(real, fakes, p)["fid_infinity"])
    bias = d / n + d * (d + 1) / (4 * n)  # 0.084; a mean of 20 deviates by 0.007 to 0.008
    assert np.mean(fids) == pytest.approx(0.25 + bias, abs=0.02)
    assert np.mean(extrapolated) == pytest.approx(0.25, abs=0.025)
    with pytest.raises(MetricError, match="16 features need at least 170 generated images"):
        FIDInfinity().start(real, small(fid_n_fake=169))


@pytest.mark.parametrize(
    ("n_real", "n_fake", "d"), [(700, 500, 64), (90, 60, 100)]
)  # the second: rank-deficient
def test_fid_equals_torch_fidelity(n_real: int, n_fake: int, d: int) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    real, fake = draw(n_real, d, 2), draw(n_fake, d, 3, 1.5, 0.2)
    stats = [fid_features_to_statistics(x) for x in (real, fake)]
    theirs = fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]
    protocol = small(fid_n_fake=n_fake)
    ours = FID()(reference(real), Fakes(fake, fake), protocol)["fid"]
    assert theirs > 1
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_fid_of_a_set_with_itself_is_zero_and_with_a_constant_finite() -> None:
    real = draw(300, 32, 4)
    assert FID()(reference(real), Fakes(real, real), small())["fid"] >= 0
    mean, cov = moments(real)
    assert frechet_distance(mean, cov, square_root(cov), mean, cov) == pytest.approx(0, abs=1e-9)
    constant = torch.ones(100, 32)
    fid = FID()(reference(real), Fakes(constant, constant), small())["fid"]
    assert fid == pytest.approx(float((mean - 1).square().sum() + cov.trace()), rel=1e-9)


def test_moments_do_not_depend_on_the_pieces_and_bear_an_offset() -> None:
    x = draw(1001, 16, 5).double() + 1e6
    whole, pieces = moments(x), Moments()
    for piece in x.split(37):
        pieces.add(piece)
    mean, cov = pieces.result()
    torch.testing.assert_close(mean, whole[0], rtol=1e-14, atol=0)
    torch.testing.assert_close(cov, torch.cov(x.T), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(whole[1], cov, rtol=1e-9, atol=1e-10)


# --- KID


def test_kid_by_hand() -> None:
    # D = 1: k(a, b) = (ab + 1)^3
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    # x: k(0,1) = 1; y: k(1,2) = 27; cross: k(0,.) = 1, 1; k(1,1) = 8, k(1,2) = 27
    assert float(cubic_mmd2(x, y)) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4, abs=1e-12)


def test_kid_equals_torch_fidelity_on_the_same_subsets() -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    real, fake, size, n = draw(400, 64, 6), draw(300, 64, 7, 1.3, 0.1), 100, 7
    random = np.random.RandomState(2020)  # the draws of torch-fidelity, in its order: fake, real
    pairs = []
    for _ in range(n):
        j, i = (torch.from_numpy(random.choice(k, size, replace=False)) for k in (300, 400))
        pairs.append((i, j))
    options = {"kid_subsets": n, "kid_subset_size": size, "verbose": False}
    mean, std = kernel_distance(real, fake, pairs)
    exact = kid_features_to_metric(fake.double(), real.double(), **options)
    assert mean == pytest.approx(exact["kernel_inception_distance_mean"], rel=1e-10)
    assert std == pytest.approx(exact["kernel_inception_distance_std"], rel=1e-8)
    as_shipped = kid_features_to_metric(fake, real, **options)
    assert mean == pytest.approx(as_shipped["kernel_inception_distance_mean"], rel=1e-4)
    assert std == pytest.approx(as_shipped["kernel_inception_distance_std"], rel=1e-3)


def test_kid_is_unbiased_and_repeats_by_seed() -> None:
    real, fake = draw(2000, 16, 8), draw(2000, 16, 9)
    p = small(fid_n_fake=2000, kid_subsets=50, kid_subset_size=200)
    one, again = (KID()(reference(real), Fakes(fake, fake), p) for _ in range(2))
    assert one == again
    assert abs(one["kid"]) < 3 * one["kid_std"]  # same distribution: zero on average, not above it
    p.seed = 1
    assert KID()(reference(real), Fakes(fake, fake), p) != one


# --- precision and recall


def test_precision_recall_by_hand() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    fake = torch.tensor([[0.5], [30.0], [31.0], [1.5]])
    # k = 1: real balls reach 1, 1, 1, 8 -> 0.5 and 1.5 inside; fake balls reach 1, 1, 1, 1 -> 0, 1, 2 inside
    assert precision_recall(real, fake, 1) == pytest.approx((0.5, 0.75))
    assert share_inside(fake, real, torch.zeros(4, dtype=torch.float32)) == 0


def test_density_coverage_by_hand() -> None:
    """Neighborhoods of 0, 1 and 10 with one neighbor: open balls of radius 1, 1 and 9."""
    real, fake = torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([[0.5], [5.0], [30.0], [-1.0]])
    assert density_coverage(real, fake, 1) == pytest.approx((3 / 4, 1))
    assert density_coverage(real, fake[2:], 1) == (0, 0)
    same = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    density, coverage = density_coverage(same[:200], same[200:], 5)
    assert density == pytest.approx(1, abs=0.15)
    assert coverage > 0.9
    with pytest.raises(MetricError, match="5 neighbours need at least 6 images, not 3"):
        density_coverage(real, fake, 5)


def test_precision_recall_equals_torch_fidelity() -> None:
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    real, fake = draw(350, 24, 10).double(), draw(250, 24, 11, 1.2).double()
    theirs = calculate_precision_recall_full(fake, real, 3)
    assert precision_recall(real, fake, 3) == pytest.approx(theirs, abs=1e-6)
    assert 0.05 < theirs[0] < 1


# --- what has no value says why


@pytest.mark.parametrize(
    "metric", [InceptionScore(), FID(), KID(), PrecisionRecall()], ids=lambda m: m.names[0]
)
def test_non_finite_and_too_few_are_told(metric: Metric[Any]) -> None:
    real, fake = reference(draw(200, 8, 12)), draw(100, 8, 13)
    bad = fake.clone()
    bad[7, 3] = math.nan
    with pytest.raises(MetricError, match="features are not finite"):
        metric(real, Fakes(bad, bad), small())
    with pytest.raises(MetricError, match="at least 100 generated images, there are 99"):
        metric(real, Fakes(fake[:99], fake[:99]), small())
    values = metric(real, Fakes(fake, fake), small())
    assert tuple(values) == metric.names
    assert all(isinstance(v, float) and math.isfinite(v) for v in values.values())


def test_impossible_counts_name_the_smallest_n() -> None:
    with pytest.raises(MetricError, match="at least 50 reference images, not 30"):
        KID().check(small(), Real(n=30))
    with pytest.raises(MetricError, match="at least 50 generated images, not 40"):
        KID().check(small(fid_n_fake=40), Real(n=1000))
    with pytest.raises(MetricError, match="at least 2 reference images"):
        FID().check(small(), Real(n=1))
    with pytest.raises(MetricError, match="at least 4 images, there are 3"):
        PrecisionRecall().check(small(), Real(n=3))
    with pytest.raises(MetricError, match="at least 2 images, there are 1"):
        moments(torch.zeros(1, 3))


# --- protocols


def test_protocol_refuses_what_it_can_not_do() -> None:
    with pytest.raises(ValueError, match="is_splits: 10 splits of 5 images"):
        small(is_n_fake=5)
    with pytest.raises(ValueError, match="fid_n_real: one image"):
        small(fid_n_real=1)
    with pytest.raises(ValueError, match=r"fid_n_fake.*quantize"):
        small(fid_n_fake=1, quantize="floor")


def test_digest_is_of_what_moves_the_number() -> None:
    base = small().record()
    assert digest(base) == digest(dict(reversed(base.items())))
    assert len(digest(base)) == 12
    assert digest(small(batch_size=7).record()) == digest(base) == digest(small(name="other").record())
    moved: dict[str, object] = {
        "is_n_fake": 99, "is_splits": 2, "fid_n_fake": 99, "fid_n_real": 5, "real_split": "test",
        "kid_subsets": 5, "kid_subset_size": 49, "kid_n_real": 99, "quantize": "truncate",
        "bn": "batch", "seed": 1, "intra_n_fake": 99, "intra_classes": 3,
    }  # fmt: skip
    assert set(moved) | {"name", "batch_size"} == set(parameters(Protocol))
    for key, value in moved.items():
        assert digest(small(**{key: value}).record(OPTIONAL)) != digest(small().record(OPTIONAL)), key
        assert (digest(small(**{key: value}).record()) == digest(base)) == (key in OPTIONAL), key


def test_digests_of_the_shipped_protocols_stay() -> None:
    """Scores of earlier versions stay comparable: these are what they stored."""
    digests = {
        path.stem: digest(
            Protocol(**{k: v for k, v in yaml.safe_load(path.read_text()).items() if k[0] != "_"}).record()
        )
        for path in PROTOCOLS.glob("*.yaml")
    }
    assert digests | PINNED == digests
