"""Parse ``key=value`` overrides one by one, so that all mistakes are reported at once.

Keys are passed to Hydra as ``++key=value``, which sets them whether or not a file did; whether a key exists
is checked later, against the constructors' signatures. Group choices are checked here, against the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException

from ganlab.config.files import groups, read, user_dirs
from ganlab.errors import ConfigError, Mistake, suggest
from ganlab.system.paths import config_dir, expanded

DEMO = "+experiment=digits"  # what `ganlab train` runs without an experiment and a dataset
PATHS = frozenset(
    {"run_dir", "path", "weights", "out", "root", "resume"}
)  # last part of a key whose value is a path
LISTED = "'ganlab train --help {}' lists them"  # of a group
HYDRA = re.compile(r"hydra/launcher|hydra\.(launcher|job\.env_set)\..+|hydra\.verbose")
_WORD = re.compile(r"(\+\+|\+|~)?([^=]*)(=?)(.*)", re.DOTALL)
_KEY = re.compile(r"[A-Za-z_$][\w$-]*(?:[./][\w$-]+)*")


class ParsedOverride(NamedTuple):
    """A parsed override. text: in Hydra's syntax. value: None for sweeps, deletions and ``hydra.*`` keys."""

    key: str
    text: str
    value: Any = None
    group: bool = False
    sweep: bool = False

    def canonical(self) -> str:
        """The canonical spelling: no sign, no quotes, ``[sn]`` for ``sn`` where a list is expected."""
        if self.text.startswith("~") or self.sweep:
            return self.text.lstrip("+")
        if isinstance(self.value, list) and all(isinstance(v, str) for v in self.value):
            return f"{self.key}=[{','.join(self.value)}]"
        plain = self.value if isinstance(self.value, str) else json.dumps(self.value, sort_keys=True)
        return f"{self.key}={plain}"


class CommandLine(NamedTuple):
    """All overrides of a command.

    dirs: the user's config folders. options: group -> its options. defaults: group -> whether several may be
    chosen. bad_keys: the first part of each key that has a mistake.
    """

    dirs: list[Path]
    options: dict[str, list[str]]
    defaults: dict[str, bool]
    overrides: list[ParsedOverride]
    mistakes: list[Mistake]
    bad_keys: set[str]

    def texts(self) -> list[str]:
        return [g.text for g in self.overrides]

    def canonical(self) -> list[str]:
        last = {(g.key, g.text.startswith("~")): g.canonical() for g in self.overrides}
        return sorted(text for text in last.values() if not text.startswith("hydra"))


def command_line(
    overrides: Sequence[str], config_dirs: Sequence[str] = (), *, multirun: bool = False, demo: bool = True
) -> CommandLine:
    """Parse ``overrides``. ``multirun``: values may be sweeps, and some of ``hydra.*`` may be set.

    ``demo``: without an experiment and a dataset, ``DEMO`` is added. Paths need the shell's quoting only.
    Raises ConfigError for a config folder that does not exist.
    """
    own = [o for o in overrides if not o.lstrip("+").startswith("hydra.searchpath=")]
    searched = [folder for o in overrides if o not in own for folder in _searchpath(o)]
    dirs = user_dirs([*config_dirs, *searched])
    line = CommandLine(dirs, groups(dirs), defaults_list(), [], [], set())
    for text in own:
        try:
            override = _parse(text, line, multirun)
            duplicate = override.group and override.key in {g.key for g in line.overrides}
            if duplicate and override.key not in line.defaults:
                raise ConfigError(override.key, "is set twice", "keep one")
            line.overrides.append(override)
        except ConfigError as error:
            line.mistakes.extend(error.mistakes)
            line.bad_keys.add(re.split(r"[=.@]", text.lstrip("+~"))[0])
    if demo and not {"experiment", "dataset"} & ({g.key for g in line.overrides} | line.bad_keys):
        line.overrides.insert(0, _parse(DEMO, line, multirun))
    return line


def defaults_list() -> dict[str, bool]:
    """Group -> whether ``train.yaml`` gives it a list as default, so that several options may be chosen."""
    entries = read(config_dir() / "train.yaml")[0].get("defaults", [])
    chosen = [(k, v) for e in entries if isinstance(e, dict) for k, v in e.items()]
    return {k.split()[-1].lstrip("/"): isinstance(v, list) for k, v in chosen}


def parse(text: str) -> Override:
    """Parse an override by Hydra's grammar. Raises ConfigError."""
    try:
        parsed: Override = OverridesParser.create().parse_rule(text, "override")
    except HydraException as error:
        key, _, value = text.lstrip("+~").partition("=")
        fix = f"""quote it for the shell and for Hydra: "{key}='...'" """
        raise ConfigError(key or text, f"cannot parse the value {value[:60]!r}", fix) from error
    return parsed


def quoted(value: str) -> str:
    """Text quoted so that Hydra's grammar takes it literally."""
    return str(QuotedString(value, Quote.single).with_quotes())


def _searchpath(text: str) -> list[str]:
    value = parse(text).value()
    paths = value if isinstance(value, list) else [value]
    if not all(isinstance(p, str) and ("://" not in p or p.startswith("file://")) for p in paths):
        raise ConfigError("hydra.searchpath", f"{value!r} is not a list of folders", "use --config-dir DIR")
    return [str(p).removeprefix("file://") for p in paths]


def _parse(text: str, line: CommandLine, multirun: bool) -> ParsedOverride:
    """Parse one override. Raises ConfigError."""
    match = _WORD.fullmatch(text)
    sign, key, equals, value = match.groups("") if match else ("", text, "", "")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ConfigError(ascii(key)[1:-1], "contains bytes that are not UTF-8", "rename the file or folder")
    if not equals and sign != "~":
        is_experiment = text in line.options.get("experiment", [])
        fix = f"write +experiment={text}" if is_experiment else f"write {text or 'key'}=VALUE"
        raise ConfigError(text or "''", "expected key=value", fix)
    if not _KEY.fullmatch(key):
        fix = "omit @..." if "@" in key else "write key=VALUE"
        raise ConfigError(key or text, "is not a valid key", fix)
    if key in ("protocol", "extractor"):
        raise ConfigError(key, "belongs to metric", f"write metric.{key}={value}")
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return _hydra(text, key, value, line, multirun)
    if key.rpartition(".")[2] in PATHS and not _is_hydra_value(value) and not (multirun and _is_sweep(text)):
        value = str(expanded(value)) if value.startswith("~") else value
        return ParsedOverride(key, f"++{key}={quoted(value)}", value)
    parsed = parse(text)
    sweep = bool(parsed.is_sweep_override())
    if sweep and not multirun:
        fix = f"add -m to run each one, or write [{value}] for a list"
        raise ConfigError(key, f"{value!r} has several values", fix)
    if key in line.options and not isinstance(parsed.value(), dict):
        return _choice(sign, value, parsed, line)
    if sign == "~":
        return ParsedOverride(key, text)
    return ParsedOverride(key, f"++{key}={value}", None if sweep else parsed.value(), sweep=sweep)


def _is_hydra_value(value: str) -> bool:
    """Whether Hydra should parse a path's value: it is empty, null or already quoted."""
    return value in ("", "null") or (len(value) > 1 and value[0] in "'\"" and value[0] == value[-1])


def _is_sweep(text: str) -> bool:
    try:
        return bool(parse(text).is_sweep_override())
    except ConfigError:
        return False


def _hydra(text: str, key: str, value: str, line: CommandLine, multirun: bool) -> ParsedOverride:
    """Parse a ``hydra.*`` setting. Raises ConfigError unless it is the launcher's or ``job.env_set``."""
    if not multirun:
        raise ConfigError(key, "is a Hydra setting, which applies to sweeps only", "add -m, or omit it")
    if not HYDRA.fullmatch(key):
        raise ConfigError(key, "cannot be set", "of Hydra's settings, only the launcher's can")
    parse(text)
    if "/" in key:
        Plugins.instance()  # the plugins register their options
        shipped = [name.removesuffix(".yaml") for name in ConfigStore.instance().list(key)]
        if value not in (options := [*shipped, *line.options.get(key, [])]):
            fix = suggest(value, options)
            for name, extra in (("submitit", "slurm"), ("ray", "ray")):
                if value.startswith(name):
                    fix = f"install the extra: pip install 'ganlab[{extra}]'"
            raise ConfigError(key, f"there is no {value!r}", fix)
    return ParsedOverride(key, text, group="/" in key)


def _choice(sign: str, value: str, parsed: Override, line: CommandLine) -> ParsedOverride:
    """Parse a choice of a group's option, or of several where the group's default is a list."""
    group = parsed.key_or_group
    options, several = line.options[group], line.defaults.get(group, False)
    if sign == "~":
        return ParsedOverride(group, parsed.input_line or "", group=True)
    if group not in line.defaults and not sign:
        raise ConfigError(group, "has no default to override", f"write +{group}={value}")
    sweep, content = bool(parsed.is_sweep_override()), parsed.value()
    if content == [] and "none" in options:
        content, value = ["none"], "[none]"
    if isinstance(content, Glob):  # Hydra itself matches the shipped options only
        value = ",".join(content.filter(options))
        chosen: list[Any] = list(content.filter(options))
    else:
        chosen = list(parsed.sweep_iterator()) if sweep else [content]
    chosen = [[Override._convert_value(n) for n in c] if isinstance(c, list) else c for c in chosen]
    mistakes = [] if chosen else [Mistake(group, f"{parsed.get_value_string()} matches no option")]
    for choice in chosen:
        single = choice.text if isinstance(choice, QuotedString) else choice
        names = choice if isinstance(choice, list) else [single]
        mistakes += [
            Mistake(group, f"there is no {_name(n)}", suggest(str(n), options, all_of=LISTED.format(group)))
            for n in names
            if n not in options
        ]
        if isinstance(choice, list) and not several:
            mistakes.append(Mistake(group, f"{value} is a list", f"a run has exactly one {group}"))
        if isinstance(choice, list) and "none" in choice and len(choice) > 1:
            mistakes.append(Mistake(group, f"'none' cannot be combined with others in {value}", "omit it"))
    if mistakes:
        raise ConfigError(mistakes)
    final = None if sweep else [chosen[0]] if several and isinstance(chosen[0], str) else chosen[0]
    return ParsedOverride(
        group, f"{'' if group in line.defaults else '+'}{group}={value}", final, True, sweep
    )


def _name(option: Any) -> str:
    return "null" if option is None else repr(option)
