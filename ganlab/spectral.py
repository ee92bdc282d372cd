"""The spectrally normalised weight, of one layer and of all layers of a net at once.

A plain loop spends three quarters of its kernel launches on the spectral norms of D, layer by layer. At once
the matrix-vector products remain, and everything else is one call for all layers; the numbers are the same up
to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ganlab.layers import as_matrix, out_dim, power_iteration


def rows(weight: Tensor, axis: int) -> Tensor:
    """A weight as (d_out, d_in * kernel), columns in the order of memory: channels last, kernel first.

    ``layers.as_matrix`` with other columns; a view of a convolution's weight that lies channels last.
    """
    weight = weight.movedim(axis, 0)
    return weight.permute(0, *range(2, weight.dim()), 1).reshape(weight.shape[0], -1)


def in_memory_order(v: Tensor, weight: Tensor, axis: int) -> Tensor:
    """``v`` (d_in * kernel,) of ``as_matrix`` as a (*kernel, d_in) view: flat, it goes with ``rows``."""
    shape = weight.movedim(axis, 0).shape[1:]
    return v.view(shape).permute(*range(1, len(shape)), 0)


def unit(vectors: Sequence[Tensor], eps: float) -> tuple[list[Tensor], list[Tensor]]:
    """(each vector over the larger of its L2 norm and ``eps``, the norms ())."""
    norms = torch._foreach_norm(list(vectors))
    units = torch._foreach_div(list(vectors), torch._foreach_clamp_min(norms, eps))
    return list(units), list(norms)


@torch.no_grad()
def power_iterations(
    matrices: Sequence[Tensor], us: Sequence[Tensor], iterations: int, eps: float
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """(u, v, sigma) of each matrix after ``iterations`` >= 1 from u; see ``layers.power_iteration``.

    sigma = u^T W v = |W v|, for u is W v over its norm.
    """
    us = list(us)
    vs: list[Tensor] = []  # a compiler stops at list[Tensor]()
    sigmas: list[Tensor] = []
    for _ in range(iterations):
        vs, _ = unit([m.T.mv(u) for m, u in zip(matrices, us, strict=True)], eps)
        us, sigmas = unit([m.mv(v) for m, v in zip(matrices, vs, strict=True)], eps)
    return us, vs, sigmas


class Normalize(torch.autograd.Function):
    """W * scale / sigma of several weights; sigma = u^T W v with u and v constants (SNGAN's equation 12).

    Arguments: the axes of d_out, ``scale``, then all weights, all u (d_out,), all v (d_in * kernel, in the
    columns' order of ``rows``), all sigma ().
    """

    @staticmethod
    def forward(axes: tuple[int, ...], scale: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        weights, _, _, sigmas = _quarters(tensors)
        factors = torch._foreach_reciprocal(sigmas)
        if scale != 1:
            torch._foreach_mul_(factors, scale)
        return tuple(torch._foreach_mul(weights, factors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.axes, ctx.scale, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # dW = scale / sigma * (g - <g, W> / sigma * u v^T)
        weights, us, vs, sigmas = _quarters(ctx.saved_tensors)
        g = [rows(t, axis) for t, axis in zip(gradients, ctx.axes, strict=True)]
        w = [rows(t, axis) for t, axis in zip(weights, ctx.axes, strict=True)]
        inner = [torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in zip(g, w, strict=True)]
        factors = torch._foreach_reciprocal(sigmas)
        torch._foreach_mul_(inner, factors)
        if ctx.scale != 1:
            torch._foreach_mul_(factors, ctx.scale)
        torch._foreach_mul_(inner, factors)
        found = torch._foreach_mul(g, factors)
        for matrix, scaled_u, v in zip(found, torch._foreach_mul(us, inner), vs, strict=True):
            matrix.addr_(scaled_u, v, alpha=-1)
        back = [_weight_of(m, t, axis) for m, t, axis in zip(found, weights, ctx.axes, strict=True)]
        return None, None, *back, *[None] * (3 * len(weights))


def _quarters(tensors: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
    n = len(tensors) // 4
    return tuple(list(tensors[i * n : (i + 1) * n]) for i in range(4))


def _weight_of(matrix: Tensor, weight: Tensor, axis: int) -> Tensor:
    """The inverse of ``rows``: a view of ``matrix`` of the shape of ``weight``."""
    moved = weight.movedim(axis, 0).shape
    back = matrix.view(moved[0], *moved[2:], moved[1]) if len(moved) > 1 else matrix.view(moved)
    return back.permute(0, -1, *range(1, back.dim() - 1)).movedim(0, axis)


class SpectralNormalized(nn.Module):
    """W / (sigma(W) / scale), sigma the largest singular value, tracked by power iteration or exact.

    W is the weight as a (d_out, d_in * kernel) matrix. Buffers: u (d_out,) and v (d_in * kernel,), unit L2
    norm, constants for the gradient: sigma = u^T W v, so dW follows SNGAN's equation 12. In training mode
    with ``per_forward`` every read of the weight renews them, else ``renew`` alone, here first; in evaluation
    mode nothing changes. While ``given`` is set, that is the normalised weight, and nothing is computed
    (``AtOnce``).
    """

    u: Tensor
    v: Tensor

    def __init__(
        self,
        weight: Tensor,
        iterations: int,
        axis: int,
        per_forward: bool,
        eps: float,
        scale: float,
        exact: bool = False,
        warmup: int = 0,
    ) -> None:
        super().__init__()
        self.iterations, self.axis, self.per_forward = iterations, axis, per_forward
        self.eps, self.scale, self.exact = eps, scale, exact
        self.given: Tensor | None = None
        matrix = as_matrix(weight.detach(), axis)
        u = F.normalize(matrix.new_empty(matrix.shape[0]).normal_(), dim=0, eps=eps)
        if warmup:
            u, _ = power_iteration(matrix, u, warmup, eps)
        self.register_buffer("u", u)
        self.register_buffer("v", F.normalize(matrix.T.mv(u), dim=0, eps=eps))
        if exact or not per_forward:
            self.renew(weight.detach())

    @torch.no_grad()
    def renew(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """One set of power iterations on ``weight``, or its SVD; stores and returns the new (u, v)."""
        matrix = as_matrix(weight, self.axis)
        if self.exact:
            left, _, right = torch.linalg.svd(matrix, full_matrices=False)
            u, v = left[:, 0], right[0]
        else:
            u, v = power_iteration(matrix, self.u, self.iterations, self.eps)
        self.u.copy_(u)
        self.v.copy_(v)
        return u, v

    def forward(self, weight: Tensor) -> Tensor:
        if self.given is not None:
            return self.given
        if self.training and self.per_forward:
            u, v = self.renew(weight)  # fresh tensors: the next pass may overwrite the buffers
        else:
            u, v = self.u, self.v
        with torch.autocast(weight.device.type, enabled=False):
            sigma = torch.dot(u, as_matrix(weight, self.axis).mv(v))
            return weight * (self.scale / sigma)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class AtOnce:
    """Hooks of D: before a pass in training its layers are normalised at once; after it that is forgotten.

    The numbers are those of ``SpectralNormalized`` up to rounding, for a tenth of the operations.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.lists: list[Any] = [layer.get_submodule("parametrizations.weight") for layer in layers]
        self.axes = tuple(out_dim(layer) for layer in layers)
        self.known: tuple[list[int], tuple[list[Tensor], ...]] | None = None  # versions, (us, vs, sigmas)

    def current(self) -> tuple[list[Tensor], ...]:
        """(us, vs, sigmas) of the weights as they stand, computed once for each new set of weights.

        Versions tell of most changes; whoever lets a fused optimiser step sets ``known`` to None.
        """
        if torch.compiler.is_compiling():  # versions are no part of what is compiled
            return self._renewed(None)
        if self.known is None or self.known[0] != self._versions():
            self.renew(None)
        assert self.known is not None
        return self.known[1]

    def renew(self, iterations: int | None) -> tuple[list[Tensor], ...]:
        """(us, vs, sigmas), after so many power iterations or (None) as they stand; vs in ``rows``' order."""
        found = self._renewed(iterations)
        self.known = self._versions(), found
        return found

    def _versions(self) -> list[int]:
        return [t._version for found in self.lists for t in (found.original, found[0].u, found[0].v)]

    def _renewed(self, iterations: int | None) -> tuple[list[Tensor], ...]:
        modules, axes = [found[0] for found in self.lists], self.axes
        weights = [found.original.detach() for found in self.lists]
        matrices = [rows(w, axis) for w, axis in zip(weights, axes, strict=True)]
        us = [m.u for m in modules]
        stored = [in_memory_order(m.v, w, axis) for m, w, axis in zip(modules, weights, axes, strict=True)]
        if iterations is None:
            vs = [v.reshape(-1) for v in stored]
            images = [m.mv(v) for m, v in zip(matrices, vs, strict=True)]
            return us, vs, [torch.dot(u, image) for u, image in zip(us, images, strict=True)]
        new_us, new_vs, sigmas = power_iterations(matrices, us, iterations, modules[0].eps)
        torch._foreach_copy_(us, new_us)
        torch._foreach_copy_(stored, [v.view(s.shape) for v, s in zip(new_vs, stored, strict=True)])
        return new_us, new_vs, sigmas

    def before(self, d: nn.Module, _: Any) -> None:
        if not d.training:
            return
        modules = [found[0] for found in self.lists]
        first = modules[0]
        with torch.autocast(first.u.device.type, enabled=False):
            with torch.no_grad():
                again = first.training and first.per_forward
                us, vs, sigmas = self.renew(first.iterations) if again else self.current()
            weights = [found.original for found in self.lists]
            normal = Normalize.apply(self.axes, first.scale, *weights, *us, *vs, *sigmas)
        for module, weight in zip(modules, normal, strict=True):
            module.given = weight

    def after(self, *_: Any) -> None:
        for found in self.lists:
            found[0].given = None
