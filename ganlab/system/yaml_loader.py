"""Reading YAML that someone else may have written: plain values only, bounded in size, depth and aliases."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from ganlab.errors import ConfigError

MAX_BYTES, MAX_ALIASES, MAX_DEPTH = 1_000_000, 20, 30  # far past any honest config
MAX_VALUES = 10_000  # what aliases stand for counted each time
_FLOAT = re.compile(  # 1e-4 is a number, as people expect; YAML 1.1 wants 1.0e-4
    r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_SURPRISE = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+")  # octal, sexagesimal
_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(path: Path, shown: str, *, dumped: bool = False) -> tuple[dict[str, Any], str]:
    """The mapping in a YAML file, and its text. ``shown``: what the user calls the file.

    ``dumped``: PyYAML wrote it, so its rules of plain text hold (1e5 is text), and there are no surprises.

    Raises ConfigError, with file, line and column, for what YAML or we do not allow: other encodings, doubled
    keys, tags, 010 (octal), more than 1 MB, deep nesting, many aliases, anything but a mapping at the top.
    """
    text = _text(path, shown)
    try:
        _guard(text, shown)
        found = yaml.load(text, Loader=_BASE if dumped else _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{shown}:{mark.line + 1}:{mark.column + 1}" if mark else shown
        problem = error.problem or "can't be parsed"
        raise ConfigError(where, problem, _yaml_fix(problem)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(shown, f"is not YAML: {error}".splitlines()[0], "mend the file") from error
    if found is not None and not isinstance(found, dict):
        what = f"holds a {'list' if isinstance(found, list) else 'single value'}, not keys with values"
        raise ConfigError(shown, what, "write key: value lines")
    return found or {}, text


def _text(path: Path, shown: str) -> str:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe would be waited for
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(shown, "is not a regular file", "name a text file")
            if status.st_size > MAX_BYTES:
                raise ConfigError(
                    shown, f"has {status.st_size:,} bytes", f"a config has at most {MAX_BYTES:,}"
                )
            text = file.read(MAX_BYTES + 1).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(shown, f"is not UTF-8 text (byte {error.start})", "save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(shown, f"can't be read ({error.strerror})", "mend its permissions") from error
    if not text.strip():
        raise ConfigError(shown, "is empty", "write something, {} for nothing, or delete it")
    return text


def _guard(text: str, shown: str) -> None:
    """Refuse what would grow or nest without end, on the flat stream of events."""
    aliases, values = 0, 0
    around = list[tuple[str | None, int]]()  # the collections that an event lies in: anchor, values before it
    sizes = dict[str | None, int]()  # values under an anchor
    for event in yaml.parse(text, Loader=_BASE):
        mark = f"{shown}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.CollectionStartEvent):
            around.append((event.anchor, values))
            values += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = around.pop()
            sizes[anchor] = values - before
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if event.anchor in [anchor for anchor, _ in around]:
                raise ConfigError(mark, f"*{event.anchor} holds itself", "write it out flat")
            values += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
        if values > MAX_VALUES:
            raise ConfigError(mark, f"stands for more than {MAX_VALUES:,} values", "make it smaller")
        if len(around) > MAX_DEPTH or aliases > MAX_ALIASES:
            what = f"nests more than {MAX_DEPTH} deep" if aliases <= MAX_ALIASES else "has too many aliases"
            raise ConfigError(mark, what, "write it out flat")


def _yaml_fix(problem: str) -> str:
    if "cannot start any token" in problem:
        return "indent with spaces, not tabs, and quote text that begins with a sign"
    if "mapping values" in problem:
        return "put text that holds ': ' in quotes"
    if "is no text" in problem:
        return "put it in quotes"
    return "keep one of the two" if "twice" in problem else "mend the YAML there"


class _Loader(_BASE):  # type: ignore[misc]
    """PyYAML's safe loader without its surprises."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is there twice", key.start_mark
                    )
                if key.tag != "tag:yaml.org,2002:str":
                    what = f"the key {key.value!r} is no text"
                    raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_int(self, node: Any) -> Any:
        value = super().construct_yaml_int(node)
        if _SURPRISE.fullmatch(node.value):
            what = f"YAML reads {node.value} as {value}: write {value}, or put it in quotes"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        return value


_Loader.yaml_implicit_resolvers = {
    first: [(t, r) for t, r in rules if not t.endswith((":timestamp", ":float"))]
    for first, rules in _BASE.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
