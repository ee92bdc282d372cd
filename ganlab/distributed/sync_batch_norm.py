"""Batch norm over the batches of all ranks: the statistics of the global batch, as in a single process.

torch's own SyncBatchNorm does not run on CPUs and has no second derivative, which a gradient penalty needs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ganlab.distributed import collectives

BatchNorm = nn.modules.batchnorm._BatchNorm


class _Sum(torch.autograd.Function):
    """Sum over the ranks. Its gradient is the sum of the ranks' gradients, so it is twice differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return collectives.current().sum_(x.detach().clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient)


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum over the ranks, differentiable any number of times."""
    return x if collectives.current().size == 1 else _Sum.apply(x)


def stack_ranks(x: Tensor) -> Tensor:
    """The tensors ``x`` of all ranks, (ranks, *shape), exact and differentiable."""
    team = collectives.current()
    return sum_over_ranks(
        torch.stack([x if i == team.rank else torch.zeros_like(x) for i in range(team.size)])
    )


class SyncBatchNorm(BatchNorm):
    """Replaces ``norm``, sharing its parameters, buffers and names; the same function in evaluation mode.

    In training (x - mean) / sqrt(var + eps), scaled and shifted, with mean and biased variance over space and
    the batches of all ranks, which have one size. Each pass exchanges 2 C numbers, and so does its gradient.
    Statistics are float32 (float64 for float64 inputs), under autocast too.
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
        """x (B, C, ...); y is ignored."""
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._normalized(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).to(
                x.dtype
            )

    def _normalized(self, x: Tensor) -> Tensor:
        axes = [0, *range(2, x.dim())]
        own_var, own_mean = torch.var_mean(x, axes, correction=0)
        means, variances = stack_ranks(torch.stack([own_mean, own_var])).unbind(1)
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)
        if self.running_mean is not None and self.running_var is not None:
            self._update_running_stats(
                mean.detach(), var.detach(), x.numel() // x.shape[1] * collectives.current().size
            )
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shape = (1, -1, *[1] * (x.dim() - 2))
        out = (x - mean.view(shape)) * scale.view(shape)
        return out if self.bias is None else out + self.bias.view(shape)

    @torch.no_grad()
    def _update_running_stats(self, mean: Tensor, var: Tensor, n: int) -> None:
        """Update the running averages by a batch of ``n`` values per channel; the variance is unbiased."""
        assert self.running_mean is not None
        assert self.running_var is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum  # type: ignore[arg-type]
        self.running_mean.mul_(1 - factor).add_(mean, alpha=factor)
        self.running_var.mul_(1 - factor).add_(var, alpha=factor * n / (n - 1))


def synchronize(net: nn.Module) -> None:
    """Replace each batch norm of ``net`` by ``SyncBatchNorm``; names and parameters stay."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BatchNorm):
                setattr(parent, name, SyncBatchNorm(child))


def running_averages(net: nn.Module) -> list[Tensor]:
    """The running means and variances of all batch norms of ``net``."""
    norms = (m for m in net.modules() if isinstance(m, BatchNorm))
    return [t for m in norms for t in (m.running_mean, m.running_var) if t is not None]
