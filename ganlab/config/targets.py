"""Resolve a config's ``_target_``: classes under ``TRUSTED`` only, and their arguments."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from ganlab.errors import EnvError, nearest
from ganlab.schema import parameters

TRUSTED = ("ganlab.", "torch.optim.")  # packages whose classes a ``_target_`` may name


def is_node(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def resolve(target: Any) -> type:
    """The class that a ``_target_`` names.

    Raises ValueError ("what; fix") for anything but a trusted class, EnvError if its imports fail.
    """
    allowed = "it must be a class under " + " or ".join(TRUSTED)
    parts = target.split(".") if isinstance(target, str) else []
    plain = all(p.isidentifier() and not p.startswith("_") for p in parts)
    if not plain or len(parts) < 2 or not target.startswith(TRUSTED):
        raise ValueError(f"{short(target)} is not allowed; {allowed}")
    path, name = ".".join(parts[:-1]), parts[-1]
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        if error.name is None or not (path + ".").startswith(error.name + "."):
            missing = isinstance(error, ModuleNotFoundError)
            fix = f"pip install {error.name}" if missing else "see 'ganlab doctor'"
            raise EnvError(target, f"cannot be imported: {error}", fix) from error
        raise ValueError(f"there is no module {short(path)}; {allowed}") from error
    cls = getattr(module, name, None)
    if not inspect.isclass(cls):
        classes = [n for n, c in vars(module).items() if inspect.isclass(c) and _trusted(c)]
        near = nearest(name, classes)
        raise ValueError(f"{short(target)} is not a class; {f'did you mean {near!r}?' if near else allowed}")
    if not _trusted(cls):
        raise ValueError(f"{short(target)} is {cls.__module__}.{cls.__qualname__}, not allowed; {allowed}")
    return cls


def _trusted(cls: type) -> bool:
    """Whether the class is defined in a trusted module, rather than imported by one."""
    if not (cls.__module__ + ".").startswith(TRUSTED):
        return False
    return not cls.__module__.startswith("torch.") or is_optimizer(cls)


def is_optimizer(cls: type) -> bool:
    """Whether the class is a torch or ganlab optimizer, which is built later for each player's parameters."""
    from torch.optim import Optimizer

    return issubclass(cls, Optimizer)


def arguments(cls: type, partial: bool) -> dict[str, tuple[Any, Any]]:
    """Name -> (annotation, default) of what a node of this class may set."""
    keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    kinds = {n: p.kind for n, p in inspect.signature(cls).parameters.items()}
    try:
        signature = parameters(cls)
    except NameError:  # torch annotates with types imported for type checkers only
        signature = {n: (Any, p.default) for n, p in inspect.signature(cls).parameters.items()}
    allowed = {n: w for n, w in signature.items() if kinds[n] in keyword}
    if partial and is_optimizer(cls):
        allowed.pop("params", None)  # passed by the engine
    return allowed


def short(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
