"""Pictures for people: grids, interpolations, and no trace left on what is looked at."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ganlab.methods.priors import Normal, Uniform
from ganlab.models.cnn import CNN
from ganlab.samples import images as images_module
from ganlab.types import ImageShape


def test_spherical_interpolation_keeps_the_ends_and_the_length() -> None:
    a, b = torch.randn(3, 64), torch.randn(3, 64)
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    way = images_module.interpolate(a, b, 7).view(3, 7, 64)
    assert torch.allclose(way[:, 0], a, atol=1e-5)
    assert torch.allclose(way[:, -1], b, atol=1e-5)
    assert torch.allclose(way.norm(dim=2), torch.ones(3, 7), atol=1e-4)
    straight = images_module.interpolate(a, b, 3, spherical=False).view(3, 3, 64)
    assert torch.allclose(straight[:, 1], (a + b) / 2, atol=1e-6)
    equal = images_module.interpolate(a, a, 4).view(3, 4, 64)
    assert torch.allclose(equal, a[:, None].expand(3, 4, 64), atol=1e-4), "equal ends divide by no zero"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_the_images_row_by_row(channels: int) -> None:
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, channels, 4, 4) * 40
    picture = images_module.grid(images, columns=3, padding=2)
    assert picture.shape == (2 * 6 + 2, 3 * 6 + 2, 3)
    assert picture[4, 4].tolist() == [0, 0, 0]
    assert picture[4, 10].tolist() == [40, 40, 40]
    assert picture[10, 4].tolist() == [120, 120, 120]
    assert picture[0, 0].tolist() == [255, 255, 255]


def test_images_leave_g_as_it_was() -> None:
    g = CNN(width=0.05, z_dim=4).generator(ImageShape(1, 16, 16), 0)
    before = {k: v.clone() for k, v in g.state_dict().items()}
    x = images_module.images(g, torch.randn(5, 4), batch_size=2)
    assert x.dtype == torch.uint8
    assert x.shape == (5, 1, 16, 16)
    assert g.training
    assert all(torch.equal(before[k], v) for k, v in g.state_dict().items())


def test_a_generator_of_nan_is_drawn_grey() -> None:
    class Broken(nn.Module):
        def forward(self, z: torch.Tensor, y: None) -> torch.Tensor:
            return z.view(-1, 1, 1, 1).expand(-1, 1, 2, 2) * float("nan")

    assert images_module.images(Broken(), torch.ones(2, 1)).unique().tolist() == [128]


def test_latents_are_fixed_by_seed_and_within_their_prior() -> None:
    cpu = torch.device("cpu")
    first = images_module.latents(Normal(), 8, 4, cpu, 0)
    assert torch.equal(first, images_module.latents(Normal(), 8, 4, cpu, 0))
    assert not torch.equal(first, images_module.latents(Normal(), 8, 4, cpu, 1))
    assert not torch.equal(first, images_module.latents(Normal(), 8, 4, cpu, 0, 1))
    flat = images_module.latents(Uniform(bound=0.5), 100, 100, cpu, 0)
    assert 0.49 < flat.abs().max() <= 0.5
    assert Normal(std=2.0)(1000, 10, cpu).std().item() == pytest.approx(2.0, abs=0.1)
