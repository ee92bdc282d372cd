"""``key=value`` words of the command line, understood one by one, so that all wrong ones are told at once.

Keys go on to Hydra as ``++key=value``, which sets them whether or not a file did; that a key exists is
checked later, against the constructors' signatures. Choices of groups are checked here, against the files.
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

DEMO = "+experiment=digits"  # what `ganlab train` runs when no experiment and no dataset is asked for
PATHS = frozenset(
    {"run_dir", "path", "weights", "out", "root", "resume"}
)  # last part of a key whose value is a path
LISTED = "'ganlab train --help' lists them"
HYDRA = re.compile(r"hydra/launcher|hydra\.(launcher|job\.env_set)\..+|hydra\.verbose")
_WORD = re.compile(r"(\+\+|\+|~)?([^=]*)(=?)(.*)", re.DOTALL)
_KEY = re.compile(r"[A-Za-z_$][\w$-]*(?:[./][\w$-]+)*")


class ParsedOverride(NamedTuple):
    """One override, understood. text: Hydra's spelling. value: None for a sweep, a deletion, Hydra's own."""

    key: str
    text: str
    value: Any = None
    group: bool = False
    sweep: bool = False

    def canonical(self) -> str:
        """One spelling for one meaning: no sign, no quotes, ``[sn]`` for ``sn`` where a list is wanted."""
        if self.text.startswith("~") or self.sweep:
            return self.text.lstrip("+")
        if isinstance(self.value, list) and all(isinstance(v, str) for v in self.value):
            return f"{self.key}=[{','.join(self.value)}]"
        plain = self.value if isinstance(self.value, str) else json.dumps(self.value, sort_keys=True)
        return f"{self.key}={plain}"


class CommandLine(NamedTuple):
    """All overrides. dirs: the user's config folders. bad: first parts of the keys of the wrong ones."""

    dirs: list[Path]
    known: dict[str, list[str]]
    defaults: dict[str, bool]
    given: list[ParsedOverride]
    wrong: list[Mistake]
    bad: set[str]

    def texts(self) -> list[str]:
        return [g.text for g in self.given]

    def canonical(self) -> list[str]:
        last = {(g.key, g.text.startswith("~")): g.canonical() for g in self.given}
        return sorted(text for text in last.values() if not text.startswith("hydra"))


def command_line(
    overrides: Sequence[str], config_dirs: Sequence[str] = (), *, multirun: bool = False, demo: bool = True
) -> CommandLine:
    """Understand ``overrides``. ``multirun``: values may be sweeps, and some of ``hydra.*`` may be set.

    ``demo``: without an experiment and a dataset, ``DEMO`` is added. Paths need only the shell's quoting.
    Raises ConfigError for a config folder that is not there.
    """
    mine = [o for o in overrides if not o.lstrip("+").startswith("hydra.searchpath=")]
    searched = [folder for o in overrides if o not in mine for folder in _searchpath(o)]
    dirs = user_dirs([*config_dirs, *searched])
    line = CommandLine(dirs, groups(dirs), defaults_list(), [], [], set())
    for text in mine:
        try:
            one = _understand(text, line, multirun)
            if one.group and one.key not in line.defaults and one.key in {g.key for g in line.given}:
                raise ConfigError(one.key, "is given twice", "keep one")
            line.given.append(one)
        except ConfigError as error:
            line.wrong.extend(error.mistakes)
            line.bad.add(re.split(r"[=.@]", text.lstrip("+~"))[0])
    if demo and not {"experiment", "dataset"} & ({g.key for g in line.given} | line.bad):
        line.given.insert(0, _understand(DEMO, line, multirun))
    return line


def defaults_list() -> dict[str, bool]:
    """Group -> whether its default is a list (then several may be chosen), as ``train.yaml`` has it."""
    entries = read(config_dir() / "train.yaml")[0].get("defaults", [])
    chosen = [(k, v) for e in entries if isinstance(e, dict) for k, v in e.items()]
    return {k.split()[-1].lstrip("/"): isinstance(v, list) for k, v in chosen}


def parse(text: str) -> Override:
    """Hydra's grammar. Raises ConfigError."""
    try:
        parsed: Override = OverridesParser.create().parse_rule(text, "override")
    except HydraException as error:
        key, _, value = text.lstrip("+~").partition("=")
        fix = f"""quote it for the shell and for Hydra: "{key}='...'" """
        raise ConfigError(key or text, f"can't read the value {value[:60]!r}", fix) from error
    return parsed


def quoted(value: str) -> str:
    """A text as Hydra's grammar takes it literally."""
    return str(QuotedString(value, Quote.single).with_quotes())


def _searchpath(text: str) -> list[str]:
    value = parse(text).value()
    paths = value if isinstance(value, list) else [value]
    if not all(isinstance(p, str) and ("://" not in p or p.startswith("file://")) for p in paths):
        raise ConfigError("hydra.searchpath", f"{value!r} is not a list of folders", "use --config-dir DIR")
    return [str(p).removeprefix("file://") for p in paths]


def _understand(text: str, line: CommandLine, multirun: bool) -> ParsedOverride:
    """One override. Raises ConfigError."""
    match = _WORD.fullmatch(text)
    sign, key, equals, value = match.groups("") if match else ("", text, "", "")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ConfigError(ascii(key)[1:-1], "holds bytes that are not UTF-8", "rename the file or folder")
    if not equals and sign != "~":
        is_experiment = text in line.known.get("experiment", [])
        fix = f"write +experiment={text}" if is_experiment else f"write {text or 'key'}=VALUE"
        raise ConfigError(text or "''", "is not key=value", fix)
    if not _KEY.fullmatch(key):
        fix = "leave out @..." if "@" in key else "write key=VALUE"
        raise ConfigError(key or text, "is not a key", fix)
    if key in ("protocol", "extractor"):
        raise ConfigError(key, "is no key of its own", f"write metric.{key}={value}")
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return _hydra(text, key, value, line, multirun)
    if key.rpartition(".")[2] in PATHS and not _ready(value) and not (multirun and _is_sweep(text)):
        value = str(expanded(value)) if value.startswith("~") else value
        return ParsedOverride(key, f"++{key}={quoted(value)}", value)
    parsed = parse(text)
    sweep = bool(parsed.is_sweep_override())
    if sweep and not multirun:
        fix = f"add -m to run each, or write [{value}] for a list"
        raise ConfigError(key, f"{value!r} is several values", fix)
    if key in line.known and not isinstance(parsed.value(), dict):
        return _choice(sign, value, parsed, line)
    if sign == "~":
        return ParsedOverride(key, text)
    return ParsedOverride(key, f"++{key}={value}", None if sweep else parsed.value(), sweep=sweep)


def _ready(value: str) -> bool:
    """Whether a path's value is Hydra's business: nothing, null, or quoted already."""
    return value in ("", "null") or (len(value) > 1 and value[0] in "'\"" and value[0] == value[-1])


def _is_sweep(text: str) -> bool:
    try:
        return bool(parse(text).is_sweep_override())
    except ConfigError:
        return False


def _hydra(text: str, key: str, value: str, line: CommandLine, multirun: bool) -> ParsedOverride:
    """A setting of Hydra's own. Raises ConfigError for all but the launcher's, and environment variables."""
    if not multirun:
        raise ConfigError(key, "is Hydra's, which has a say in sweeps alone", "add -m, or leave it out")
    if not HYDRA.fullmatch(key):
        raise ConfigError(key, "can't be set", "of Hydra's own, only the launcher can")
    parse(text)
    if "/" in key:
        Plugins.instance()  # they register their options
        shipped = [name.removesuffix(".yaml") for name in ConfigStore.instance().list(key)]
        if value not in (options := [*shipped, *line.known.get(key, [])]):
            fix = suggest(value, options)
            for name, extra in (("submitit", "slurm"), ("ray", "ray")):
                if value.startswith(name):
                    fix = f"it is an extra: pip install 'ganlab[{extra}]'"
            raise ConfigError(key, f"there is no {value!r}", fix)
    return ParsedOverride(key, text, group="/" in key)


def _choice(sign: str, value: str, parsed: Override, line: CommandLine) -> ParsedOverride:
    """A choice of a group's option, or of several where the group's default is a list."""
    group = parsed.key_or_group
    options, several = line.known[group], line.defaults.get(group, False)
    if sign == "~":
        return ParsedOverride(group, parsed.input_line or "", group=True)
    if group not in line.defaults and not sign:
        raise ConfigError(group, "is added, not changed", f"write it with a plus: +{group}={value}")
    sweep, content = bool(parsed.is_sweep_override()), parsed.value()
    if content == [] and "none" in options:
        content, value = ["none"], "[none]"
    if isinstance(content, Glob):  # Hydra would look among the shipped options alone
        value = ",".join(content.filter(options))
        chosen: list[Any] = list(content.filter(options))
    else:
        chosen = list(parsed.sweep_iterator()) if sweep else [content]
    chosen = [[Override._convert_value(n) for n in c] if isinstance(c, list) else c for c in chosen]
    wrong = [] if chosen else [Mistake(group, f"{parsed.get_value_string()} matches no option")]
    for one in chosen:
        names = one if isinstance(one, list) else [one.text if isinstance(one, QuotedString) else one]
        wrong += [
            Mistake(group, f"there is no {_name(n)}", suggest(str(n), options, all_of=LISTED))
            for n in names
            if n not in options
        ]
        if isinstance(one, list) and not several:
            wrong.append(Mistake(group, f"{value} is a list", f"a run has one {group}"))
        if isinstance(one, list) and "none" in one and len(one) > 1:
            wrong.append(Mistake(group, f"'none' among others in {value}", "leave it out"))
    if wrong:
        raise ConfigError(wrong)
    single = None if sweep else [chosen[0]] if several and isinstance(chosen[0], str) else chosen[0]
    return ParsedOverride(
        group, f"{'' if group in line.defaults else '+'}{group}={value}", single, True, sweep
    )


def _name(option: Any) -> str:
    return "null" if option is None else repr(option)
