"""Build objects from a checked config tree, leaves first; constructors' errors get their keys."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any, get_origin

from ganlab.config.check import alternatives, join, mistakes, split_fix
from ganlab.config.targets import arguments, is_node, resolve
from ganlab.errors import ConfigError, GanlabError, Mistake


def build(tree: dict[str, Any], *, where: str = "", also: Iterable[str] = ()) -> Any:
    """Build the object of a resolved tree, leaves first.

    ``where``: the key of ``tree`` in the whole config, if it is a part. Raises ConfigError with all mistakes,
    including the constructors' ValueErrors; a constructor's GanlabError with another exit code propagates if
    there is no other mistake.
    """
    problems = [m._replace(where=join(where, m.where)) for m in mistakes(tree, also=also)]
    if problems:
        raise ConfigError(problems)
    errors: list[GanlabError] = []
    result = _build(tree, None, where, errors)
    problems = [m for error in errors if isinstance(error, ConfigError) for m in error.mistakes]
    if problems:
        raise ConfigError(problems)
    if errors:
        raise errors[0]
    return result


def _build(value: Any, annotation: Any, where: str, errors: list[GanlabError]) -> Any:
    if isinstance(value, list):
        items = [_build(v, None, join(where, str(i)), errors) for i, v in enumerate(value)]
        kinds = {get_origin(o) or o for o in alternatives(annotation)}
        return tuple(items) if tuple in kinds and list not in kinds else items
    if not isinstance(value, dict):
        return value
    if not is_node(value):
        return {k: _build(v, None, join(where, str(k)), errors) for k, v in value.items()}
    partial, count = value.get("_partial_", False), len(errors)
    cls = resolve(value["_target_"])
    parameters = arguments(cls, bool(partial))
    kwargs = {
        k: _build(v, parameters[k][0], join(where, k), errors)
        for k, v in value.items()
        if k not in ("_target_", "_partial_")
    }
    if partial:
        return functools.partial(cls, **kwargs)
    if len(errors) > count:
        return None  # a part failed to build
    try:
        return cls(**kwargs)
    except ValueError as error:
        errors.append(ConfigError(_from_constructor(str(error), cls, where)))
    except GanlabError as error:
        errors.append(error)
    return None


def _from_constructor(text: str, cls: type, where: str) -> list[Mistake]:
    """The mistakes in a constructor's message ("key: what; fix" per line), prefixed with the node's key."""
    problems = []
    for line in filter(None, map(str.strip, text.splitlines())):
        key, colon, rest = line.partition(": ")
        if colon and re.fullmatch(r"[A-Za-z_][\w.]*", key):
            problems.append(Mistake(join(where, key), *split_fix(rest)))
        else:
            problems.append(Mistake(where or cls.__name__, *split_fix(line)))
    return problems or [Mistake(where or cls.__name__, "rejected by its class")]
