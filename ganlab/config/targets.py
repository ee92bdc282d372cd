"""What a config's ``_target_`` may name: classes under ``TRUSTED``, and what each takes."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from ganlab.errors import EnvError, nearest
from ganlab.schema import parameters

TRUSTED = ("ganlab.", "torch.optim.")  # where a ``_target_`` may lie


def is_node(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def resolve(target: Any) -> type:
    """The class that a ``_target_`` names.

    Raises ValueError, "what; fix", for anything but a trusted class; EnvError where its imports fail.
    """
    allowed = "it must be a class under " + " or ".join(TRUSTED)
    parts = target.split(".") if isinstance(target, str) else []
    plain = all(p.isidentifier() and not p.startswith("_") for p in parts)
    if not plain or len(parts) < 2 or not target.startswith(TRUSTED):
        raise ValueError(f"{short(target)} is refused; {allowed}")
    path, name = ".".join(parts[:-1]), parts[-1]
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        if error.name is None or not (path + ".").startswith(error.name + "."):
            absent = isinstance(error, ModuleNotFoundError)
            fix = f"pip install {error.name}" if absent else "see 'ganlab doctor'"
            raise EnvError(target, f"can't be imported: {error}", fix) from error
        raise ValueError(f"there is no module {short(path)}; {allowed}") from error
    there = getattr(module, name, None)
    if not inspect.isclass(there):
        classes = [n for n, c in vars(module).items() if inspect.isclass(c) and _trusted(c)]
        near = nearest(name, classes)
        raise ValueError(f"{short(target)} is not a class; {f'did you mean {near!r}?' if near else allowed}")
    if not _trusted(there):
        raise ValueError(f"{short(target)} is {there.__module__}.{there.__qualname__}, refused; {allowed}")
    return there


def _trusted(found: type) -> bool:
    """The class itself must come from a trusted module: a module also holds what it imported."""
    if not (found.__module__ + ".").startswith(TRUSTED):
        return False
    return not found.__module__.startswith("torch.") or is_optimizer(found)


def is_optimizer(found: type) -> bool:
    """Torch's own, or one of ours: built by the engine, for each player's parameters."""
    from torch.optim import Optimizer

    return issubclass(found, Optimizer)


def arguments(found: type, partial: bool) -> dict[str, tuple[Any, Any]]:
    """Name -> (annotation, default) of what a node of this class may set."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    kinds = {n: p.kind for n, p in inspect.signature(found).parameters.items()}
    try:
        known = parameters(found)
    except NameError:  # torch may name types that it imports for type checkers alone
        known = {n: (Any, p.default) for n, p in inspect.signature(found).parameters.items()}
    wanted = {n: w for n, w in known.items() if kinds[n] in named}
    if partial and is_optimizer(found):
        wanted.pop("params", None)  # given by the engine
    return wanted


def short(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
