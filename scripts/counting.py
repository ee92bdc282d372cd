"""Count dispatched operations and floating-point operations (FLOPs) of an update.

Counts come from torch's dispatcher, so they are machine-independent, include the backward pass, and also work
on fake tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

NO_WORK = frozenset(
    {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "set_"}
    | {"resize_", "detach", "detach_", "alias", "lift_fresh", "_unsafe_view", "_reshape_alias"}
    | {"is_same_size", "is_pinned", "sym_size", "sym_stride", "sym_numel"}
)  # allocations and views, which launch no kernel; other views are recognized by their schemas


class Operations(TorchDispatchMode):
    """Context manager that counts dispatched operations, except in compiled code and replayed CUDA graphs.

    counts: operations by name, without views and allocations. On a GPU each is at least one kernel; a
    ``_foreach_`` or ``_fused_`` operation counts once. flops: of matrix products and convolutions and their
    gradients, with two per multiply-add, by torch's formulas; this covers about 99 % of an update.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.flops = 0
        self._formulas: dict[Any, Any] = FlopCounterMode(
            display=False
        ).flop_registry  # its hooks refuse `grad`

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if not func.is_view and name not in NO_WORK:
            self.counts[name] += 1
        out = func(*args, **kwargs)
        if (formula := self._formulas.get(func.overloadpacket)) is not None:
            self.flops += int(formula(*args, **kwargs, out_val=out))
        return out


def count(function: Callable[[], object]) -> Operations:
    """Count the operations that ``function`` dispatches."""
    operations = Operations()
    with operations:
        function()
    return operations
