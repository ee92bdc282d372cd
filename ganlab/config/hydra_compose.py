"""Hydra at work: groups, defaults lists, interpolation; read by our own reader, told in our own words."""

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
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
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
    """What one composition read: options by group, the user's files, and the mistakes of files."""

    def __init__(self, dirs: Sequence[Path] = ()) -> None:
        self.dirs, self.options = list(dirs), dict[str, list[str]]()
        self.files, self.wrong = list[Path](), list[Mistake]()


_reading = _Reading()


class CheckedFiles(FileConfigSource):
    """Hydra's source of config files, through our own reader; a damaged file is noted and counts as empty."""

    @staticmethod
    def scheme() -> str:
        return "ganlab"

    def load_config(self, config_path: str) -> ConfigResult:
        name = config_path.removesuffix(".yaml")
        path, group = Path(self.path) / f"{name}.yaml", name.partition("/")[0]
        content, package = dict[str, Any](), None
        try:
            find(name, _reading.dirs)  # refuses a file that would hide behind a shipped one
            content, package = read(path)
            if group == "experiment" and package != "_global_":
                fix = "make that its first line"
                raise ConfigError(display(path), "does not begin with '# @package _global_'", fix)
        except ConfigError as error:
            _reading.wrong += error.mistakes
        if group != name and group != "hydra":
            _reading.options.setdefault(group, []).append(name.removeprefix(f"{group}/"))
        if Path(self.path) != config_dir():
            _reading.files.append(path)
        made = OmegaConf.create(content)
        return ConfigResult(self.provider, f"ganlab://{self.path}", made, {"package": package})


@contextmanager
def hydra_over(dirs: Sequence[Path]) -> Iterator[Hydra]:
    """Hydra on the shipped configs and the user's folders; its global state is as before afterwards."""
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
    """What Hydra composed.

    tree: resolved; saved: the same with environment variables unread; text: YAML, unresolved; options: group
    -> what went in, in order; files: the user's files among them; wrong: overrides that Hydra refused, and
    broken interpolations (None in ``tree``).
    """

    tree: dict[str, Any]
    saved: dict[str, Any]
    text: str
    options: dict[str, list[str]]
    files: list[Path]
    wrong: list[Mistake]


def compose_raw(line: CommandLine) -> HydraResult:
    """Compose what is right on a command line. Raises ConfigError with the mistakes of the files."""
    given, refused, wrong = list(line.given), list[Mistake](), list[Mistake]()
    while True:
        with hydra_over(line.dirs) as hydra:
            try:
                texts = [g.text for g in given]
                config = hydra.compose_config("train", texts, RunMode.RUN, from_shell=False)
            except Exception as error:  # whatever Hydra raises here is about the user's words and files
                if _reading.wrong:
                    raise ConfigError(_reading.wrong) from error
                refused.append(explain_hydra_error(error, line))
                rest = [g for g in given if g.key != refused[-1].where]
                if len(rest) == len(given):
                    raise ConfigError(refused) from error
                given = rest
                continue
            options, files, wrong = _reading.options, _reading.files, _reading.wrong
        break
    if wrong or (files and (wrong := foreign_hydra(config, env_set=False))):
        raise ConfigError(wrong)
    with open_dict(config):
        del config["hydra"]
    text, (tree, broken) = OmegaConf.to_yaml(config), _resolve(config)
    with unread():
        saved, _ = _resolve(config)
    return HydraResult(tree, saved, text, options, files, refused + broken)


def with_environment(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved tree with its environment variables read. Raises ConfigError where one is not set."""
    if ENV not in json.dumps(saved, default=str):
        return saved
    tree, wrong = _resolve(OmegaConf.create(saved))
    if wrong:
        raise ConfigError(wrong)
    return tree


def explain_hydra_error(error: Exception, line: CommandLine) -> Mistake:
    """A complaint of Hydra's about a file, as "file: what; fix"."""
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
    known = {g: o for g, o in line.known.items() if g not in NAMED.values()}
    if match := re.match(r"Could not (?:find|load) '([^']+)'", text):
        group, _, option = match[1].lstrip("/").partition("/")
        if group in known and where == display(config_dir() / "train.yaml"):  # an experiment's "override"
            asking = [g.canonical() for g in line.given if g.group and g.key not in line.defaults]
            what = f"there is no {option!r}" + (f", which {asking[0]} asks for" if asking else "")
            return Mistake(group, what, suggest(option, known[group], all_of=LISTED))
        if group in known:
            return Mistake(where, f"{group} has no {option!r}", suggest(option, known[group], all_of=LISTED))
        return Mistake(where, f"there is no config {match[1]!r}", suggest(group or option, known))
    if match := re.match(r"Could not override '([^']+)'", text):
        return Mistake(where, f"overrides {match[1]!r}, which is no group", suggest(match[1], known))
    if match := re.match(r"Multiple values for (\S+?)\.", text):
        return Mistake(where, f"{match[1]} has more than one value", f"write 'override /{match[1]}: ...'")
    if match := re.match(r"Could not delete (?:from config\. )?'([^'=]+)", text):
        return Mistake(match[1], "can't be taken out: it is not there", "leave it out")
    if match := re.match(r"(\S+) appears more than once", text):
        return Mistake(where, f"{match[1]} is in the defaults list twice", "keep one")
    if match := re.match(r"Error merging override \+*([^=]+)=(.*)", text):
        return Mistake(
            match[1], f"{match[2]!r} is not of the kind that stands there", "write a value like it"
        )
    lines = [part.strip() for part in (text or str(cause)).splitlines() if part.strip()]
    told = [part for part in lines if not part.endswith("raised while composing config:")]
    what = told[0] if told else type(error).__name__
    return Mistake(where, f"can't be composed: {what}", "mend the config")


@functools.cache
def _own_hydra(words: tuple[str, ...]) -> dict[str, Any]:
    """Hydra's own settings when no user's file has a say, after ``words`` of ours."""
    with hydra_over([]) as hydra:
        config = hydra.compose_config("train", list(words), RunMode.RUN, from_shell=False)
    return _flat(config.hydra)


def _flat(config: DictConfig) -> dict[str, Any]:
    """Hydra's node as dotted key -> unresolved value, without what differs from call to call."""
    node = OmegaConf.to_container(config, resolve=False)
    assert isinstance(node, dict)
    for changing in ("runtime", "overrides", "mode"):
        node.pop(changing, None)
    for changing in ("name", "override_dirname", "id", "num", "config_name"):
        node["job"].pop(changing, None)
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
    """Settings of Hydra's own that a config file changed: they can name code, and are the command line's.

    ``env_set``: whether the command line set environment variables; ``own``: overrides of ours. A launcher
    may be chosen, but only a plugin's own class, without objects in its settings.
    """
    now, before = _flat(config.hydra), _own_hydra(own)
    changed = [k for k in {*now, *before} if now.get(k) != before.get(k)]
    allowed = ["hydra.launcher", "hydra.sweeper", "hydra.verbose"] + ["hydra.job.env_set"] * env_set
    wrong = [
        Mistake(key, "is set by a config file", "only the command line may set it")
        for key in sorted(changed)
        if not key.startswith(tuple(allowed))
    ]
    for key, value in now.items():
        plugin = key in ("hydra.launcher._target_", "hydra.sweeper._target_")
        if key.endswith("._target_") and not (plugin and str(value).startswith(_OWN_PLUGINS)):
            wrong.append(Mistake(key, f"{value!r} is refused", "only Hydra's own plugins may be named"))
    return wrong


def _read(name: str, *default: Any) -> Any:
    """``${oc.env:NAME}``, noted as what is shown and saved unread."""
    environment.register(name)
    return oc.env(name, *default)


OmegaConf.register_new_resolver("oc.env", _read, replace=True)


@contextmanager
def unread() -> Iterator[None]:
    """Inside, ``${oc.env:NAME}`` stands for itself."""
    OmegaConf.register_new_resolver("oc.env", lambda *a: f"{ENV}{','.join(map(str, a))}}}", replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", _read, replace=True)


def _resolve(config: DictConfig) -> tuple[dict[str, Any], list[Mistake]]:
    """Plain values, interpolations resolved, "???" as it is; and the interpolations that fail, None then."""
    wrong = list(_broken(config))
    if wrong:
        config = copy.deepcopy(config)
        for mistake in wrong:
            OmegaConf.update(config, mistake.where, None, force_add=True)
    plain = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    return plain, wrong  # type: ignore[return-value]


def _broken(config: Any, where: str = "") -> Iterator[Mistake]:
    """The interpolations that fail."""
    for key in range(len(config)) if isinstance(config, ListConfig) else list(config):
        here = f"{where}.{key}" if where else str(key)
        points = OmegaConf.is_interpolation(config, key)
        try:
            value = config[key]
        except MissingMandatoryValue:
            continue
        except (OmegaConfBaseException, RecursionError) as error:
            what = str(error).splitlines()[0]
            if isinstance(error, RecursionError) or "Recursive" in what:
                what = "refers to itself"
            what = re.sub(r"^\w+ raised while resolving interpolation: ", "", what).strip('"')
            yield Mistake(here, what, "mend what stands in ${...}")
            continue
        if OmegaConf.is_config(value) and not points:
            yield from _broken(value, here)
