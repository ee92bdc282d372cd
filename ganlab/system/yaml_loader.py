"""Read untrusted YAML: plain values only, with limits on size, depth and aliases."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from ganlab.errors import ConfigError
from ganlab.system.files import read_regular

MAX_BYTES, MAX_ALIASES, MAX_DEPTH = 1_000_000, 20, 30  # far past any honest config
MAX_VALUES = 10_000  # with aliases expanded
_FLOAT = re.compile(  # reads 1e-4 as a number; YAML 1.1 requires 1.0e-4
    r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_AMBIGUOUS_INT = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+")  # octal, sexagesimal
_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(path: Path, display_name: str, *, dumped: bool = False) -> tuple[dict[str, Any], str]:
    """The mapping in a YAML file, and the file's text. ``display_name``: the file's name in messages.

    ``dumped``: PyYAML wrote the file, so its own rules for plain scalars apply (1e5 is a string).

    Raises ConfigError, with file, line and column, for invalid YAML and for other encodings, duplicate keys,
    tags, 010 (octal), more than 1 MB, deep nesting, many aliases, and anything but a mapping at the top.
    """
    text = _read_text(path, display_name)
    try:
        _check_limits(text, display_name)
        content = yaml.load(text, Loader=_BASE if dumped else _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{display_name}:{mark.line + 1}:{mark.column + 1}" if mark else display_name
        problem = error.problem or "can't be parsed"
        raise ConfigError(where, problem, _yaml_fix(problem)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            display_name, f"is not YAML: {error}".splitlines()[0], "correct the file"
        ) from error
    if content is not None and not isinstance(content, dict):
        what = f"contains a {'list' if isinstance(content, list) else 'single value'}, not keys with values"
        raise ConfigError(display_name, what, "write key: value lines")
    return content or {}, text


def _read_text(path: Path, display_name: str) -> str:
    try:
        text = read_regular(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 text (byte {error.start})"
        raise ConfigError(display_name, what, "save it as UTF-8") from error
    except OSError as error:
        fix = f"a config is a text file of at most {MAX_BYTES:,} bytes that you may read"
        raise ConfigError(display_name, f"can't be read ({error.strerror})", fix) from error
    if not text.strip():
        raise ConfigError(display_name, "is empty", "write {} for no keys, or delete it")
    return text


def _check_limits(text: str, display_name: str) -> None:
    """Refuse excessive sizes and nesting, on the stream of events before anything is built."""
    aliases, values = 0, 0
    around = list[tuple[str | None, int]]()  # the enclosing collections: anchor, values before it
    sizes = dict[str | None, int]()  # number of values under an anchor
    for event in yaml.parse(text, Loader=_BASE):
        mark = f"{display_name}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.CollectionStartEvent):
            around.append((event.anchor, values))
            values += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = around.pop()
            sizes[anchor] = values - before
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if event.anchor in [anchor for anchor, _ in around]:
                raise ConfigError(mark, f"*{event.anchor} contains itself", "write it out without the alias")
            values += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
        if values > MAX_VALUES:
            raise ConfigError(mark, f"expands to more than {MAX_VALUES:,} values", "make it smaller")
        if len(around) > MAX_DEPTH or aliases > MAX_ALIASES:
            what = f"nests more than {MAX_DEPTH} deep" if aliases <= MAX_ALIASES else "has too many aliases"
            raise ConfigError(mark, what, "write it out flat")


def _yaml_fix(problem: str) -> str:
    if "cannot start any token" in problem:
        return "indent with spaces, not tabs, and quote text that begins with a sign"
    if "mapping values" in problem:
        return "put text that holds ': ' in quotes"
    if "is not a string" in problem:
        return "put it in quotes"
    return "keep one of the two" if "duplicate key" in problem else "correct the YAML there"


class _Loader(_BASE):  # type: ignore[misc]
    """PyYAML's safe loader, but strict about duplicate keys and ambiguous numbers."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"duplicate key {key.value!r}", key.start_mark
                    )
                if key.tag != "tag:yaml.org,2002:str":
                    what = f"the key {key.value!r} is not a string"
                    raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_int(self, node: Any) -> Any:
        value = super().construct_yaml_int(node)
        if _AMBIGUOUS_INT.fullmatch(node.value):
            what = f"YAML reads {node.value} as {value}: write {value}, or put it in quotes"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        return value


_Loader.yaml_implicit_resolvers = {
    first: [(t, r) for t, r in rules if not t.endswith((":timestamp", ":float"))]
    for first, rules in _BASE.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
