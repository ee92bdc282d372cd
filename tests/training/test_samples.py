"""Pictures for people: grids, interpolations, and no trace left on what is looked at."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from ganlab.data.base import SampleSet
from ganlab.errors import DataError
from ganlab.evaluation.generate import stored_samples
from ganlab.methods.priors import Normal, Uniform
from ganlab.models.cnn import CNN
from ganlab.models.mlp import Generator as MLPGenerator
from ganlab.samples import latents
from ganlab.samples.base import Context, Export, Rendered, SampleKind, sample_kind
from ganlab.samples.images import grid
from ganlab.types import ImageShape


def test_spherical_interpolation_keeps_the_ends_and_the_length() -> None:
    a, b = torch.randn(3, 64), torch.randn(3, 64)
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    way = latents.interpolate(a, b, 7).view(3, 7, 64)
    assert torch.allclose(way[:, 0], a, atol=1e-5)
    assert torch.allclose(way[:, -1], b, atol=1e-5)
    assert torch.allclose(way.norm(dim=2), torch.ones(3, 7), atol=1e-4)
    straight = latents.interpolate(a, b, 3, spherical=False).view(3, 3, 64)
    assert torch.allclose(straight[:, 1], (a + b) / 2, atol=1e-6)
    equal = latents.interpolate(a, a, 4).view(3, 4, 64)
    assert torch.allclose(equal, a[:, None].expand(3, 4, 64), atol=1e-4), "equal ends divide by no zero"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_the_images_row_by_row(channels: int) -> None:
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, channels, 4, 4) * 40
    picture = grid(images, columns=3, padding=2)
    assert picture.shape == (2 * 6 + 2, 3 * 6 + 2, 3)
    assert picture[4, 4].tolist() == [0, 0, 0]
    assert picture[4, 10].tolist() == [40, 40, 40]
    assert picture[10, 4].tolist() == [120, 120, 120]
    assert picture[0, 0].tolist() == [255, 255, 255]


def test_images_leave_g_as_it_was() -> None:
    g = CNN(width=0.05, z_dim=4).generator(ImageShape(1, 16, 16), 0)
    before = {k: v.clone() for k, v in g.state_dict().items()}
    x = stored_samples(g, torch.randn(5, 4), batch_size=2)
    assert x.dtype == torch.uint8
    assert x.shape == (5, 1, 16, 16)
    assert g.training
    assert all(torch.equal(before[k], v) for k, v in g.state_dict().items())


def test_a_new_kind_is_one_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Signs, stored as int8: what is said, trained on, generated and shown follows from the class."""

    class SignShape(NamedTuple):
        n: int

        @property
        def kind(self) -> str:
            return "signs"

    class Signs(SampleKind):
        noun, architecture, metrics, suffix = "rows", "mlp", "none", "txt"

        def describe(self) -> str:
            return f"{self.shape.n} signs"

        def to_model_input(self, x: torch.Tensor, *_: object) -> torch.Tensor:
            return x.float()

        def to_stored(self, x: torch.Tensor, how: str = "") -> torch.Tensor:
            return x.sign().to(torch.int8)

        def preview(self, samples: torch.Tensor, context: Context) -> Rendered:
            return Rendered(None, str(samples.tolist()))

        def export(self, out: Path, samples: Export, context: Context) -> None:
            self.preview(samples.samples, context).write(out / "signs.txt")

    class SignSet(SampleSet):
        shape = SignShape(2)  # type: ignore[assignment]

    module = ModuleType("ganlab.samples.signs")
    module.KIND = Signs  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    data = SignSet(np.array([[1, -1]], np.int8), None, [], "", "signs", "train")
    with pytest.raises(DataError, match="3 is more than the 1 rows of signs train"):
        data.batches("cpu", 0).batch(0, 3)
    assert data.to_model_input(data.batches("cpu", 0).batch(0, 1).x).tolist() == [[1.0, -1.0]]
    g, kind = MLPGenerator(SignShape(2), [4, 2], "relu"), sample_kind(SignShape(2))
    samples = stored_samples(g, torch.randn(3, 4), None, kind.to_stored)
    assert samples.dtype == torch.int8
    assert samples.shape == (3, 2)
    kind.export(tmp_path, Export(samples, None, 8, True), Context())
    assert (tmp_path / "signs.txt").read_text() == str(samples.tolist())


def test_a_generator_of_nan_is_drawn_grey() -> None:
    class Broken(nn.Module):
        def forward(self, z: torch.Tensor, y: None) -> torch.Tensor:
            return z.view(-1, 1, 1, 1).expand(-1, 1, 2, 2) * float("nan")

    assert stored_samples(Broken(), torch.ones(2, 1)).unique().tolist() == [128]


def test_latents_are_fixed_by_seed_and_within_their_prior() -> None:
    cpu = torch.device("cpu")
    first = latents.latents(Normal(), 8, 4, cpu, 0)
    assert torch.equal(first, latents.latents(Normal(), 8, 4, cpu, 0))
    assert not torch.equal(first, latents.latents(Normal(), 8, 4, cpu, 1))
    assert not torch.equal(first, latents.latents(Normal(), 8, 4, cpu, 0, 1))
    flat = latents.latents(Uniform(bound=0.5), 100, 100, cpu, 0)
    assert 0.49 < flat.abs().max() <= 0.5
    assert Normal(std=2.0)(1000, 10, cpu).std().item() == pytest.approx(2.0, abs=0.1)
