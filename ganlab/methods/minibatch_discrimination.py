"""Minibatch discrimination (Salimans et al. 2016, arXiv:1606.03498, section 3.2)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ganlab.distributed import collectives
from ganlab.distributed.sync_batch_norm import stack_ranks
from ganlab.methods.base import Method, StartsFromData
from ganlab.schema import Count, checked

Form = Literal["paper", "code", "joint"]
STD = 0.05  # of the initial weights, as in the paper's code


class MinibatchDiscrimination(Method):
    """D's last layer sees how close each sample's features are to those of the other samples of its batch.

    M_i = f(x_i) T, T (features, kernels, dims); c_b(i, j) = exp(-||M_ib - M_jb||_1); o_b(x_i) = sum_j c_b,
    beside f(x_i) as input of D's last layer. T is no layer that a weight norm normalizes.

    Args:
        kernels: B of the paper; its CIFAR-10 code: 100, its ImageNet code: 300.
        dims: C of the paper; the same: 5, 50.
        form: ``paper``: as above, with j = i in the sum (a constant 1), real and generated samples each
            among themselves. ``code``: of its CIFAR-10 code: without j = i, T's columns normalized and scaled
            by a learned exp(s), plus a learned offset; s and the offset start from the data: distances in
            units of half the mean nearest one, o with mean 0. ``joint``: of its ImageNet code: one batch of
            real and generated samples for both players, and two sums for each kernel, over either half,
            divided by the number of its pairs (the whole batch's, so they are no means per sample).
    """

    @checked
    def __init__(self, kernels: Count = 100, dims: Count = 5, form: Form = "code") -> None:
        self.kernels, self.dims, self.form = kernels, dims, form
        if form == "joint":
            self.needs = frozenset({"joint_batch", "real_in_g"})

    def mistakes(self, e: Any, data: Any = None) -> Iterator[str]:
        needing = [key for key, m in e.methods.items() if "per_sample_d" in m.needs]
        if self.form == "joint" and needing:
            what = (
                f"form=joint shows D real and generated samples together, but {needing[0]} needs each alone"
            )
            yield f"{what}; use form=code"
        if self.form == "joint" and (e.fixed_generator or e.fixed_shift):
            yield "form=joint: G is not trained; use form=code"

    def change_networks(self, generator: nn.Module, discriminator: nn.Module) -> None:
        parent, name, last = last_layer(discriminator)
        features = MinibatchFeatures(last.in_features, self.kernels, self.dims, self.form)
        old = last.weight.detach()
        std = old.std(correction=0) if old.numel() > 1 else STD
        layer = copy.deepcopy(last)
        layer.in_features += features.width  # the new columns as the old ones
        new = torch.randn(last.out_features, features.width, device=old.device) * std
        layer.weight = nn.Parameter(torch.cat([old, new], 1))
        parent.register_module(name, WithMinibatch(features, layer))


def last_layer(d: nn.Module) -> tuple[nn.Module, str, nn.Linear]:
    """D's layer from features (B, F) to its score, with its parent and its name there. Raises ValueError."""
    layers = [(name, m) for name, m in d.named_modules() if isinstance(m, nn.Linear)]
    scores = [(name, m) for name, m in layers if m.out_features == 1 or name.endswith("dense")]
    if not scores:
        raise ValueError("this D does not end in a dense layer; choose another architecture")
    name, last = scores[-1]
    parent, _, own = name.rpartition(".")
    return d.get_submodule(parent), own, last


class WithMinibatch(nn.Module):
    """features (B, F) -> ``layer`` of the features and of what ``minibatch`` makes of them."""

    def __init__(self, minibatch: MinibatchFeatures, layer: nn.Linear) -> None:
        super().__init__()
        self.minibatch, self.layer = minibatch, layer

    def forward(self, features: Tensor) -> Tensor:
        extra = self.minibatch(features).to(features.dtype)
        return self.layer(torch.cat([features, extra], 1))  # type: ignore[no-any-return]


class MinibatchFeatures(StartsFromData):
    """f (B, F) -> o (B, kernels), of ``joint`` (B, 2 kernels); see ``MinibatchDiscrimination``.

    n_real: of a joint batch, the number of real samples, which come first; None: a batch of one kind, which
    stands for both halves.
    """

    def __init__(self, features: int, kernels: int, dims: int, form: Form) -> None:
        super().__init__()
        self.form, self.n_real = form, None
        self.needs = frozenset({"joint_batch" if form == "joint" else "whole_batch"})
        self.width = 2 * kernels if form == "joint" else kernels
        self.T = nn.Parameter(STD * torch.randn(features, kernels, dims))
        if form == "code":
            self.log_scale = nn.Parameter(torch.zeros(kernels, dims))
            self.offset = nn.Parameter(torch.full((kernels,), -1.0))

    def distances(self, f: Tensor) -> Tensor:
        """||M_ib - M_jb||_1 (B, N, kernels) of this rank's samples to those of all ranks."""
        weight: Tensor = self.T
        if self.form == "code":
            weight = weight * (self.log_scale.exp() / weight.square().sum(0).sqrt())
        own = torch.tensordot(f.to(weight.dtype), weight, 1)
        differences: Tensor = own[:, None] - stack_ranks(own).flatten(0, 1)
        return differences.abs().sum(3)

    def itself(self, n: int, device: torch.device) -> Tensor:
        """(B, N, 1): 1 where j is i."""
        team = collectives.current()
        own = torch.arange(n, device=device) + team.rank * n
        return (own[:, None] == torch.arange(n * team.size, device=device)).float()[:, :, None]

    def forward(self, f: Tensor) -> Tensor:
        with torch.autocast(f.device.type, enabled=False):
            c = torch.exp(-self.distances(f))
            if self.form == "paper":
                return c.sum(1)
            c = c * (1 - self.itself(len(f), f.device))
            if self.form == "code":
                return c.sum(1) + self.offset
            return torch.cat([self.over_half(c, True), self.over_half(c, False)], 1)

    def over_half(self, c: Tensor, real: bool) -> Tensor:
        """The sums (B, kernels) of c (B, N, kernels) over one half, divided by the number of its pairs."""
        n, total = c.shape[:2]
        size = n if self.n_real is None else self.n_real if real else n - self.n_real
        first = 0 if real or self.n_real is None else self.n_real
        ranks = c.view(n, total // n, n, -1)[:, :, first : first + size]
        return ranks.sum((1, 2)) / (size * total // n * (total - 1))

    def start(self, f: Tensor) -> None:
        """The data-dependent start of ``code``."""
        if self.form != "code" or len(f) < 2:
            return
        distances, itself = self.distances(f), self.itself(len(f), f.device)
        unit = 0.5 * (distances + 1e6 * itself).amin(1).mean(0)  # (kernels,)
        unit = torch.where(unit > 0, unit, torch.ones_like(unit))
        self.log_scale.sub_(unit.log()[:, None])
        self.offset.copy_(-(torch.exp(-distances / unit) * (1 - itself)).sum(1).mean(0))
