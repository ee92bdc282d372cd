"""A run's state as named tensors and plain JSON, without pickle; the conversion is exact."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ganlab.errors import CheckpointError


def flatten(prefix: str, tree: Any) -> tuple[dict[str, Tensor], Any]:
    """Split a state_dict (or any nested structure) into named tensors and JSON, for ``Checkpoints.save``.

    Tensors are named ``prefix/key/...``; the JSON refers to them by name.
    """
    tensors: dict[str, Tensor] = {}

    def walk(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: walk(f"{name}/{k}", v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(walk(f"{name}/{i}", v) for i, v in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        if name in tensors:
            raise ValueError(f"two tensors would be named {name}")
        tensors[name] = value.detach()
        return {"__tensor__": name}

    return tensors, walk(prefix, tree)


def unflatten(tensors: Mapping[str, Tensor], tree: Any) -> Any:
    """The inverse of ``flatten``."""
    if isinstance(tree, list | tuple):
        return type(tree)(unflatten(tensors, v) for v in tree)
    if not isinstance(tree, Mapping):
        return tree
    if set(tree) != {"__tensor__"}:
        return {k: unflatten(tensors, v) for k, v in tree.items()}
    if tree["__tensor__"] not in tensors:
        raise CheckpointError("checkpoint", f"lacks tensor {tree['__tensor__']}")
    return tensors[tree["__tensor__"]]


def require_fit(saved: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Raise CheckpointError, naming the first difference, unless names, shapes and dtypes agree."""

    def describe(tensors: Mapping[str, Tensor], name: str) -> str:
        t = tensors.get(name)
        return "nothing" if t is None else f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}"

    names = [*expected, *(n for n in saved if n not in expected)]
    mismatched = [n for n in names if describe(saved, n) != describe(expected, n)]
    if mismatched:
        more = f" (and {len(mismatched) - 1} more)" if len(mismatched) > 1 else ""
        was, built = describe(saved, mismatched[0]), describe(expected, mismatched[0])
        what = f"tensor {mismatched[0]} is {was}, this config builds {built}{more}"
        raise CheckpointError(where, what, "use the config that the run was made with")


def digest(tensors: Mapping[str, Tensor], state: Any = None) -> str:
    """sha256 over sorted (name, dtype, shape, bytes) and the state: equal iff both are, bit for bit."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        t = on_cpu(tensors[name])
        total.update(repr((name, str(t.dtype), tuple(t.shape))).encode())
        total.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    total.update(json.dumps(pack(state), sort_keys=True).encode())
    return total.hexdigest()


def on_cpu(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a NaN or an infinity in it."""
    return next((k for k, t in tensors.items() if not _finite(t)), None)


def _finite(tensor: Tensor) -> bool:
    if tensor.is_floating_point() and tensor.numel():
        return all(bool(end.isfinite()) for end in tensor.aminmax())  # both are NaN where one element is
    return not tensor.is_complex() or bool(tensor.isfinite().all())


def pack(value: Any, where: str = "state") -> Any:
    """Strict JSON that ``unpack`` turns back into the same types: tuples, NaN, infinities, other keys."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"__float__": repr(float(value))}
    if isinstance(value, list | tuple):
        items = [pack(v, f"{where}[{i}]") for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"__tuple__": items}
    if isinstance(value, Mapping):
        plain = all(isinstance(k, str) and k not in ("__float__", "__tuple__", "__dict__") for k in value)
        packed = [[pack(k, where), pack(v, f"{where}.{k}")] for k, v in value.items()]
        return dict(packed) if plain else {"__dict__": packed}
    raise TypeError(f"{where}: a checkpoint can't hold {type(value).__name__}; use numbers, text or tensors")


def unpack(value: Any) -> Any:
    """The inverse of ``pack``, types included."""
    if isinstance(value, list):
        return [unpack(v) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        (kind, inner), *_ = value.items()
        if kind == "__float__":
            return float(inner)
        if kind == "__tuple__":
            return tuple(unpack(v) for v in inner)
        if kind == "__dict__":
            return {unpack(k): unpack(v) for k, v in inner}
    return {k: unpack(v) for k, v in value.items()}
