"""Restricted unpickler for dicts, lists, text, numbers and numpy arrays.

CIFAR's "python version" is such a pickle (Python 2, protocol 2). Globals outside the allow-list are refused,
so a file cannot run code; this is the only module that imports pickle.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from ganlab.errors import GanlabError


class RefusedError(ValueError):
    """The pickle references an object outside the allow-list."""


def unpickle(data: bytes) -> Any:
    """Load the object in ``data``; Python 2 strings become latin-1 text. Raises ValueError if invalid."""
    try:
        return _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except (RefusedError, GanlabError):  # the latter a signal's
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"not a valid pickle ({type(error).__name__}: {error})") from None


def _empty_array(_subtype: object, shape: tuple[int, ...], _dtype: object) -> np.ndarray[Any, Any]:
    """What numpy's ``_reconstruct`` makes before the array's state arrives; never more than nothing."""
    if shape != (0,):
        raise RefusedError(f"an array of shape {shape} without data")
    return np.empty(0, np.uint8)


def _dtype(name: str, *_: object) -> np.dtype[Any]:
    if str(name) not in ("u1", "i4", "i8", "b1", "f4", "f8"):
        raise RefusedError(f"an array of type {name!r}")
    return np.dtype(str(name), align=False, copy=True)  # a copy: the pickle sets its state


def _encode(text: str, codec: str) -> bytes:
    if codec != "latin1":
        raise RefusedError(f"codec {codec!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., Any] | str] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): "ndarray",  # an argument of _reconstruct, never called
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise RefusedError(f"it references {module}.{name}")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise RefusedError("it references an external object")
