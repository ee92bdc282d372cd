"""The YAML files behind a config: where they lie, and reading one safely. No Hydra here, and no torch.

Groups are folders; ``protocol`` and ``extractor`` hold *named files*, which a key of ``metric`` chooses.
A user's folders may add files, but never put another in the place of a shipped one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from ganlab.errors import ConfigError, Mistake
from ganlab.paths import config_dir

NAMED = {"metric.extractor": "extractor", "metric.protocol": "protocol", "metric.progress": "protocol"}
GRIDS = "grid"  # the folder of grid files: no group of a run
MAX_BYTES, MAX_ALIASES, MAX_DEPTH = 1_000_000, 20, 30  # far past any honest config
_FLOAT = re.compile(  # 1e-4 is a number, as people expect; YAML 1.1 wants 1.0e-4
    r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_SURPRISE = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+")  # octal, sexagesimal
_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def user_dirs(given: Iterable[str | Path] = ()) -> list[Path]:
    """The user's config folders: those given (``--config-dir``), then ``$GANLAB_CONFIGS``.

    Raises ConfigError for one that is not there.
    """
    named = [("--config-dir", str(d)) for d in given]
    named += [("GANLAB_CONFIGS", d) for d in os.environ.get("GANLAB_CONFIGS", "").split(os.pathsep) if d]
    wrong = [
        Mistake(source, f"there is no folder {folder!r}", "name an existing folder")
        for source, folder in named
        if not Path(folder).expanduser().is_dir()
    ]
    if wrong:
        raise ConfigError(wrong)
    return list(dict.fromkeys(Path(folder).expanduser().resolve() for _, folder in named))


def groups(dirs: Sequence[Path]) -> dict[str, list[str]]:
    """Group -> its options, over the shipped configs and ``dirs``; a sub-folder's file is ``sub/name``."""
    found: dict[str, set[str]] = {}
    for root in (config_dir(), *dirs):
        for folder in _folders(root):
            if folder.name == "hydra":
                for sub in _folders(folder):
                    found.setdefault(f"hydra/{sub.name}", set()).update(_options(sub))
            elif folder.name != GRIDS and (options := set(_options(folder))):
                found.setdefault(folder.name, set()).update(options)
    return {name: sorted(options) for name, options in sorted(found.items())}


def options_of(folder: str, dirs: Sequence[Path] = ()) -> list[str]:
    """The names of the files in ``folder`` of the shipped configs and of ``dirs``."""
    roots = [root / folder for root in (config_dir(), *dirs)]
    return sorted({name for root in roots if root.is_dir() for name in _options(root)})


def display(path: Path) -> str:
    """The path as a user would type it: relative where it lies below the working folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _folders(root: Path) -> list[Path]:
    try:
        return [Path(e) for e in os.scandir(root) if e.is_dir() and not e.name.startswith((".", "_"))]
    except OSError as error:
        raise ConfigError(str(root), f"can't be read ({error.strerror})", "mend its permissions") from error


def _options(folder: Path, depth: int = 2) -> Iterator[str]:
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.is_file() and entry.name.endswith(".yaml"):
            yield entry.name.removesuffix(".yaml")
        elif depth > 1 and entry.is_dir() and not entry.name.startswith((".", "_")):
            yield from (f"{entry.name}/{name}" for name in _options(Path(entry), depth - 1))


def find(name: str, dirs: Sequence[Path]) -> Path | None:
    """The file of ``group/option``: the shipped one, else the first of the user's.

    Raises ConfigError when a user's file of that name says something else than the shipped one.
    """
    places = [folder / f"{name}.yaml" for folder in (config_dir(), *dirs)]
    there = [place for place in places if place.is_file()]
    for hidden in there[1:]:
        if hidden.read_bytes() != there[0].read_bytes():
            what = f"hides behind {display(there[0])}, which differs"
            raise ConfigError(display(hidden), what, "give it another name")
    return there[0] if there else None


def read(path: Path) -> tuple[dict[str, Any], str | None]:
    """A config file's mapping, and the package of its ``# @package`` line.

    Raises ConfigError, with file, line and column, for what YAML or we do not allow: other encodings, doubled
    keys, tags, 010 (octal), more than 1 MB, deep nesting, many aliases, anything but a mapping at the top.
    """
    shown = display(path)
    text = _text(path, shown)
    try:
        _guard(text, shown)
        found = yaml.load(text, Loader=_Loader)  # a SafeLoader
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
    return found or {}, _package(text, shown)


def _text(path: Path, shown: str) -> str:
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ConfigError(shown, f"has {size:,} bytes", f"a config has at most {MAX_BYTES:,}")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(shown, f"is not UTF-8 text (byte {error.start})", "save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(shown, f"can't be read ({error.strerror})", "mend its permissions") from error
    if not text.strip():
        raise ConfigError(shown, "is empty", "write something, {} for nothing, or delete it")
    return text


def _guard(text: str, shown: str) -> None:
    """Refuse what would grow or nest without end, on the flat stream of events."""
    depth = aliases = 0
    for event in yaml.parse(text, Loader=_BASE):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        if depth > MAX_DEPTH or aliases > MAX_ALIASES:
            what = f"nests more than {MAX_DEPTH} deep" if depth > MAX_DEPTH else "has too many aliases"
            raise ConfigError(f"{shown}:{event.start_mark.line + 1}", what, "write it out flat")


def _package(text: str, shown: str) -> str | None:
    """The ``# @package NAME`` among the first comment lines."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("#"):
            break
        if words := re.fullmatch(r"#\s*@(\S+)\s*(.*?)\s*", line):
            if words[1] != "package" or not re.fullmatch(r"\S+", words[2]):
                raise ConfigError(f"{shown}:{number}", f"can't read {line!r}", "write '# @package NAME'")
            return words[2]
    return None


def _yaml_fix(problem: str) -> str:
    if "cannot start any token" in problem:
        return "indent with spaces, not tabs, and quote text that begins with a sign"
    if "mapping values" in problem:
        return "put text that holds ': ' in quotes"
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
