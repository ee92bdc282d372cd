"""``scripts/plain_loop.py`` computes the same losses as ganlab, so that their speeds are comparable."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import plain_loop
import pytest
import torch
from torch import Tensor

from ganlab.data.digits import Digits
from ganlab.experiment import Experiment
from ganlab.methods.losses import Hinge, Standard, Wasserstein
from ganlab.methods.penalties import GradientPenalty
from ganlab.methods.weight_norms import SpectralNorm, WeightNorm
from ganlab.models.cnn import CNN
from ganlab.models.resnet import ResNet
from ganlab.training.build import build_gan
from ganlab.training.step import update
from ganlab.types import Batch

Make = Callable[..., Experiment]
CPU = torch.device("cpu")
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "plain_loop.py"
LOSSES = {"standard": Standard, "hinge": Hinge, "wasserstein": Wasserstein}
# a power of two: otherwise the gradient of D's last bias, which is 0 if neither score is saturated, becomes
# 1e-9 in one order of summation, and Adam turns that into a full step
BATCH, D_STEPS, WIDTH, BETAS = 8, 2, 0.06, (0.5, 0.9)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute everything in float64, including explicit conversions to float32."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    yield
    torch.set_default_dtype(torch.float32)


def both(
    tiny: Make, net: str, method: str, loss: str, updates: int, lr: float, **sn: Any
) -> tuple[Tensor, Tensor]:
    """Losses of D and G (updates, 2) from ganlab's step and from the plain loop, on equal inputs."""
    norms: dict[str, dict[str, Any]] = {
        "sn": {"sn": SpectralNorm(**sn)},
        "gp": {"gp": GradientPenalty()},
        "wn": {"wn": WeightNorm()},
        "none": {},
    }
    size = 16 if net == "cnn" else 32
    e = tiny(
        dataset=Digits(resolution=size, channels=3),
        architecture=CNN(WIDTH, z_dim=16, init_std=0.15) if net == "cnn" else ResNet(WIDTH, z_dim=16),
        normalization=norms[method],
        loss=LOSSES[loss](),
        d_steps=D_STEPS,
        batch_size=BATCH,
        optimizer=functools.partial(torch.optim.Adam, lr=lr, betas=BETAS),
    )
    gan = build_gan(e, CPU)
    images = torch.zeros(BATCH, 3, size, size, dtype=torch.uint8)
    loop = plain_loop.Loop(
        net, method, images, loss, D_STEPS, BATCH, 16, WIDTH, lr=lr, betas=BETAS, per_update=bool(sn)
    )
    plain_loop.load(loop.generator, gan.generator.state_dict())
    plain_loop.load(loop.discriminator, gan.discriminator.state_dict())

    def batches(seed: int) -> Iterator[Tensor]:
        random = torch.Generator().manual_seed(seed)
        while True:
            yield torch.rand(BATCH, 3, size, size, generator=random) * 2 - 1

    losses: list[list[list[Tensor]]] = [[], []]
    ganlab_batches, plain_batches = batches(1), batches(1)
    loop.real = lambda: next(plain_batches)
    for i in range(updates):
        torch.manual_seed(i)
        terms = update(gan, lambda: Batch(next(ganlab_batches)))
        torch.manual_seed(i)
        plain_terms = loop.update()
        losses[0].append([terms["d"], terms["g"]])
        losses[1].append([plain_terms["d"], plain_terms["g"]])
    first, second = (torch.tensor(series, dtype=torch.float64) for series in losses)
    return first, second


CASES = [
    ("cnn", "sn", "standard"),
    ("resnet", "sn", "hinge"),
    ("resnet", "gp", "wasserstein"),
    ("cnn", "wn", "standard"),
]


@pytest.mark.parametrize(("net", "method", "loss"), CASES)
def test_in_float64_they_agree_to_rounding(
    tiny: Make, double: None, net: str, method: str, loss: str
) -> None:
    ours, reference = both(tiny, net, method, loss, 5, 2e-4)
    assert torch.allclose(ours, reference, rtol=1e-10, atol=1e-10)
    assert (ours - ours[0]).abs().max() > 1e-3, "the losses have to change"


def test_one_power_iteration_for_each_new_set_of_weights(tiny: Make, double: None) -> None:
    ours, reference = both(tiny, "cnn", "sn", "hinge", 5, 2e-4, update="per_update")
    assert torch.allclose(ours, reference, rtol=1e-10, atol=1e-10)
    other, _ = both(tiny, "cnn", "sn", "hinge", 5, 2e-4)
    assert not torch.allclose(ours, other, rtol=1e-4), "the option has to matter"


def test_it_is_plain() -> None:
    """Only torch, nothing from ganlab; no channels last, fused or foreach optimizer, or CUDA graph."""
    source = SCRIPT.read_text()
    imports = {
        (n.module if isinstance(n, ast.ImportFrom) else n.names[0].name) or ""
        for n in ast.walk(ast.parse(source))
        if isinstance(n, ast.Import | ast.ImportFrom)
    }
    assert {name.partition(".")[0] for name in imports} <= {
        *("__future__", "sys", "time", "collections", "functools", "itertools", "typing", "torch"),
    }
    for word in ("channels_last", "fused=True", "foreach=True", "CUDAGraph", "compile("):
        assert word not in source
