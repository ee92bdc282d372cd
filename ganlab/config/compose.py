"""YAML files and the command line -> one plain tree -> one ``Experiment``.

``compose`` makes the tree, ``build`` the object; both list all mistakes at once. Hydra composes (groups,
defaults lists, interpolation); keys, types and classes are checked against the constructors' signatures.
``${oc.env:NAME}`` is read when a run is built, and saved unread. Only ``overrides.py`` (Hydra's grammar),
``hydra_compose.py`` and ``sweeps/`` import Hydra.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped, unused-ignore]

from ganlab import errors
from ganlab.config import build as build_module
from ganlab.config import check as trees
from ganlab.config.files import NAMED, find, groups, read
from ganlab.config.hydra_compose import HydraResult, compose_raw, with_environment
from ganlab.config.overrides import CommandLine, ParsedOverride, command_line
from ganlab.errors import ConfigError, Mistake, suggest
from ganlab.system.environment import redact

SETTLED = "cannot change after training"
REOPEN = ("metric.", "device", "threads", "data_memory_gb", "dataset.path")  # `evaluate` may change these


class Composed(NamedTuple):
    """A composed config.

    tree: resolved and plain, to be built. saved: the same for a file, environment variables unread.
    choices: group -> option (None: not chosen; a list where several may be). overrides: canonical
    ``key=value``, sorted. text: YAML as composed, interpolations and named files unresolved. files: the
    user's files that were read. also: the groups, for "did you mean".
    """

    tree: dict[str, Any]
    saved: dict[str, Any]
    choices: dict[str, Any]
    overrides: list[str]
    text: str
    files: list[Path]
    also: list[str]


def compose(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Composed:
    """Compose the config of one run: the demo's if ``overrides`` name neither experiment nor dataset.

    Raises ConfigError with every mistake in the overrides and the files; if there is one, those in the values
    are listed too. Imports torch only then. ``$GANLAB_CONFIGS`` adds to ``config_dirs``.
    """
    line = command_line(overrides, config_dirs)
    problems, composed = list(line.mistakes), None
    try:
        composed, file_mistakes = composed_from(line)
        problems += file_mistakes
    except ConfigError as error:
        problems += error.mistakes
    if problems and composed and "experiment" not in line.bad_keys:  # its keys are unknown
        reported = {m.where for m in problems}
        others = (m for m in mistakes(composed) if m.where.partition(".")[0] not in line.bad_keys)
        problems += [m for m in others if m.where not in reported]
    if problems or composed is None:
        raise ConfigError(dict.fromkeys(problems))
    return composed


def mistakes(composed: Composed) -> list[Mistake]:
    """All mistakes in a composed tree; one in a user's file names that file and line."""
    return [_located(m, composed) for m in trees.mistakes(composed.tree, also=composed.also)]


def build(composed: Composed | dict[str, Any], where: str = "") -> Any:
    """Build the object of a composed config, or of a plain tree that is the part ``where`` of one.

    Raises ConfigError with all mistakes at once; a DataError or EnvError of a constructor propagates.
    """
    if isinstance(composed, dict):
        return build_module.build(composed, where=where)
    try:
        return build_module.build(composed.tree, also=composed.also)
    except ConfigError as error:
        raise ConfigError(_located(m, composed) for m in error.mistakes) from None


def reopen(
    saved: Mapping[str, Any], overrides: Sequence[str] = (), config_dirs: Sequence[str] = ()
) -> dict[str, Any]:
    """The tree of a run's ``config.yaml``, ready to build, with the keys in ``REOPEN`` overridden.

    ``metric.protocol=NAME`` and ``metric.extractor=NAME`` name files; ``metric=[is,fid]`` chooses scores.
    Raises ConfigError with every mistake.
    """
    line, nested = _split_nested(command_line(overrides, config_dirs, demo=False))
    tree: dict[str, Any] = copy.deepcopy(dict(saved))
    problems = list(line.mistakes)
    for override in line.overrides:
        key, value = override.key, override.value
        if key == "metric" and isinstance(value, list):
            files = [read(path)[0] for n in value if (path := find(f"metric/{n}", line.dirs))]
            tree.setdefault("metric", {})["scores"] = {k: v for content in files for k, v in content.items()}
        elif override.group or not key.startswith(REOPEN):
            keys = list(trees.all_keys(tree))
            near = errors.nearest(key, keys) or key
            exists = override.group or key in keys
            fix = f"did you mean {near!r}?"
            if near == key or not near.startswith(REOPEN):
                fix = "change " + ", ".join(f"{k}*" if k.endswith(".") else k for k in REOPEN)
            problems.append(Mistake(key, SETTLED if exists else trees.NO_KEY, fix))
        else:
            _put(tree, key, value)
    problems += _put_named(tree, line.dirs)
    problems += _put_nested(tree, nested)
    tree = with_environment(tree)
    if problems:
        reported = {m.where for m in problems}
        raise ConfigError([*problems, *(m for m in trees.mistakes(tree) if m.where not in reported)])
    return tree


def show(composed: Composed, *, resolve: bool = False, package: str | None = None) -> str:
    """The config as YAML: as composed, or with ``resolve`` as in a run's ``config.yaml``.

    ``package``: only the part under that key. Raises ConfigError if it does not exist.
    """
    text = composed.text
    if resolve:
        text = yaml.safe_dump(composed.saved, sort_keys=False, allow_unicode=True)
    if package:
        node = yaml.safe_load(text)
        for name in package.split("."):
            if not isinstance(node, dict) or name not in node:
                raise ConfigError(package, trees.NO_KEY, suggest(package, trees.all_keys(composed.tree)))
            node = node[name]
        text = yaml.safe_dump(node, sort_keys=False, allow_unicode=True).removesuffix("...\n")
    return text


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node: Any = tree
    for name in parents:
        if not isinstance(node.get(name), dict):
            node[name] = {}
        node = node[name]
    node[last] = value


def composed_from(line: CommandLine) -> tuple[Composed, list[Mistake]]:
    """Compose the valid overrides of a command line; returns the config and the mistakes.

    Raises ConfigError with the mistakes in files.
    """
    rest, nested = _split_nested(line)
    raw = compose_raw(rest)
    _drop_unchosen(raw, line)
    problems = [*raw.mistakes, *_put_named(raw.tree, line.dirs)]
    problems += _put_nested(raw.tree, nested)
    _put_named(raw.saved, line.dirs)
    _put_nested(raw.saved, nested)
    if not any(o.key == "run_dir" for o in line.overrides):
        problems += _check_run_dir(raw.tree.get("run_dir"))
    text = raw.text + "".join(f"# and {o.canonical()}\n" for o in nested)
    choices: dict[str, Any] = {"experiment": None}
    for group, options in raw.options.items():  # Hydra reads a list from its end
        choices[group] = options[::-1] if line.defaults.get(group) else options[0]
    choices.update({g: ["none"] for g, several in line.defaults.items() if several and g not in choices})
    also = [g for g in line.options if "/" not in g and g not in NAMED.values()]
    return Composed(raw.tree, raw.saved, choices, line.canonical(), text, raw.files, also), problems


def _drop_unchosen(raw: HydraResult, line: CommandLine) -> None:
    """Drop a file's settings of an option that the command line replaced with others.

    With ``normalization=wc``, an experiment's ``normalization.gp.weight`` applies to nothing. Overrides on
    the command line of such an option stay, and are reported as mistakes.
    """
    for group, several in line.defaults.items():
        if not several or not any(o.group and o.key == group for o in line.overrides):
            continue
        for option in set(line.options[group]) - set(raw.options.get(group, [])):
            if not any(o.key.startswith(f"{group}.{option}.") for o in line.overrides):
                for tree in (raw.tree, raw.saved):
                    settings = (tree.get(group) or {}).get(option)
                    if isinstance(settings, dict) and "_target_" not in settings:
                        del tree[group][option]


def _check_run_dir(run_dir: Any) -> list[Mistake]:
    """A config file may choose a run folder below the working folder, without environment variables."""
    if not isinstance(run_dir, str):
        return []
    outside = Path(run_dir).is_absolute() or run_dir.startswith("~") or ".." in Path(run_dir).parts
    if outside or redact(run_dir) != run_dir:
        why = "outside the working folder" if outside else "which reads the environment"
        fix = f"to allow it, write run_dir={run_dir} on the command line"
        return [Mistake("run_dir", f"a config file sets {run_dir!r}, {why}", fix)]
    return []


def _split_nested(line: CommandLine) -> tuple[CommandLine, list[ParsedOverride]]:
    """Split off the overrides of keys in named files (``metric.protocol.seed=1``)."""
    nested = [o for o in line.overrides if o.key.startswith(tuple(f"{key}." for key in NAMED))]
    nested = [o for o in nested if not o.text.startswith("~")]
    return line._replace(overrides=[o for o in line.overrides if o not in nested]), nested


def _put_nested(tree: dict[str, Any], nested: Sequence[ParsedOverride]) -> list[Mistake]:
    """Set keys of the files that ``_put_named`` inserted; an unknown file is reported there."""
    problems = []
    for override in nested:
        parent = next(key for key in NAMED if override.key.startswith(f"{key}."))
        content = (tree.get("metric") or {}).get(parent.partition(".")[2])
        if isinstance(content, dict):
            _put(tree, override.key, override.value)
        elif content is None:
            problems.append(Mistake(override.key, f"{parent} is null", f"choose one with {parent}=NAME"))
    return problems


def _put_named(tree: dict[str, Any], dirs: Sequence[Path]) -> list[Mistake]:
    """Replace the names of named files (``metric.protocol=NAME``) with their content."""
    problems = []
    metric = tree.get("metric")
    if not isinstance(metric, dict):
        return []
    for key, folder in NAMED.items():
        name = metric.get(key.partition(".")[2])
        if name is None or isinstance(name, dict):
            continue
        options = groups(dirs).get(folder, [])
        if str(name) in options and (path := find(f"{folder}/{name}", dirs)):
            metric[key.partition(".")[2]] = read(path)[0]
        else:
            fix = suggest(str(name), options)
            if re.search(r"[/\\]", str(name)):
                fix = f"give the name of a file in {folder}/ of a --config-dir"
            problems.append(Mistake(key, f"there is no {name!r}", fix))
    extractor, weights = metric.get("extractor"), metric.get("weights")
    if isinstance(extractor, dict) and weights is not None and not problems:
        if "weights" in extractor:
            extractor["weights"] = weights
        else:
            problems.append(Mistake("metric.weights", "this extractor takes no weights", "omit it"))
    return problems


def _located(mistake: Mistake, composed: Composed) -> Mistake:
    """Add the user's file and line that most likely set the key.

    Or the fix for a key that the experiment sets for a part which the command line replaced.
    """
    where, fix = mistake.where, mistake.fix
    key = re.escape(where.rpartition(".")[2])
    for path in reversed(composed.files):
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
            if re.search(rf"(?:^|[\s{{,]){key}\s*:", line):
                return mistake._replace(what=f"{mistake.what} ({path.name}:{number})")
    words = [word.lstrip("+~").partition("=")[0] for word in composed.overrides]
    if " has no '" in mistake.what and not fix.startswith("did you mean") and where not in words:
        return mistake._replace(fix=f"the experiment sets it; ~{where} removes it")
    return mistake
