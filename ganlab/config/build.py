"""From a checked config tree to objects, from the leaves up; constructors' complaints get their keys."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any, get_origin

from ganlab.config.check import alternatives, join, mistakes, split_fix
from ganlab.config.targets import arguments, is_node, resolve
from ganlab.errors import ConfigError, GanlabError, Mistake


def build(tree: dict[str, Any], *, where: str = "", also: Iterable[str] = ()) -> Any:
    """The object of a resolved tree, built from the leaves up.

    ``where``: the key of ``tree`` in the whole config, if it is a part. Raises ConfigError with all mistakes,
    the constructors' own (their ValueErrors) included; a GanlabError of a constructor with another exit code
    comes through where there is no mistake besides.
    """
    wrong = [m._replace(where=join(where, m.where)) for m in mistakes(tree, also=also)]
    if wrong:
        raise ConfigError(wrong)
    failed: list[GanlabError] = []
    built = _build(tree, None, where, failed)
    config = [m for error in failed if isinstance(error, ConfigError) for m in error.mistakes]
    if config:
        raise ConfigError(config)
    if failed:
        raise failed[0]
    return built


def _build(value: Any, wanted: Any, where: str, failed: list[GanlabError]) -> Any:
    if isinstance(value, list):
        items = [_build(v, None, join(where, str(i)), failed) for i, v in enumerate(value)]
        kinds = {get_origin(o) or o for o in alternatives(wanted)}
        return tuple(items) if tuple in kinds and list not in kinds else items
    if not isinstance(value, dict):
        return value
    if not is_node(value):
        return {k: _build(v, None, join(where, str(k)), failed) for k, v in value.items()}
    partial, before = value.get("_partial_", False), len(failed)
    found = resolve(value["_target_"])
    wants = arguments(found, bool(partial))
    given = {
        k: _build(v, wants[k][0], join(where, k), failed)
        for k, v in value.items()
        if k not in ("_target_", "_partial_")
    }
    if partial:
        return functools.partial(found, **given)
    if len(failed) > before:
        return None  # a part is missing
    try:
        return found(**given)
    except ValueError as error:
        failed.append(ConfigError(_from_constructor(str(error), found, where)))
    except GanlabError as error:
        failed.append(error)
    return None


def _from_constructor(text: str, found: type, where: str) -> list[Mistake]:
    """A constructor's "key: what; fix", one a line, with the node's key put in front."""
    wrong = []
    for line in filter(None, map(str.strip, text.splitlines())):
        key, colon, rest = line.partition(": ")
        if colon and re.fullmatch(r"[A-Za-z_][\w.]*", key):
            wrong.append(Mistake(join(where, key), *split_fix(rest)))
        else:
            wrong.append(Mistake(where or found.__name__, *split_fix(line)))
    return wrong or [Mistake(where or found.__name__, "refused by its class")]
