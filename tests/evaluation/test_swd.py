"""Sliced Wasserstein distances: pyramid, patches and distances by hand; better sets score lower."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from ganlab import rng
from ganlab.metrics.base import Fakes, MetricError, Real
from ganlab.metrics.protocol import Protocol
from ganlab.metrics.swd import SWD, _enlarged, laplacian_pyramid, patches, sliced_distance, standardized
from ganlab.types import ImageShape

PROTOCOL = Protocol("tiny", 64, 64, 1, 64)
METRIC = SWD(images=64, patches=16, directions=32)


def images(seed: int, blur: bool = False) -> torch.Tensor:
    x = np.random.default_rng(seed).integers(0, 256, (64, 3, 32, 32)).astype(np.uint8)
    t = torch.from_numpy(x)
    return torch.nn.functional.avg_pool2d(t.float(), 3, 1, 1).to(torch.uint8) if blur else t


def score(fakes: torch.Tensor, real: torch.Tensor) -> dict[str, float]:
    facts = Real(samples=real.numpy(), n=64, shape=ImageShape(3, 32, 32))
    return METRIC(facts, Fakes(samples=fakes), PROTOCOL)


def test_the_levels_of_a_pyramid_add_up() -> None:
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    fine, middle, coarse = laplacian_pyramid(x)
    assert torch.allclose(fine + _enlarged(middle + _enlarged(coarse)), x)
    constant = laplacian_pyramid(torch.full((1, 3, 32, 32), 7.0))
    assert constant[0].abs().max() < 1e-5
    assert torch.allclose(constant[1], torch.tensor(7.0))


def test_patches_are_parts_of_their_images() -> None:
    x = torch.arange(2 * 16 * 16.0).view(2, 1, 16, 16)
    cut = patches(x, 5, rng.generator("cpu", 0, "metric"))
    assert cut.shape == (10, 1, 7, 7)
    assert torch.equal(cut[:, 0] - cut[:, 0, :1, :1], (x[0, 0, :7, :7] - x[0, 0, 0, 0]).expand(10, 7, 7))
    assert (cut[5:, 0, 0, 0] >= 256).all()


def test_distances_along_a_line_are_scipys() -> None:
    a, b = torch.randn(50, 1, dtype=torch.float64), torch.randn(50, 1, dtype=torch.float64) + 1
    distance = sliced_distance(a, b, 3, rng.generator("cpu", 0, "metric"))
    assert distance == pytest.approx(wasserstein_distance(a[:, 0], b[:, 0]), rel=1e-6)


def test_colors_are_standardized() -> None:
    x = standardized(torch.randn(40, 3, 7, 7) * torch.tensor([1.0, 5.0, 9.0])[:, None, None] + 3)
    by_color = x.view(40, 3, 49).transpose(0, 1).flatten(1)
    assert torch.allclose(by_color.mean(1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(by_color.std(1, correction=0), torch.ones(3), atol=1e-5)


def test_like_images_score_lower() -> None:
    same, other = score(images(1), images(0)), score(images(2, blur=True), images(0))
    assert set(same) == {"swd", "swd_32", "swd_16"}
    assert same["swd"] == pytest.approx((same["swd_32"] + same["swd_16"]) / 2)
    assert same["swd_32"] < 0.9 * other["swd_32"]
    assert score(images(1), images(0)) == same


def test_what_has_no_pyramid() -> None:
    with pytest.raises(MetricError, match="square images of 16, 32"):
        METRIC.check(PROTOCOL, Real(shape=ImageShape(3, 48, 48)))
    with pytest.raises(MetricError, match="compares 64 images, there are 3"):
        METRIC.check(PROTOCOL, Real(samples=np.zeros((3, 3, 32, 32)), shape=ImageShape(3, 32, 32)))
