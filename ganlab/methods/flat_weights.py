"""A net's weights of a pass made all at once, from one vector that holds them all.

On a GPU an update is thousands of small kernels, and with weights of their own tensors each cast to bfloat16,
each division by a spectral norm and each sum of gradients is a kernel for each layer and pass. Here the
parameters are views of one vector: a pass's weights are one or two operations, and so are their gradients.
The numbers are those of the plain way up to rounding, which everything outside of updates still goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ganlab.methods.spectral_norm import AtOnce, Vectors, factors, rows, subtract_outer, weight_of
from ganlab.methods.weights import weighted_layers

CHUNK = 64  # values; a parameter begins with a chunk of its own, so that a chunk has one factor
BATCH_NORM = nn.modules.batchnorm._BatchNorm


class Slot(NamedTuple):
    """A parameter in the vector: its first value, the axis of d_out, where it goes in a pass (a table and
    the key in it), and whether a pass in bfloat16 takes it in that."""

    parameter: nn.Parameter
    start: int
    axis: int
    table: dict[str, Any]
    key: str
    low: bool

    def of(self, flat: Tensor) -> Tensor:
        """Its values in such a vector, a view in its shape."""
        at = self.parameter
        n = at.shape[self.axis] if at.dim() > 1 else 1
        values = flat.view(-1)[self.start : self.start + at.numel()].view(n, -1)
        return weight_of(values, at, self.axis) if at.dim() > 1 else values.view(-1)

    def line(self, tensor: Tensor) -> Tensor:
        """A tensor of its shape as it lies in the vector, (numel,)."""
        return rows(tensor, self.axis).reshape(-1) if tensor.dim() > 1 else tensor


class FlatWeights:
    """The parameters of ``net`` that passes cast or normalise, and hooks that give them to a pass.

    In order: what is only cast (with ``bf16``: weights and biases of convolutions and linear layers that no
    parametrisation touches), then what ``at_once`` normalises, bfloat16 first. Gradients are asked by
    ``leaf``, (chunks, CHUNK); optimisers know the parameters. Between ``begin`` and ``end``, that is in an
    update, passes in training mode take their weights from here; ``moved``: the parameters have others.
    """

    def __init__(self, net: nn.Module, at_once: AtOnce | None, bf16: bool) -> None:
        self.net, self.at_once, self.on = net, at_once, False
        plain: list[tuple[nn.Parameter, int, dict[str, Any], str, bool]] = []
        layers = [layer for _, layer in weighted_layers(net)]
        for layer in layers if bf16 else ():
            if not isinstance(layer, nn.Embedding):
                own = layer._parameters
                plain += [(p, 0, own, name, True) for name, p in own.items() if p is not None]
        n_plain = len(plain)
        normal = []
        for parametrizations, axis in zip(at_once.lists, at_once.axes, strict=True) if at_once else ():
            low = bf16 and len(parametrizations) == 1 and not _embeds(layers, parametrizations)
            normal.append((parametrizations.original, axis, vars(parametrizations[0]), "given", low))
        order = sorted(range(len(normal)), key=lambda i: not normal[i][-1])
        self.places = [order.index(i) for i in range(len(order))]  # of at_once's weights among the normalised
        self.slots: list[Slot] = []
        chunks = 0
        owner: list[int] = []  # of each chunk: which normalised weight
        for i, (p, axis, table, key, low) in enumerate([*plain, *(normal[i] for i in order)]):
            self.slots.append(Slot(p, chunks * CHUNK, axis, table, key, low))
            n = -(-p.numel() // CHUNK)
            chunks += n
            owner += [order[i - n_plain]] * n if i >= n_plain else []
        self.plain, self.normal = self.slots[:n_plain], self.slots[n_plain:]
        self.first = self.normal[0].start // CHUNK if self.normal else chunks  # chunk of a normalised weight
        self.high = next((s.start // CHUNK for s in self.normal if not s.low), chunks)
        self.gaps = any(s.parameter.numel() % CHUNK for s in self.normal)  # zeros between them
        device = next(net.parameters()).device
        self.leaf = torch.zeros(chunks, CHUNK, device=device)
        for slot in self.slots:
            view = slot.of(self.leaf)
            view.copy_(slot.parameter.detach())
            slot.parameter.data = view
        self.leaf.requires_grad_(True)
        self.owner = torch.tensor(owner, device=device)
        self.belongs = (self.owner == torch.arange(len(normal), device=device)[:, None]).float()
        self.made: dict[Any, Any] = {}  # what was made of the weights as they stand
        norms = [m for m in net.modules() if isinstance(m, BATCH_NORM) and m.track_running_stats]
        self.batch_norms = [m for m in norms if m.momentum is not None]  # else they read their count
        self.counts: list[Any] = [m.num_batches_tracked for m in self.batch_norms]
        net.register_forward_pre_hook(self.before)
        net.register_forward_hook(self.after, always_call=True)

    def begin(self) -> None:
        """An update begins. Raises RuntimeError if somebody put a parameter elsewhere."""
        at = self.leaf.data_ptr()
        if any(s.parameter.data_ptr() != at + s.start * self.leaf.element_size() for s in self.slots):
            raise RuntimeError("a parameter does not lie where its net's weights do")
        self._turn(True)

    def end(self) -> None:
        """It is over: passes go the plain way again."""
        self._turn(False)

    def _turn(self, on: bool) -> None:
        self.on = on
        self.moved()
        if self.at_once is not None:
            self.at_once.elsewhere = on
            self.at_once.store()

    def moved(self) -> None:
        self.made = {}

    def before(self, net: nn.Module, _: Any) -> None:
        if not self.on or torch.compiler.is_compiling() or not net.training:
            return
        low = torch.is_autocast_enabled(self.leaf.device.type)
        slots = self.slots if low else self.normal
        if slots:
            flat = inverse = at = None
            if self.at_once is not None:
                flat, inverse = self.at_once.of_this_pass()
                at = self.at_once.at
            trained = any(s.parameter.requires_grad for s in slots)
            leaf = self.leaf if trained else self.leaf.detach()
            for slot, value in zip(slots, _Pass.apply(leaf, self, low, at, flat, inverse), strict=True):
                slot.table[slot.key] = value
        if self.counts:
            torch._foreach_add_(self.counts, 1)
            for norm in self.batch_norms:
                norm._buffers["num_batches_tracked"] = None

    def after(self, *_: Any) -> None:
        if not self.on:
            return
        for slot in self.slots:
            slot.table[slot.key] = None if slot.key == "given" else slot.parameter
        for norm, count in zip(self.batch_norms, self.counts, strict=True):
            norm._buffers["num_batches_tracked"] = count

    def plain_values(self) -> list[Tensor]:
        """What is only cast, of the weights as they stand."""
        if "plain" not in self.made:
            self.made["plain"] = self.leaf.detach()[: self.first].bfloat16()
        return [s.of(self.made["plain"]) for s in self.plain]

    def normal_values(self, low: bool, inverse: Tensor) -> tuple[list[Tensor], Tensor]:
        """What is divided by its spectral norm, and the factor of each of its chunks (chunks, 1)."""
        assert self.at_once is not None
        leaf, first, edge = self.leaf.detach(), self.first, self.high if low else len(self.leaf)
        if self.made.get(low, (None,))[0] is not inverse:  # known already where a pass does not renew them
            by = factors(inverse, self.at_once.scale)[self.owner].unsqueeze(1)
            whole = torch.empty_like(leaf, dtype=torch.bfloat16 if low else leaf.dtype)
            torch.mul(leaf[first:edge], by[: edge - first], out=whole[first:edge])
            rest = whole
            if edge < len(leaf):
                rest = torch.empty_like(leaf)
                torch.mul(leaf[edge:], by[edge - first :], out=rest[edge:])
            self.made[low] = inverse, whole, rest, by
        _, whole, rest, by = self.made[low]
        return [s.of(whole if s.low else rest) for s in self.normal], by

    def shared_out(
        self, parameters: Sequence[nn.Parameter], direct: Sequence[Tensor | None], of_leaf: Tensor | None
    ) -> list[Tensor | None]:
        """Each parameter's gradient: its part of that of ``leaf``, and what reached the parameter itself."""
        if of_leaf is None:
            return list(direct)
        slots = {s.parameter: s for s in self.slots}
        both = [
            (slots[p], g) for p, g in zip(parameters, direct, strict=True) if g is not None and p in slots
        ]
        if both:
            torch._foreach_add_([s.line(s.of(of_leaf)) for s, _ in both], [s.line(g) for s, g in both])
        return [slots[p].of(of_leaf) if p in slots else g for p, g in zip(parameters, direct, strict=True)]


class _Pass(torch.autograd.Function):
    """The weights of a pass from the vector of all; see ``spectral_norm.Normalize`` for normalized ones."""

    @staticmethod
    def forward(
        ctx: Any, leaf: Tensor, net: FlatWeights, low: bool, at: Vectors | None, flat: Any, inverse: Any
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.net, ctx.low, ctx.at = net, low, at
        values = net.plain_values() if low else []
        if inverse is not None:
            normal, ctx.by = net.normal_values(low, inverse)
            values += normal
        ctx.save_for_backward(leaf, flat, inverse)
        return tuple(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        net: FlatWeights = ctx.net
        leaf, flat, inverse = ctx.saved_tensors
        slots = net.slots if ctx.low else net.normal
        pairs = [(s, g) for s, g in zip(slots, gradients, strict=True) if g is not None]
        filled = len(pairs) == len(net.slots) and not net.gaps
        total = torch.empty_like(leaf) if filled else torch.zeros_like(leaf)
        for dtype in {g.dtype for _, g in pairs}:  # multi-tensor kernels know one at a time
            some = [(s, g) for s, g in pairs if g.dtype == dtype]
            torch._foreach_copy_([s.line(s.of(total)) for s, _ in some], [s.line(g) for s, g in some])
        if inverse is not None:
            # dW = factor * (g - <g, W> / sigma * u v^T)
            first = net.first
            inner = net.belongs.mv((total[first:] * leaf[first:]).sum(1))
            matrices = [rows(net.normal[i].of(total), net.normal[i].axis) for i in net.places]
            subtract_outer(matrices, ctx.at, flat, inner * inverse)
            total[first:].mul_(ctx.by)
        return total, *[None] * 5


def _embeds(layers: Sequence[nn.Module], parametrizations: nn.Module) -> bool:
    return any(isinstance(m, nn.Embedding) and parametrizations in m.modules() for m in layers)
