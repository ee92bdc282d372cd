"""Resampling folded into the convolutions: the same function, gradients and parameters as unfolded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ganlab.methods.modes import unfolded
from ganlab.models.base import Architecture
from ganlab.models.blocks import DownBlock, FirstBlock, UpBlock
from ganlab.models.resnet import ResNet
from ganlab.types import ImageShape

BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "up": lambda: UpBlock(5, 3, 0),
    "up, by class": lambda: UpBlock(5, 3, 4),
    "down": lambda: DownBlock(5, 3, True, None),
    "flat": lambda: DownBlock(5, 3, False, None),
    "first": lambda: FirstBlock(5, 3, None),
}


def both(block: nn.Module, x: Tensor, *y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Output, its gradients and the gradients of a gradient penalty, folded and not."""

    def values() -> list[Tensor]:
        xs = x.clone().requires_grad_()
        out = block(xs, *y)
        (gx,) = torch.autograd.grad(out.square().sum(), xs, create_graph=True)
        penalty = gx.square().sum()
        return [out, gx, *torch.autograd.grad(penalty + out.sum(), list(block.parameters()))]

    folded = values()
    with unfolded(block):
        return folded, values()


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("laid", [torch.contiguous_format, torch.channels_last])
def test_folded_equals_unfolded_to_rounding(kind: str, laid: torch.memory_format) -> None:
    torch.manual_seed(0)
    block = BLOCKS[kind]().double().to(memory_format=laid)
    x = torch.randn(3, 5, 8, 6, dtype=torch.double).contiguous(memory_format=laid)
    y = [torch.tensor([0, 3, 1])] if kind == "up, by class" else [None] if kind == "up" else []
    folded, plain = both(block, x, *y)  # type: ignore[arg-type]
    largest = max(float(b.detach().abs().max()) for b in plain)  # some gradients are 0 but for rounding
    for a, b in zip(folded, plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-13 * largest)


@pytest.mark.parametrize("side", [32, 48])
def test_whole_networks_agree_and_have_the_same_state(side: int) -> None:
    torch.manual_seed(0)
    net: Architecture = ResNet(width=0.05, z_dim=4)
    shape = ImageShape(3, side, side)
    g, d = net.generator(shape, 0).double(), net.discriminator(shape, 0, None).double()
    z = torch.randn(4, 4, dtype=torch.double)
    names = list(d.state_dict()), list(g.state_dict())
    assert not any("taps" in name for name in names[0] + names[1])
    x = g(z)
    with unfolded(g):
        assert not any(m.folded for m in g.modules() if hasattr(m, "folded"))
        assert torch.allclose(x, g(z), rtol=0, atol=1e-12)
    assert all(m.folded for m in g.modules() if hasattr(m, "folded")), "folded again afterwards"
    score = d(x).score
    with unfolded(d):
        assert torch.allclose(score, d(x).score, rtol=1e-12)


def test_the_folded_block_makes_fewer_products() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    block, x = UpBlock(8, 8, 0), torch.randn(2, 8, 8, 8)

    def products() -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            block(x, None)
        return counter.get_total_flops()

    folded = products()
    with unfolded(block):
        assert folded < 0.75 * products()
