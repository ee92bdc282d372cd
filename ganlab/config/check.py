"""Check a plain config tree against its classes' signatures: all mistakes at once, nothing built.

A node is a mapping with a ``_target_``, a class under ``TRUSTED``; its other keys are that class's arguments.
Nothing that a config names runs before its class is checked to be trusted. Independent of Hydra.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Generic, Literal, Union, get_args, get_origin

from ganlab.config.targets import arguments, is_node, is_optimizer, resolve, short
from ganlab.errors import EnvError, Mistake, nearest
from ganlab.schema import Arguments, Range, describe, fits

NO_KEY = "unknown key"
MAX_DEPTH = 40  # levels of a tree: far more than a real config needs
_MISSING = "???"  # OmegaConf's marker of a required value
_NOT_NEGATIVE = Range(ge=0, lt=float("inf"))
_OPTIMIZER = {  # torch.optim checks these only when it gets the parameters
    "lr": _NOT_NEGATIVE,
    "betas": Range(ge=0, lt=1),
    "eps": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "momentum": _NOT_NEGATIVE,
    "alpha": _NOT_NEGATIVE,
}


class _StandIn:
    """Passes ``isinstance`` for a class that is not built yet."""

    def __init__(self, cls: type) -> None:
        self._cls = cls

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return self._cls

    def __repr__(self) -> str:
        return self._cls.__name__


_UNKNOWN = object()  # stands for a node with mistakes of its own, so that they are reported once


def mistakes(tree: Any, *, also: Iterable[str] = ()) -> list[Mistake]:
    """All mistakes in a resolved tree: unknown or missing keys, types, ranges, untrusted targets.

    ``also``: further names (groups) for "did you mean". Imports the classes, builds nothing.
    """
    if _deep(tree):
        return [Mistake("config", f"nested more than {MAX_DEPTH} levels deep", "flatten it")]
    if not is_node(tree):
        return [Mistake("config", "has no _target_ at the top level", "start from configs/train.yaml")]
    return list(_Check(tree, also).node(tree, "")[0])


def _deep(value: Any, left: int = MAX_DEPTH) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left == 0 or any(_deep(v, left - 1) for v in inside)


class _Check:
    """Check one tree, with the list of all its keys for "did you mean"."""

    def __init__(self, tree: dict[str, Any], also: Iterable[str] = ()) -> None:
        self.tree, self.also = tree, list(also)

    @functools.cached_property
    def keys(self) -> list[str]:
        return [*dict.fromkeys([*self.also, *all_keys(self.tree)])]

    def node(self, node: dict[str, Any], where: str) -> tuple[list[Mistake], Any]:
        """Mistakes in a node and below it, and a stand-in for its object, to check the parent with."""
        partial = node.get("_partial_", False)
        try:
            cls = resolve(node["_target_"])
        except ValueError as error:
            return [Mistake(join(where, "_target_"), *split_fix(str(error)))], _UNKNOWN
        mistakes = []
        if not isinstance(partial, bool):
            mistakes.append(Mistake(join(where, "_partial_"), f"{short(partial)} is not true or false"))
        expected = arguments(cls, bool(partial))
        for key, value in node.items():
            if key in ("_target_", "_partial_"):
                continue
            if key in expected:
                mistakes += self.value(value, expected[key], join(where, key))[0]
                if cls.__module__.startswith("torch.optim") and key in _OPTIMIZER:
                    mistakes += _out_of_range(value, _OPTIMIZER[key], join(where, key))
                mistakes += self.arguments_of(value, expected[key][0], node, join(where, key))
            else:
                mistakes.append(self.unknown(cls, key, expected, where))
        if not partial and is_optimizer(cls):
            what = "must be true: an optimizer gets its parameters later"
            mistakes.append(Mistake(join(where, "_partial_"), what, f"set {join(where, '_partial_')}=true"))
        elif not partial:
            mistakes += [
                Mistake(join(where, n), f"missing (required by {cls.__name__})", f"set {join(where, n)}=...")
                for n, (_, default) in expected.items()
                if n not in node and default is inspect.Parameter.empty
            ]
        return mistakes, functools.partial(cls) if partial else _StandIn(cls)

    def arguments_of(self, value: Any, annotation: Any, node: dict[str, Any], where: str) -> list[Mistake]:
        """Mistakes in a mapping of arguments for another argument of ``node``; see ``Arguments``."""
        marks = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
        other: Any = next((node.get(mark.of) for mark in marks if isinstance(mark, Arguments)), None)
        if not is_node(other) or not isinstance(value, dict):
            return []
        if is_node(value):
            return [Mistake(where, f"{short(value)} is a class, not arguments", "omit its _target_")]
        mistakes, _ = self.node({**value, "_target_": other["_target_"], "_partial_": True}, where)
        return [m for m in mistakes if m.where != join(where, "_target_")]  # reported for the other argument

    def unknown(self, cls: type, key: Any, expected: Iterable[str], where: str) -> Mistake:
        key, names = str(key), list(expected)
        near = nearest(key, names)
        meant = join(where, near) if near else _elsewhere(key, self.keys, only_exact=bool(where))
        has = f"it has {', '.join(names)}" if names else "it has no options"
        long = "see 'ganlab train --help all' for the keys"
        fix = f"did you mean {meant!r}?" if meant else has if len(has) < 120 else long
        what = f"{cls.__module__}.{cls.__name__} has no {short(key)}" if where else NO_KEY
        return Mistake(join(where, key), what, fix)

    def value(self, value: Any, parameter: tuple[Any, Any], where: str) -> tuple[list[Mistake], Any]:
        """Mistakes in one argument, and its stand-in. ``parameter``: its annotation and default."""
        annotation, default = parameter
        if value == _MISSING:
            return [Mistake(where, "missing", f"set {where}=...")], _UNKNOWN
        mistakes, built = self.inside(value, annotation, where)
        fitting = built is _UNKNOWN or (fits(built, annotation) and _returns(built, annotation))
        if not mistakes and not fitting:
            mistakes = [Mistake(where, *self.misfit(value, built, annotation, default))]
        return mistakes, built

    def misfit(self, value: Any, built: Any, annotation: Any, default: Any) -> tuple[str, str]:
        """The problem and the fix for a value that does not fit its annotation."""
        what = f"{short(built)} is not {_describe(annotation)}"
        if (
            isinstance(value, dict)
            and not is_node(value)
            and not _plain(annotation)
            and not _allows(annotation, dict)
        ):
            return f"{short(value)} has no _target_", "choose one of the group's options"
        if is_node(value) and _allows(annotation, Callable) and not value.get("_partial_"):
            return what, "add _partial_: true"
        options = [a for a in _choices(annotation) if isinstance(a, str)]
        if isinstance(value, str) and (near := nearest(value, options)):
            return what, f"did you mean {near!r}?"
        usual = default if isinstance(default, (bool, int, float, str)) else None
        return what, f"the default is {usual}" if usual not in (None, "") else ""

    def inside(self, value: Any, annotation: Any, where: str) -> tuple[list[Mistake], Any]:
        """Mistakes below a value, and the value with nodes replaced by their stand-ins."""
        if is_node(value):
            return self.node(value, where)
        if not isinstance(value, (dict, list)):
            return [], value
        mistakes: list[Mistake] = []
        built: Any = {} if isinstance(value, dict) else []
        item_type = _items(annotation, type(value))
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            path = join(where, str(key))
            if item_type is None:
                below, stand_in = self.inside(item, None, path)
            else:
                below, stand_in = self.value(item, (item_type, None), path)
            mistakes += below
            if isinstance(built, dict):
                built[key] = stand_in
            else:
                built.append(stand_in)
        return mistakes, built


def _describe(annotation: Any) -> str:
    if inspect.isclass(annotation) and not _plain(annotation) and get_origin(annotation) is None:
        return f"a {annotation.__name__}"
    return describe(annotation).replace(" or Tensor", "").replace(" and < inf", "")


def _items(annotation: Any, kind: type) -> Any:
    """The annotation of the items in a mapping or list of objects, else None."""
    for option in alternatives(annotation):
        args = get_args(option)
        if get_origin(option) is kind and args and not _plain(args[-1]):
            (item,) = alternatives(args[-1])
            return item
    return None


def _plain(annotation: Any) -> bool:
    return all(
        o in (int, float, str, bool, Any, type(None)) or get_origin(o) for o in alternatives(annotation)
    )


def alternatives(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, without its markers."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [o for a in get_args(annotation) for o in alternatives(a)]
    origin = get_origin(annotation)
    generic = inspect.isclass(origin) and Generic in origin.__mro__  # Metric[Any] is Metric
    return [origin if generic else annotation]


def _choices(annotation: Any) -> list[Any]:
    return [a for o in alternatives(annotation) if get_origin(o) is Literal for a in get_args(o)]


def _allows(annotation: Any, kind: Any) -> bool:
    origin = get_origin(Callable[..., Any]) if kind is Callable else kind
    return any(o is Any or o is kind or get_origin(o) is origin for o in alternatives(annotation))


def _returns(built: Any, annotation: Any) -> bool:
    """Whether a partial node returns what ``Callable[..., X]`` requires."""
    results = [get_args(o)[-1] for o in alternatives(annotation) if _allows(o, Callable) and get_args(o)]
    if not isinstance(built, functools.partial) or not results:
        return True
    cls = built.func
    return any(not inspect.isclass(r) or (inspect.isclass(cls) and issubclass(cls, r)) for r in results)


def _out_of_range(value: Any, bounds: Range, where: str) -> Iterator[Mistake]:
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, (int, float)) and not bounds.holds(number):
            yield Mistake(where, f"{number} is not {_describe(Annotated[float, bounds])}")


def all_keys(tree: Any, where: str = "") -> Iterator[str]:
    """Every dotted key a tree may have: arguments of its nodes' classes, keys of mappings of nodes."""
    if not isinstance(tree, dict):
        return
    names: Iterable[str] = map(str, tree)
    if "_target_" in tree:
        try:
            names = arguments(resolve(tree["_target_"]), bool(tree.get("_partial_")))
        except (ValueError, EnvError):
            names = [n for n in names if n not in ("_target_", "_partial_")]
    for name in names:
        yield join(where, name)
        below = tree.get(name)
        if isinstance(below, dict) and (is_node(below) or any(map(is_node, below.values()))):
            yield from all_keys(below, join(where, name))


def _elsewhere(key: str, keys: Iterable[str], only_exact: bool = False) -> str | None:
    """The full key for one without its group: ``width`` or ``widht`` -> ``architecture.width``."""
    by_leaf: dict[str, str] = {}
    for dotted in sorted(keys, key=len, reverse=True):
        by_leaf[dotted.rpartition(".")[2]] = dotted
    leaf = key if key in by_leaf or only_exact else nearest(key, by_leaf)
    return by_leaf.get(leaf or "")


def join(*parts: str) -> str:
    return ".".join(p for p in parts if p)


def split_fix(text: str) -> tuple[str, str]:
    what, _, fix = text.partition("; ")
    return what, fix
