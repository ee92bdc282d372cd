"""A constructor's signature is the schema: plain types, ``Literal`` choices and ``Range`` bounds.

``Annotated[float, Range(gt=0)]`` in a signature is checked by the same code in two places:
``@checked``, when a class is built from Python, and ``config/check.py``, before anything is built from YAML.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from ganlab.errors import Mistake

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Range:
    """Bounds of a number: ``ge`` <= value <= ``le``, ``gt`` < value < ``lt``; NaN is always outside."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def holds(self, value: float) -> bool:
        return not (
            math.isnan(value)
            or (self.ge is not None and value < self.ge)
            or (self.gt is not None and value <= self.gt)
            or (self.le is not None and value > self.le)
            or (self.lt is not None and value >= self.lt)
        )

    def __str__(self) -> str:
        signs = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in signs if bound is not None)


@dataclass(frozen=True)
class Arguments:
    """Marks a mapping whose items are arguments of the node that is the argument ``of``."""

    of: str


Positive = Annotated[float, Range(gt=0, lt=math.inf)]
NonNegative = Annotated[float, Range(ge=0, lt=math.inf)]
MAX_COUNT = 1_000_000_000  # limit of every count: beyond practical use, and far from overflow
Count = Annotated[int, Range(ge=1, le=MAX_COUNT)]
Quantize = Literal["round", "truncate", "bins"]  # see ``metrics.protocol``
Steps = Annotated[int, Range(ge=0, le=MAX_COUNT)]
Seed = Annotated[int, Range(ge=0, lt=2**63)]
Threads = Annotated[int, Range(ge=1, le=1024)]  # OpenMP crashes the process if it can't start them
Unit = Annotated[float, Range(ge=0, lt=1)]


def describe(annotation: Any) -> str:
    """A type in words: "a number > 0", "one of 'a', 'b'", "an integer or null"."""
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *marks = get_args(annotation)
        return " ".join([describe(base), *[str(m) for m in marks if isinstance(m, Range)]])
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in get_args(annotation))
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    if origin in (list, tuple):
        items = [a for a in get_args(annotation) if a is not Ellipsis]
        if origin is tuple and Ellipsis not in get_args(annotation):
            return f"a list of {len(items)}: " + ", ".join(describe(a) for a in items)
        return f"a list, each {describe(items[0])}" if items else "a list"
    if origin is dict or annotation is dict:
        return "a mapping"
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value matches a type and its bounds; an int is also a float."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is Any or isinstance(annotation, TypeVar):
        return True
    if origin is Annotated:
        if not fits(value, args[0]):
            return False
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return all(mark.holds(value) for mark in args[1:] if isinstance(mark, Range) and number)
    if origin in (Union, types.UnionType):
        return any(fits(value, a) for a in args)
    if origin is Literal:
        return any(value == a and type(value) is type(a) for a in args)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (str, bool):
        return isinstance(value, annotation)
    if annotation is None or annotation is type(None):
        return value is None
    if origin in (list, tuple) and isinstance(value, (list, tuple)):
        if origin is tuple and Ellipsis not in args:
            return len(value) == len(args) and all(map(fits, value, args))
        return all(fits(v, args[0]) for v in value) if args else True
    if origin is dict:
        return isinstance(value, dict) and all(
            fits(k, args[0]) and fits(v, args[1]) for k, v in value.items()
        )
    if origin is not None:  # Callable[...] and other generics: not checkable by value
        return isinstance(value, origin) if inspect.isclass(origin) else True
    return isinstance(value, annotation) if inspect.isclass(annotation) else True


@functools.cache
def parameters(target: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Name -> (annotation with its marks, default or ``inspect.Parameter.empty``) of a callable."""
    function = target.__init__ if inspect.isclass(target) else target
    hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    signature = inspect.signature(target)
    return {n: (hints.get(n, Any), p.default) for n, p in signature.parameters.items() if n != "self"}


def value_mistakes(target: Callable[..., Any], values: dict[str, Any]) -> Iterator[Mistake]:
    """One mistake per value that does not match ``target``'s signature; unknown names are ignored."""
    annotations = parameters(target)
    for name, value in values.items():
        if name in annotations and not fits(value, annotations[name][0]):
            yield Mistake(name, f"{value!r} is not {describe(annotations[name][0])}")


def checked(function: F) -> F:
    """Decorate a constructor to raise ValueError, with all invalid values at once, before it runs."""

    @functools.wraps(function)
    def inner(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(function).bind(self, *args, **kwargs).arguments
        values = {k: v for k, v in list(bound.items())[1:]}
        if mistakes := list(value_mistakes(type(self), values)):
            raise ValueError("; ".join(str(m) for m in mistakes))
        function(self, *args, **kwargs)

    return typing.cast(F, inner)
