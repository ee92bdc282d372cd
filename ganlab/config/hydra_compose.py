"""Compose with Hydra (groups, defaults lists, interpolation), with our own file reader and messages."""

from __future__ import annotations

import copy
import functools
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra import version as hydra_version
from hydra._internal.callbacks import Callbacks as Callbacks  # all private modules are imported here
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra._internal.utils import get_args_parser as get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from omegaconf.resolvers import oc

from ganlab.config.files import NAMED, display, find, read
from ganlab.config.overrides import LISTED, CommandLine
from ganlab.errors import ConfigError, Mistake, suggest
from ganlab.system import environment
from ganlab.system.paths import config_dir

ENV = "${oc.env:"
_OWN_PLUGINS = ("hydra_plugins.", "hydra._internal.core_plugins.")


class _Reading:
    """What one composition read: options by group, the user's files, and mistakes in files."""

    def __init__(self, dirs: Sequence[Path] = ()) -> None:
        self.dirs, self.options = list(dirs), dict[str, list[str]]()
        self.files, self.mistakes = list[Path](), list[Mistake]()


_reading = _Reading()


class CheckedFiles(FileConfigSource):
    """Hydra's config source, through our own reader; a damaged file is recorded and read as empty."""

    @staticmethod
    def scheme() -> str:
        return "ganlab"

    def load_config(self, config_path: str) -> ConfigResult:
        name = config_path.removesuffix(".yaml")
        path, group = Path(self.path) / f"{name}.yaml", name.partition("/")[0]
        content, package = dict[str, Any](), None
        try:
            find(name, _reading.dirs)  # raises for a file that a shipped one would hide
            content, package = read(path)
            if group == "experiment" and package != "_global_":
                fix = "make it the first line"
                raise ConfigError(display(path), "does not start with '# @package _global_'", fix)
        except ConfigError as error:
            _reading.mistakes += error.mistakes
        if group != name and group != "hydra":
            _reading.options.setdefault(group, []).append(name.removeprefix(f"{group}/"))
        if Path(self.path) != config_dir():
            _reading.files.append(path)
        config = OmegaConf.create(content)
        return ConfigResult(self.provider, f"ganlab://{self.path}", config, {"package": package})


@contextmanager
def hydra_over(dirs: Sequence[Path]) -> Iterator[Hydra]:
    """Hydra over the shipped configs and the user's folders; restores Hydra's global state."""
    global _reading
    if CheckedFiles not in Plugins.instance().discover():
        Plugins.instance().register(CheckedFiles)
    hydra_version.setbase("1.3")
    search = create_config_search_path(f"ganlab://{config_dir()}")
    for folder in dirs:
        search.prepend("user", f"ganlab://{folder}", SearchPathQuery(provider="schema"))
    before, outer = GlobalHydra.instance().hydra, _reading
    GlobalHydra.instance().clear()
    _reading = _Reading(dirs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield Hydra.create_main_hydra2(task_name="train", config_search_path=search)
    finally:
        GlobalHydra.instance().hydra, _reading = before, outer


class HydraResult(NamedTuple):
    """A composed config.

    tree: resolved; saved: the same with environment variables unread; text: YAML, unresolved; options: group
    -> its chosen options, in order; files: the user's files among them; mistakes: overrides that Hydra
    rejected, and broken interpolations (None in ``tree``).
    """

    tree: dict[str, Any]
    saved: dict[str, Any]
    text: str
    options: dict[str, list[str]]
    files: list[Path]
    mistakes: list[Mistake]


def compose_raw(line: CommandLine) -> HydraResult:
    """Compose the valid overrides of a command line. Raises ConfigError with the mistakes in files."""
    overrides, rejected, mistakes = list(line.overrides), list[Mistake](), list[Mistake]()
    while True:
        with hydra_over(line.dirs) as hydra:
            try:
                texts = [o.text for o in overrides]
                config = hydra.compose_config("train", texts, RunMode.RUN, from_shell=False)
            except Exception as error:  # whatever Hydra raises here concerns the user's overrides or files
                if _reading.mistakes:
                    raise ConfigError(_reading.mistakes) from error
                rejected.append(explain_hydra_error(error, line))
                rest = [o for o in overrides if o.key != rejected[-1].where]
                if len(rest) == len(overrides):
                    raise ConfigError(rejected) from error
                overrides = rest
                continue
            options, files, mistakes = _reading.options, _reading.files, _reading.mistakes
        break
    if mistakes or (files and (mistakes := foreign_hydra(config, env_set=False))):
        raise ConfigError(mistakes)
    with open_dict(config):
        del config["hydra"]
    text, (tree, broken) = OmegaConf.to_yaml(config), _resolve(config)
    with unread():
        saved, _ = _resolve(config)
    return HydraResult(tree, saved, text, options, files, rejected + broken)


def with_environment(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved tree with its environment variables read. Raises ConfigError if one is not set."""
    if ENV not in json.dumps(saved, default=str):
        return saved
    tree, mistakes = _resolve(OmegaConf.create(saved))
    if mistakes:
        raise ConfigError(mistakes)
    return tree


def explain_hydra_error(error: Exception, line: CommandLine) -> Mistake:
    """Hydra's error about a file or key, as a Mistake."""
    text = str(error).strip()
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    parent = re.match(r"In '?([\w./-]+)'?: ?", text)
    where = "config"
    if parent:
        file = find(parent[1], line.dirs)
        where = display(file) if file else parent[1]
        text = text[parent.end() :]
    elif full_key := getattr(cause, "full_key", None):
        where = str(full_key)
    options = {g: o for g, o in line.options.items() if g not in NAMED.values()}
    if match := re.match(r"Could not (?:find|load) '([^']+)'", text):
        group, _, option = match[1].lstrip("/").partition("/")
        fix = suggest(option, options.get(group, ()), all_of=LISTED.format(group))
        if group in options and where == display(config_dir() / "train.yaml"):  # an experiment's "override"
            added = [o.canonical() for o in line.overrides if o.group and o.key not in line.defaults]
            what = f"there is no {option!r}" + (f", which {added[0]} requires" if added else "")
            return Mistake(group, what, fix)
        if group in options:
            return Mistake(where, f"{group} has no {option!r}", fix)
        return Mistake(where, f"there is no config {match[1]!r}", suggest(group or option, options))
    if match := re.match(r"Could not override '([^']+)'", text):
        return Mistake(where, f"overrides {match[1]!r}, which is not a group", suggest(match[1], options))
    if match := re.match(r"Multiple values for (\S+?)\.", text):
        return Mistake(where, f"{match[1]} has several values", f"write 'override /{match[1]}: ...'")
    if match := re.match(r"Could not delete (?:from config\. )?'([^'=]+)", text):
        return Mistake(match[1], "cannot be removed: it does not exist", "omit it")
    if match := re.match(r"(\S+) appears more than once", text):
        return Mistake(where, f"{match[1]} is in the defaults list twice", "keep one")
    if match := re.match(r"Error merging override \+*([^=]+)=(.*)", text):
        return Mistake(match[1], f"{match[2]!r} has the wrong type", "write a value of the default's type")
    lines = [part.strip() for part in (text or str(cause)).splitlines() if part.strip()]
    reasons = [part for part in lines if not part.endswith("raised while composing config:")]
    what = reasons[0] if reasons else type(error).__name__
    return Mistake(where, f"cannot be composed: {what}", "fix the config")


@functools.cache
def _own_hydra(words: tuple[str, ...]) -> dict[str, Any]:
    """Hydra's own settings without any user file, after the overrides ``words``."""
    with hydra_over([]) as hydra:
        config = hydra.compose_config("train", list(words), RunMode.RUN, from_shell=False)
    return _flat(config.hydra)


def _flat(config: DictConfig) -> dict[str, Any]:
    """Hydra's node as dotted key -> unresolved value, without what varies between calls."""
    node = OmegaConf.to_container(config, resolve=False)
    assert isinstance(node, dict)
    for varying in ("runtime", "overrides", "mode"):
        node.pop(varying, None)
    for varying in ("name", "override_dirname", "id", "num", "config_name"):
        node["job"].pop(varying, None)
    flat: dict[str, Any] = {}

    def walk(value: Any, where: str) -> None:
        if isinstance(value, dict) and value:
            for key, below in value.items():
                walk(below, f"{where}.{key}")
        else:
            flat[where] = value

    walk(node, "hydra")
    return flat


def foreign_hydra(config: DictConfig, *, env_set: bool, own: tuple[str, ...] = ()) -> list[Mistake]:
    """Hydra settings that a config file changed. They can name code, so only the command line may set them.

    ``env_set``: whether the command line set environment variables; ``own``: ganlab's overrides. A launcher
    may be chosen, but only a plugin's own class, without objects in its settings.
    """
    now, before = _flat(config.hydra), _own_hydra(own)
    changed = [k for k in {*now, *before} if now.get(k) != before.get(k)]
    allowed = ["hydra.launcher", "hydra.sweeper", "hydra.verbose"] + ["hydra.job.env_set"] * env_set
    mistakes = [
        Mistake(key, "is set by a config file", "set it on the command line")
        for key in sorted(changed)
        if not key.startswith(tuple(allowed))
    ]
    for key, value in now.items():
        plugin = key in ("hydra.launcher._target_", "hydra.sweeper._target_")
        if key.endswith("._target_") and not (plugin and str(value).startswith(_OWN_PLUGINS)):
            mistakes.append(Mistake(key, f"{value!r} is not allowed", "use one of Hydra's own plugins"))
    return mistakes


def _read(name: str, *default: Any) -> Any:
    """Resolve ``${oc.env:NAME}``, and record it so that it is printed and saved unread."""
    environment.register(name)
    return oc.env(name, *default)


OmegaConf.register_new_resolver("oc.env", _read, replace=True)


@contextmanager
def unread() -> Iterator[None]:
    """Within, ``${oc.env:NAME}`` resolves to itself."""
    OmegaConf.register_new_resolver("oc.env", lambda *a: f"{ENV}{','.join(map(str, a))}}}", replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", _read, replace=True)


def _resolve(config: DictConfig) -> tuple[dict[str, Any], list[Mistake]]:
    """Plain values with interpolations resolved and "???" kept; and the broken interpolations, None there."""
    mistakes = list(_broken(config))
    if mistakes:
        config = copy.deepcopy(config)
        for mistake in mistakes:
            OmegaConf.update(config, mistake.where, None, force_add=True)
    plain = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    return plain, mistakes  # type: ignore[return-value]


def _broken(config: Any, where: str = "") -> Iterator[Mistake]:
    """Yield a Mistake for each interpolation that fails."""
    for key in range(len(config)) if isinstance(config, ListConfig) else list(config):
        path = f"{where}.{key}" if where else str(key)
        interpolated = OmegaConf.is_interpolation(config, key)
        try:
            value = config[key]
        except MissingMandatoryValue:
            continue
        except (OmegaConfBaseException, RecursionError) as error:
            what = str(error).splitlines()[0]
            if isinstance(error, RecursionError) or "Recursive" in what:
                what = "refers to itself"
            what = re.sub(r"^\w+ raised while resolving interpolation: ", "", what).strip('"')
            yield Mistake(path, what, "fix the ${...} expression")
            continue
        if OmegaConf.is_config(value) and not interpolated:
            yield from _broken(value, path)
