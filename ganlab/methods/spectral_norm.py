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

from ganlab.methods.weights import as_matrix, opaque_power_iteration, out_dim, power_iteration


def rows(weight: Tensor, axis: int) -> Tensor:
    """A weight as (d_out, d_in * kernel), columns in the order of memory: an image convolution's lie channels
    last, so kernel first.

    ``weights.as_matrix`` but for the columns' order; a view, but where not the first axis is d_out.
    """
    weight = weight.movedim(axis, 0)
    if weight.dim() == 4:
        weight = weight.permute(0, 2, 3, 1)
    return weight.reshape(weight.shape[0], -1)


class Vectors:
    """Where u (d_out,) and v (d_in * kernel,) of several weights lie in one vector: all u, then all v.

    segment: which of the 2 n vectors each entry belongs to; belongs: the same as (2 n, entries) of ones and
    zeros. stored: of each entry of the vectors as ``SpectralNormalized`` stores them (v in the order of
    ``as_matrix``) the place here (in that of ``rows``); here: the inverse. least: of each norm, (2 n,).
    """

    def __init__(self, weights: Sequence[Tensor], axes: Sequence[int], eps: float) -> None:
        moved = [w.movedim(axis, 0).shape for w, axis in zip(weights, axes, strict=True)]
        self.n = len(moved)
        self.sizes = [shape[0] for shape in moved] + [shape[1:].numel() for shape in moved]
        places, start = [torch.arange(sum(self.sizes[: self.n]))], sum(self.sizes[: self.n])
        for shape, size in zip(moved, self.sizes[self.n :], strict=True):
            place = torch.arange(start, start + size)
            places.append(
                place.view(*shape[2:], shape[1]).movedim(-1, 0).flatten() if len(shape) == 4 else place
            )
            start += size
        self.stored = torch.cat(places)
        self.here = self.stored.argsort()
        self.segment = torch.arange(2 * self.n).repeat_interleave(torch.tensor(self.sizes))
        least = torch.finfo(torch.float32).tiny
        self.least = torch.tensor([least] * self.n + [eps] * self.n)
        self.belongs = (self.segment == torch.arange(2 * self.n)[:, None]).float()

    def beside(self, vector: Tensor) -> Vectors:
        """Itself, on that one's device and in its precision."""
        if self.belongs.device != vector.device or self.belongs.dtype != vector.dtype:
            for name in ("stored", "here", "segment"):
                setattr(self, name, getattr(self, name).to(vector.device))
            self.least, self.belongs = self.least.to(vector), self.belongs.to(vector)
        return self

    def split(self, flat: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(every u, every v), views."""
        parts = flat.split(self.sizes)
        return parts[: self.n], parts[self.n :]


@torch.no_grad()
def power_iterations(
    matrices: Sequence[Tensor], us: Sequence[Tensor], iterations: int, at: Vectors
) -> tuple[Tensor, Tensor]:
    """(all u and v, 1 / sigma (n,)) after ``iterations`` >= 1 from ``us``; see ``weights.power_iteration``.

    With t = W^T u and s = W t it is v = t / |t|, u = s / |s| and sigma = u^T W v = |s| / |t|: all norms come
    from one product, and all vectors from one division.
    """
    for _ in range(iterations):
        raw = matrices[0].new_empty(len(at.segment))
        images, back = at.split(raw)
        for m, u, t in zip(matrices, us, back, strict=True):
            torch.mv(m.T, u, out=t)
        for m, t, s in zip(matrices, back, images, strict=True):
            torch.mv(m, t, out=s)
        norms = torch.maximum(at.belongs.mv(raw.square()).sqrt_(), at.least)
        flat = raw / norms[at.segment]
        us = at.split(flat)[0]
    return flat, norms[at.n :] / norms[: at.n]


class Normalize(torch.autograd.Function):
    """W * scale / sigma of several weights; sigma = u^T W v with u and v constants (SNGAN's equation 12).

    Arguments: the axes of d_out, ``scale``, where u and v lie in the next, all u and v, all 1 / sigma (n,);
    then all weights.
    """

    @staticmethod
    def forward(
        axes: tuple[int, ...], scale: float, at: Vectors, flat: Tensor, inverse: Tensor, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(torch._foreach_mul(weights, list(factors(inverse, scale).unbind())))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.axes, ctx.scale, ctx.at, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # dW = scale / sigma * (g - <g, W> / sigma * u v^T)
        flat, inverse, *weights = ctx.saved_tensors
        g = [rows(t, axis) for t, axis in zip(gradients, ctx.axes, strict=True)]
        w = [rows(t, axis) for t, axis in zip(weights, ctx.axes, strict=True)]
        inner = torch.stack([torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in zip(g, w, strict=True)])
        by = factors(inverse, ctx.scale)
        scaled = torch._foreach_mul(g, list(by.unbind()))
        subtract_outer(scaled, ctx.at, flat, inner * by * inverse)
        back = [weight_of(m, t, axis) for m, t, axis in zip(scaled, weights, ctx.axes, strict=True)]
        return *[None] * 5, *back


def factors(inverse: Tensor, scale: float) -> Tensor:
    """What the weights are multiplied by, (n,)."""
    return inverse if scale == 1 else inverse * scale


def subtract_outer(matrices: Sequence[Tensor], at: Vectors, flat: Tensor, factors: Tensor) -> None:
    """In place: of each matrix factor * u v^T, by the rank-one kernel."""
    n_u = sum(at.sizes[: at.n])
    scaled = (flat[:n_u] * factors[at.segment[:n_u]]).split(at.sizes[: at.n])
    for matrix, u, v in zip(matrices, scaled, at.split(flat)[1], strict=True):
        matrix.addr_(u, v, alpha=-1)


def weight_of(matrix: Tensor, weight: Tensor, axis: int) -> Tensor:
    """The inverse of ``rows``: a view of ``matrix`` of the shape of ``weight``."""
    shape = weight.movedim(axis, 0).shape
    if len(shape) == 4:
        return matrix.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1).movedim(0, axis)
    return matrix.view(shape).movedim(0, axis)


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
            u, v = opaque_power_iteration(matrix, self.u, self.iterations, self.eps)
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

    The numbers are those of ``SpectralNormalized`` up to rounding, for a tenth of the operations. A compiler
    gets the layers one by one. While it is ``elsewhere``, others give the layers their weights, and ``store``
    the vectors when they are done.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.lists: list[Any] = [layer.get_submodule("parametrizations.weight") for layer in layers]
        self.axes = tuple(out_dim(layer) for layer in layers)
        self.known: tuple[list[int], tuple[Tensor, Tensor]] | None = (
            None  # versions, (all u and v, 1 / sigma)
        )
        self.elsewhere = False
        self.unsaved: Tensor | None = None  # all u and v, newer than the layers'
        first = self.lists[0][0]
        self.scale = first.scale
        self._at = Vectors([layer.original for layer in self.lists], self.axes, first.eps)

    @property
    def at(self) -> Vectors:
        """Where the vectors lie."""
        return self._at.beside(self.lists[0][0].u)

    def current(self) -> tuple[Tensor, Tensor]:
        """(all u and v, 1 / sigma) of the weights as they stand, computed once for each new set of weights.

        Versions tell of most changes; whoever lets a fused optimiser step sets ``known`` to None.
        """
        if self.known is None or self.known[0] != self._versions():
            self.renew(None)
        assert self.known is not None
        return self.known[1]

    @torch.no_grad()
    def renew(self, iterations: int | None) -> tuple[Tensor, Tensor]:
        """(all u and v, 1 / sigma), after so many power iterations or (None) as they stand."""
        at, axes = self.at, self.axes
        matrices = [rows(layer.original.detach(), axis) for layer, axis in zip(self.lists, axes, strict=True)]
        if iterations is None:
            flat = torch.cat(self._stored())[at.here] if self.unsaved is None else self.unsaved
            parts = zip(matrices, *at.split(flat), strict=True)
            sigma = torch.stack([torch.dot(u, m.mv(v)) for m, u, v in parts])
            inverse = sigma.reciprocal()
        else:
            us = self._stored()[: at.n] if self.unsaved is None else [*at.split(self.unsaved)[0]]
            flat, inverse = power_iterations(matrices, us, iterations, at)
            self.unsaved = flat
            if not self.elsewhere:
                self.store()
        self.known = self._versions(), (flat, inverse)
        return flat, inverse

    @torch.no_grad()
    def store(self) -> None:
        """The newest vectors become the layers' buffers."""
        if self.unsaved is not None:
            torch._foreach_copy_(self._stored(), self.unsaved[self.at.stored].split(self.at.sizes))
            self.unsaved = self.known = None

    def _stored(self) -> list[Tensor]:
        modules = [layer[0] for layer in self.lists]
        return [*(m.u for m in modules), *(m.v for m in modules)]

    def _versions(self) -> list[int]:
        return [t._version for t in (*(layer.original for layer in self.lists), *self._stored())]

    def of_this_pass(self) -> tuple[Tensor, Tensor]:
        """(all u and v, 1 / sigma) for a pass that begins, renewed if it is one to renew them."""
        first = self.lists[0][0]
        with torch.autocast(first.u.device.type, enabled=False):
            return self.renew(first.iterations) if first.training and first.per_forward else self.current()

    def before(self, d: nn.Module, _: Any) -> None:
        if not d.training or torch.compiler.is_compiling() or self.elsewhere:
            return
        flat, inverse = self.of_this_pass()
        weights = [layer.original for layer in self.lists]
        normal = Normalize.apply(self.axes, self.scale, self.at, flat, inverse, *weights)
        for layer, weight in zip(self.lists, normal, strict=True):
            layer[0].given = weight

    def after(self, *_: Any) -> None:
        for layer in self.lists:
            layer[0].given = None
