"""Inside a process on the fake device: what its runtime has counted, and ganlab made to run there."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LIBRARY = ctypes.CDLL(None)  # the runtime is preloaded
for _name in ("fake_graph", "fake_complaints"):
    getattr(LIBRARY, _name).restype = ctypes.c_char_p
for _name in ("fake_graphs", "fake_used"):
    getattr(LIBRARY, _name).restype = ctypes.c_long


def graphs() -> int:
    """Graphs instantiated so far in this process."""
    return int(LIBRARY.fake_graphs())


def nodes() -> dict[str, int]:
    """Nodes of the last recorded graph by the kernel's name, most frequent first."""
    lines = LIBRARY.fake_graph().decode().splitlines()[1:]
    return {name: int(count) for count, _, name in (line.strip().partition("  ") for line in lines)}


def complaints() -> list[str]:
    """Since the last look: calls that a real device refuses, and launches that escaped a capture."""
    return LIBRARY.fake_complaints().decode().splitlines()


def used(device: int = 0) -> int:
    """Bytes that are allocated on a device now, as the runtime sees it: torch's reserved memory."""
    return int(LIBRARY.fake_used(device))


def limit(extra: int | None = None) -> None:
    """Leave a device no more memory than it uses now and ``extra`` bytes; None: 141 GB again."""
    memory(141.0 if extra is None else (used() + extra) / 1e9)


def memory(gigabytes: float) -> None:
    """Give each device this memory."""
    LIBRARY.fake_memory(ctypes.c_double(gigabytes))


def touched() -> list[int]:
    """The devices on which anything was ever launched or allocated."""
    return [n for n in range(16) if LIBRARY.fake_touched(n)]


def patch() -> None:
    """Give the few values that ganlab reads from the device on the host a meaning: none is computed here.

    All is finite and true; linear algebra sees the identity.
    """
    tensor_all = Tensor.all

    def finite(tensor: Tensor) -> Tensor:
        return torch.ones(tensor.shape, dtype=torch.bool).to(tensor.device)

    def everything(tensor: Tensor, *args: Any, **named: Any) -> Tensor:
        if tensor.is_cuda and not args and not named:
            return torch.ones((), dtype=torch.bool).to(tensor.device)
        return tensor_all(tensor, *args, **named)

    torch.isfinite = Tensor.isfinite = finite  # type: ignore[assignment,method-assign]
    Tensor.all = everything  # type: ignore[assignment,method-assign]
    for name in ("eigh", "eigvalsh", "svd", "svdvals", "matrix_norm", "qr"):
        setattr(torch.linalg, name, _of_identity(getattr(torch.linalg, name)))


def _of_identity(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(a: Tensor, *args: Any, **named: Any) -> Any:
        if not a.is_cuda:
            return function(a, *args, **named)
        eye = torch.eye(*a.shape[-2:], dtype=a.dtype).expand(a.shape) if a.dim() > 1 else a.cpu()
        result = function(eye, *args, **named)
        return result.to(a.device) if isinstance(result, Tensor) else tuple(t.to(a.device) for t in result)

    return wrapped
