"""A plain config tree against its classes' signatures: every mistake at once, nothing built.

A node is a mapping with a ``_target_``, a class under ``TRUSTED``; its other keys are that class's arguments.
Nothing that a config names runs before its class is known to be trusted. Knows nothing of Hydra.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ganlab.config.targets import arguments, is_node, is_optimizer, resolve, short
from ganlab.errors import EnvError, Mistake, nearest
from ganlab.schema import Arguments, Range, describe, fits

NO_KEY = "there is no such key"
DEPTH = 40  # of a tree: far more than any honest config has
_MISSING = "???"  # OmegaConf's mark of a value that must be given
_NOT_NEGATIVE = Range(ge=0, lt=float("inf"))
_OPTIMIZER = {  # what torch.optim checks only when the optimiser is called with parameters
    "lr": _NOT_NEGATIVE,
    "betas": Range(ge=0, lt=1),
    "eps": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "momentum": _NOT_NEGATIVE,
    "alpha": _NOT_NEGATIVE,
}


class _StandIn:
    """Passes ``isinstance`` for a class that is not built yet."""

    def __init__(self, stands_for: type) -> None:
        self._stands_for = stands_for

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return self._stands_for

    def __repr__(self) -> str:
        return self._stands_for.__name__


_UNKNOWN = object()  # a node that has mistakes of its own: no second complaint about it


def mistakes(tree: Any, *, also: Iterable[str] = ()) -> list[Mistake]:
    """Everything wrong with a resolved tree: unknown keys, types, ranges, missing keys, refused targets.

    ``also``: further names that a misspelt key may have meant (groups). Imports the classes, builds nothing.
    """
    if _deep(tree):
        return [Mistake("config", f"nested more than {DEPTH} levels deep", "flatten it")]
    if not is_node(tree):
        return [Mistake("config", "has no _target_ at its root", "start from configs/train.yaml")]
    return list(_Check(tree, also).node(tree, "")[0])


def _deep(value: Any, left: int = DEPTH) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left == 0 or any(_deep(v, left - 1) for v in inside)


class _Check:
    """One pass over a tree, with the list of all its keys for "did you mean"."""

    def __init__(self, tree: dict[str, Any], also: Iterable[str] = ()) -> None:
        self.tree, self.also = tree, list(also)

    @functools.cached_property
    def keys(self) -> list[str]:
        return [*dict.fromkeys([*self.also, *all_keys(self.tree)])]

    def node(self, node: dict[str, Any], where: str) -> tuple[list[Mistake], Any]:
        """Mistakes of a node and of all below it, and what stands for it in its parent's eyes."""
        partial = node.get("_partial_", False)
        try:
            found = resolve(node["_target_"])
        except ValueError as error:
            return [Mistake(join(where, "_target_"), *split_fix(str(error)))], _UNKNOWN
        wrong = []
        if not isinstance(partial, bool):
            wrong.append(Mistake(join(where, "_partial_"), f"{short(partial)} is not true or false"))
        wanted = arguments(found, bool(partial))
        for key, value in node.items():
            if key in ("_target_", "_partial_"):
                continue
            if key in wanted:
                wrong += self.value(value, wanted[key], join(where, key))[0]
                if found.__module__.startswith("torch.optim") and key in _OPTIMIZER:
                    wrong += _out_of_range(value, _OPTIMIZER[key], join(where, key))
                wrong += self.arguments_of(value, wanted[key][0], node, join(where, key))
            else:
                wrong.append(self.unknown(found, key, wanted, where))
        if not partial and is_optimizer(found):
            what = "is not true, and an optimiser gets its parameters later"
            wrong.append(Mistake(join(where, "_partial_"), what, f"set {join(where, '_partial_')}=true"))
        elif not partial:
            wrong += [
                Mistake(join(where, n), f"missing: {found.__name__} needs it", f"set {join(where, n)}=...")
                for n, (_, default) in wanted.items()
                if n not in node and default is inspect.Parameter.empty
            ]
        return wrong, functools.partial(found) if partial else _StandIn(found)

    def arguments_of(self, given: Any, wanted: Any, node: dict[str, Any], where: str) -> list[Mistake]:
        """Mistakes of a mapping that holds arguments of another argument of ``node``; see ``Arguments``."""
        marks = get_args(wanted)[1:] if get_origin(wanted) is Annotated else ()
        other: Any = next((node.get(mark.of) for mark in marks if isinstance(mark, Arguments)), None)
        if not is_node(other) or not isinstance(given, dict):
            return []
        if is_node(given):
            return [Mistake(where, f"{short(given)} is a class, not arguments", "leave out its _target_")]
        found, _ = self.node({**given, "_target_": other["_target_"], "_partial_": True}, where)
        return [m for m in found if m.where != join(where, "_target_")]  # the other's own mistake

    def unknown(self, found: type, key: Any, wanted: Iterable[str], where: str) -> Mistake:
        key, names = str(key), list(wanted)
        near = nearest(key, names)
        meant = join(where, near) if near else _elsewhere(key, self.keys, only_exact=bool(where))
        has = f"it has {', '.join(names)}" if names else "it has no options"
        long = "see 'ganlab train --help' for the keys"
        fix = f"did you mean {meant!r}?" if meant else has if len(has) < 120 else long
        what = f"{found.__module__}.{found.__name__} has no {short(key)}" if where else NO_KEY
        return Mistake(join(where, key), what, fix)

    def value(self, value: Any, given: tuple[Any, Any], where: str) -> tuple[list[Mistake], Any]:
        """Mistakes of one argument, and what stands for it. ``given``: its annotation and default."""
        wanted, default = given
        if value == _MISSING:
            return [Mistake(where, "missing", f"set {where}=...")], _UNKNOWN
        wrong, seen = self.inside(value, wanted, where)
        if not wrong and seen is not _UNKNOWN and not (fits(seen, wanted) and _returns(seen, wanted)):
            wrong = [Mistake(where, *self.misfit(value, seen, wanted, default))]
        return wrong, seen

    def misfit(self, value: Any, seen: Any, wanted: Any, default: Any) -> tuple[str, str]:
        """What is wrong with a value that does not fit its annotation, and the fix."""
        what = f"{short(seen)} is not {_words(wanted)}"
        if (
            isinstance(value, dict)
            and not is_node(value)
            and not _plain(wanted)
            and not _allows(wanted, dict)
        ):
            return f"{short(value)} has no _target_", "choose one of the group's options"
        if is_node(value) and _allows(wanted, Callable) and not value.get("_partial_"):
            return what, "add _partial_: true"
        options = [a for a in _choices(wanted) if isinstance(a, str)]
        if isinstance(value, str) and (near := nearest(value, options)):
            return what, f"did you mean {near!r}?"
        usual = default if isinstance(default, (bool, int, float, str)) else None
        return what, f"the default is {usual}" if usual not in (None, "") else ""

    def inside(self, value: Any, wanted: Any, where: str) -> tuple[list[Mistake], Any]:
        """The value with nodes replaced by what stands for them, and the mistakes found on the way."""
        if is_node(value):
            return self.node(value, where)
        if not isinstance(value, (dict, list)):
            return [], value
        wrong: list[Mistake] = []
        seen: Any = {} if isinstance(value, dict) else []
        below = _items(wanted, type(value))
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            here = join(where, str(key))
            if below is None:
                mine, stand = self.inside(item, None, here)
            else:
                mine, stand = self.value(item, (below, None), here)
            wrong += mine
            if isinstance(seen, dict):
                seen[key] = stand
            else:
                seen.append(stand)
        return wrong, seen


def _words(wanted: Any) -> str:
    if inspect.isclass(wanted) and not _plain(wanted) and get_origin(wanted) is None:
        return f"a {wanted.__name__}"
    return describe(wanted).replace(" or Tensor", "").replace(" and < inf", "")


def _items(wanted: Any, kind: type) -> Any:
    """The annotation of what lies inside a mapping or list that holds objects, else None."""
    for option in alternatives(wanted):
        args = get_args(option)
        if get_origin(option) is kind and args and not _plain(args[-1]):
            return args[-1]
    return None


def _plain(wanted: Any) -> bool:
    return all(o in (int, float, str, bool, Any, type(None)) or get_origin(o) for o in alternatives(wanted))


def alternatives(wanted: Any) -> list[Any]:
    """An annotation as its alternatives, marks taken off."""
    if get_origin(wanted) is Annotated:
        return alternatives(get_args(wanted)[0])
    if get_origin(wanted) in (Union, types.UnionType):
        return [o for a in get_args(wanted) for o in alternatives(a)]
    return [wanted]


def _choices(wanted: Any) -> list[Any]:
    return [a for o in alternatives(wanted) if get_origin(o) is Literal for a in get_args(o)]


def _allows(wanted: Any, kind: Any) -> bool:
    origin = get_origin(Callable[..., Any]) if kind is Callable else kind
    return any(o is Any or o is kind or get_origin(o) is origin for o in alternatives(wanted))


def _returns(seen: Any, wanted: Any) -> bool:
    """Whether a partial node makes what ``Callable[..., X]`` promises."""
    results = [get_args(o)[-1] for o in alternatives(wanted) if _allows(o, Callable) and get_args(o)]
    if not isinstance(seen, functools.partial) or not results:
        return True
    made = seen.func
    return any(not inspect.isclass(r) or (inspect.isclass(made) and issubclass(made, r)) for r in results)


def _out_of_range(value: Any, bounds: Range, where: str) -> Iterator[Mistake]:
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, (int, float)) and not bounds.holds(number):
            yield Mistake(where, f"{number} is not {_words(Annotated[float, bounds])}")


def all_keys(tree: Any, where: str = "") -> Iterator[str]:
    """Every dotted key that a tree may have: arguments of its nodes' classes, keys of mappings of nodes."""
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
    """``width`` or ``widht`` -> ``architecture.width``: a key in the wrong place."""
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
