"""One update as a list of operations, replayed on a CPU without autograd and the Python code around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LIMIT = 1 << 28  # bytes of all results; the updates of larger networks gain too little
HOST_READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
FACTORY = ("dtype", "layout", "device", "pin_memory")  # arguments that the out= forms lack


class Recording(TorchDispatchMode):
    """Runs ``work`` once and records its operations, backward passes included, below autograd.

    A replay calls the same kernels in the same order, so its numbers are those of ``work`` to the bit. Every
    result keeps its memory, as in a CUDA graph: a view is made only once, nothing is allocated again. Random
    numbers come from the default generator anew. obstacle: why it can't be replayed; "" if it can.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__()
        self.obstacle, self.room = "", LIMIT
        self.calls: list[Callable[[], object]] = []
        with self:
            work()

    def replay(self) -> None:
        """Run all operations again."""
        with torch.inference_mode():
            for call in self.calls:
                call()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not self.obstacle and func.namespace != "profiler":
            self._record(func, args, kwargs, out)
            if self.obstacle:
                self.calls.clear()
        return out

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        name = func.overloadpacket.__name__
        places = name == "index" and all(i is None or i.dtype == torch.int64 for i in args[1])
        if HOST_READS.intersection(func.tags) and not places:
            self.obstacle = f"{name} reads values on the host"
            return
        held = {_storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        results = [out] if isinstance(out, Tensor) else list(out or ())
        new = [t for t in results if isinstance(t, Tensor) and _storage(t) not in held]
        mutates = func._schema.is_mutable
        self.room -= sum(t.untyped_storage().nbytes() for t in new)
        if self.room < 0:
            self.obstacle = "its results need too much memory"
        elif mutates and not new:
            self.calls.append(partial(func._op, *args, **kwargs))
        elif new and not name.startswith(("empty", "new_empty")):
            into = None if mutates or len(new) < len(results) else out_form(func)
            if into is None:
                self.calls.append(partial(_again, func._op, args, kwargs, results, held))
                return
            form, names, without = into
            kept = {name: value for name, value in kwargs.items() if name not in without}
            outs = [results] if isinstance(out, list) else results
            self.calls.append(partial(form._op, *args, **kept, **dict(zip(names, outs, strict=True))))


@cache
def out_form(func: Any) -> tuple[Any, list[str], tuple[str, ...]] | None:
    """The form of an operation that writes into given results, their names, and the arguments it lacks."""
    wanted = [(a.name, str(a.type)) for a in func._schema.arguments]
    for overload in func.overloadpacket.overloads():
        form = getattr(func.overloadpacket, overload)
        names = [a.name for a in form._schema.arguments if a.is_out]
        takes = [(a.name, str(a.type)) for a in form._schema.arguments if not a.is_out]
        if len(names) != len(func._schema.returns):
            continue
        for without in ((), FACTORY):
            if takes == [a for a in wanted if a[0] not in without]:
                return form, names, without
    return None


def _again(op: Any, args: Any, kwargs: Any, results: list[Any], held: set[int]) -> None:
    """Call an operation that only returns new results, and copy them to where the first ones lie."""
    out = op(*args, **kwargs)
    for old, new in zip(results, [out] if isinstance(out, Tensor) else out, strict=True):
        if isinstance(old, Tensor) and _storage(old) not in held:
            old.copy_(new)


def _storage(t: Tensor) -> int:
    return int(t.untyped_storage()._cdata)
