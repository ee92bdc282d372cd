"""Batch norm over the batches of all ranks, so that they normalise as one process does with the whole batch.

torch's own SyncBatchNorm refuses CPUs and has no second derivative, which a gradient penalty wants.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ganlab.distributed import collectives

BatchNorm = nn.modules.batchnorm._BatchNorm


class _Sum(torch.autograd.Function):
    """The sum over the ranks. Its gradient is the sum of the ranks' gradients, so it may be derived twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        team = collectives.current()
        assert isinstance(team, collectives.Ranks)
        return team.sum_(x.detach().clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)


def total(x: Tensor) -> Tensor:
    """The sum over the ranks, differentiable any number of times."""
    return x if collectives.current().size == 1 else _Sum.apply(x)


def of_all(x: Tensor) -> Tensor:
    """(ranks, *shape): the ranks' tensors ``x``, exact and differentiable."""
    team = collectives.current()
    return total(torch.stack([x if i == team.rank else torch.zeros_like(x) for i in range(team.size)]))


class SyncBatchNorm(BatchNorm):
    """Stands in for ``norm`` with its parameters, buffers and names; the same function in evaluation mode.

    In training (x - mean) / sqrt(var + eps), scaled and shifted, with mean and biased variance over the
    batches of all ranks, which are of one size, and over space. One exchange of 2 C numbers a pass, and one
    of its gradient. Statistics are in float32 (float64 of float64), under autocast too.
    """

    def __init__(self, norm: BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False)
        self._parameters, self._buffers, self.affine = norm._parameters, norm._buffers, norm.affine
        self._non_persistent_buffers_set = norm._non_persistent_buffers_set
        self.training = norm.training
        self.after_activation = getattr(norm, "after_activation", False)

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected (B, C, ...), got {tuple(x.shape)}")

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """x (B, C, ...); y is not looked at."""
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._normalized(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).to(
                x.dtype
            )

    def _normalized(self, x: Tensor) -> Tensor:
        axes = [0, *range(2, x.dim())]
        own_var, own_mean = torch.var_mean(x, axes, correction=0)
        means, variances = of_all(torch.stack([own_mean, own_var])).unbind(1)
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)
        if self.running_mean is not None and self.running_var is not None:
            self._remember(mean.detach(), var.detach(), x.numel() // x.shape[1] * collectives.current().size)
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shape = (1, -1, *[1] * (x.dim() - 2))
        out = (x - mean.view(shape)) * scale.view(shape)
        return out if self.bias is None else out + self.bias.view(shape)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor, n: int) -> None:
        """The running averages take in a batch of ``n`` values a channel, the variance unbiased."""
        assert self.running_mean is not None
        assert self.running_var is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum  # type: ignore[arg-type]
        self.running_mean.mul_(1 - share).add_(mean, alpha=share)
        self.running_var.mul_(1 - share).add_(var, alpha=share * n / (n - 1))


def synchronize(net: nn.Module) -> None:
    """Put ``SyncBatchNorm`` in the place of each batch norm of ``net``; names and parameters stay."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BatchNorm):
                setattr(parent, name, SyncBatchNorm(child))


def running_averages(net: nn.Module) -> list[Tensor]:
    """The running means and variances of all batch norms of ``net``."""
    norms = (m for m in net.modules() if isinstance(m, BatchNorm))
    return [t for m in norms for t in (m.running_mean, m.running_var) if t is not None]
