"""Operations after which the host waits for the device, noticed on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoHostReads(TorchDispatchMode):
    """Raises AssertionError at a read of a value (``.item()``, ``if tensor``) or a shape made of values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags
        if func is torch.ops.aten.index.Tensor:  # only by a mask
            reads = any(i is not None and i.dtype == torch.bool for i in args[1])
        assert not reads, f"{func} reads values on the host"
        return func(*args, **(kwargs or {}))
