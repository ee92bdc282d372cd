"""Counted work: operations and floating-point operations by hand."""

from __future__ import annotations

import torch
from counting import count
from torch import nn


def test_views_and_allocations_are_no_operations() -> None:
    x = torch.ones(4, 6)
    counted = count(lambda: (x.view(24)[2:].t(), torch.empty(3), torch.empty_like(x), x.detach()))
    assert counted.counts.total() == 0
    counted = count(lambda: (x + x.t().reshape(4, 6), x.add_(1)))
    assert counted.counts == {"clone": 1, "add": 1, "add_": 1}, "a reshape that has to copy is one"


def test_flops_of_a_product_and_both_its_gradients() -> None:
    layer, x = nn.Linear(5, 7, bias=False), torch.ones(3, 5, requires_grad=True)
    assert count(lambda: layer(x)).flops == 2 * 3 * 5 * 7
    assert count(lambda: layer(x).sum().backward()).flops == 3 * 2 * 3 * 5 * 7


def test_flops_of_a_convolution_and_of_a_gradient_of_its_gradient() -> None:
    """The second backward is one that torch's own counter, which watches modules, refuses."""
    layer, x = nn.Conv2d(2, 3, 3, padding=1, bias=False), torch.ones(4, 2, 8, 8, requires_grad=True)
    once = 2 * 4 * 8 * 8 * 2 * 3 * 9
    assert count(lambda: layer(x)).flops == once

    def penalty() -> None:
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()

    # forward and input gradient; then, by both of their weights and inputs, the backward of each
    assert count(penalty).flops >= 5 * once
