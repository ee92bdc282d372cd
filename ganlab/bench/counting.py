"""Counting the work of an update without a clock: dispatched operations, and floating-point operations.

torch's dispatcher is watched, so a count is of what a function asks for, the same on every machine: of its
forward and its backward passes, on real tensors or on fake ones.
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
)  # they make room or look at it otherwise, and launch nothing; other views are told by their schemas


class Operations(TorchDispatchMode):
    """Inside ``with``: what is dispatched. It cannot see into compiled code or a replayed CUDA graph.

    counts: operations by name that are neither views nor allocations. On a GPU each is at least one kernel;
    a ``_foreach_`` or ``_fused_`` one counts once. flops: of matrix products and convolutions and their
    gradients, two for a multiply-add, by torch's own formulas: all but about a percent of an update.
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


def count(work: Callable[[], object]) -> Operations:
    """What ``work`` dispatches."""
    counted = Operations()
    with counted:
        work()
    return counted
