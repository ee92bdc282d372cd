"""YAML files and the command line -> one plain tree -> one ``Experiment``.

``compose`` makes the tree, ``build`` the object; both list all mistakes at once. Hydra composes (groups,
defaults lists, interpolation); keys, types and classes are checked against the constructors' signatures.
``${oc.env:NAME}`` is read when a run is built, and kept as it stands in what is saved. Hydra itself is known
to ``overrides.py`` (its grammar), ``composition.py`` and ``sweep.py`` alone.
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

SETTLED = "is settled, for the run is trained"
REOPEN = ("metric.", "device", "threads", "data_memory_gb", "dataset.path")  # `evaluate` may change these


class Composed(NamedTuple):
    """A composed config.

    tree: resolved and plain, to be built. saved: the same for a file, environment variables unread.
    choices: group -> option (None: not chosen; a list for a group of several). overrides: ``key=value``, one
    spelling for one meaning, sorted. text: YAML as composed, interpolations and named files as they stand.
    files: the user's own that went in. also: the groups, for "did you mean".
    """

    tree: dict[str, Any]
    saved: dict[str, Any]
    choices: dict[str, Any]
    overrides: list[str]
    text: str
    files: list[Path]
    also: list[str]


def compose(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Composed:
    """The config of one run; without an experiment and a dataset in ``overrides``, the demo's.

    Raises ConfigError with every mistake of the overrides and the files; if there is one, the mistakes of the
    values are listed too. Imports torch only then. ``config_dirs`` are joined by ``$GANLAB_CONFIGS``.
    """
    line = command_line(overrides, config_dirs)
    wrong, composed = list(line.wrong), None
    try:
        composed, named = composed_from(line)
        wrong += named
    except ConfigError as error:
        wrong += error.mistakes
    if wrong and composed and "experiment" not in line.bad:  # what a dropped choice would bring is unknown
        told = {m.where for m in wrong}
        others = (m for m in mistakes(composed) if m.where.partition(".")[0] not in line.bad)
        wrong += [m for m in others if m.where not in told]
    if wrong or composed is None:
        raise ConfigError(dict.fromkeys(wrong))
    return composed


def mistakes(composed: Composed) -> list[Mistake]:
    """All that is wrong with a composed tree; a key of a user's file is followed by that file and line."""
    return [_located(m, composed) for m in trees.mistakes(composed.tree, also=composed.also)]


def build(composed: Composed | dict[str, Any], where: str = "") -> Any:
    """The object of a composed config, or of a plain tree that is the part ``where`` of one.

    Raises ConfigError with all mistakes at once; a DataError or EnvError of a constructor comes through.
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
    """The tree of a run's ``config.yaml``, ready to build, with other ways to score it (``REOPEN``).

    ``metric.protocol=NAME`` and ``metric.extractor=NAME`` name files; ``metric=[is,fid]`` chooses scores.
    Raises ConfigError with every mistake.
    """
    line, inside = _parted(command_line(overrides, config_dirs, demo=False))
    tree: dict[str, Any] = copy.deepcopy(dict(saved))
    wrong = list(line.wrong)
    for one in line.given:
        if one.key == "metric" and isinstance(one.value, list):
            found = [read(path)[0] for n in one.value if (path := find(f"metric/{n}", line.dirs))]
            tree.setdefault("metric", {})["scores"] = {k: v for content in found for k, v in content.items()}
        elif one.group or not one.key.startswith(REOPEN):
            known = list(trees.all_keys(tree))
            near = errors.nearest(one.key, known) or one.key
            there = one.group or one.key in known
            may = ", ".join(f"{k}*" if k.endswith(".") else k for k in REOPEN)
            fix = (
                f"did you mean {near!r}?" if near != one.key and near.startswith(REOPEN) else f"change {may}"
            )
            wrong.append(Mistake(one.key, SETTLED if there else trees.NO_KEY, fix))
        else:
            _put(tree, one.key, one.value)
    wrong += _put_named(tree, line.dirs)
    wrong += _put_inside(tree, inside)
    tree = with_environment(tree)
    if wrong:
        named = {m.where for m in wrong}
        raise ConfigError([*wrong, *(m for m in trees.mistakes(tree) if m.where not in named)])
    return tree


def show(composed: Composed, *, resolve: bool = False, package: str | None = None) -> str:
    """The config as YAML: as composed, or with ``resolve`` as a run's ``config.yaml`` would have it.

    ``package``: only the part under that key. Raises ConfigError if there is none.
    """
    text = composed.text
    if resolve:
        text = yaml.safe_dump(composed.saved, sort_keys=False, allow_unicode=True)
    if package:
        node = yaml.safe_load(text)
        for name in package.split("."):
            if not isinstance(node, dict) or name not in node:
                raise ConfigError(package, "is no key", suggest(package, trees.all_keys(composed.tree)))
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
    """What is right on a command line, composed, and what is wrong with the rest.

    Raises ConfigError with the mistakes of the files.
    """
    rest, inside = _parted(line)
    raw = compose_raw(rest)
    _forget_unchosen(raw, line)
    wrong = [*raw.wrong, *_put_named(raw.tree, line.dirs)]
    wrong += _put_inside(raw.tree, inside)
    _put_named(raw.saved, line.dirs)
    _put_inside(raw.saved, inside)
    if not any(one.key == "run_dir" for one in line.given):
        wrong += _place_of_file(raw.tree.get("run_dir"))
    text = raw.text + "".join(f"# and {one.canonical()}\n" for one in inside)
    choices: dict[str, Any] = {"experiment": None}
    for group, options in raw.options.items():  # Hydra reads a list from its end
        choices[group] = options[::-1] if line.defaults.get(group) else options[0]
    choices.update({g: ["none"] for g, several in line.defaults.items() if several and g not in choices})
    also = [g for g in line.known if "/" not in g and g not in NAMED.values()]
    return Composed(raw.tree, raw.saved, choices, line.canonical(), text, raw.files, also), wrong


def _forget_unchosen(raw: HydraResult, line: CommandLine) -> None:
    """Drop what a file says of an option that the command line chose others for.

    ``normalization=wc`` beside an experiment that sets ``normalization.gp.weight``, say: without ``gp`` that
    weight is nobody's. Words of the command line about such an option stay, and are told as mistakes.
    """
    for group, several in line.defaults.items():
        if not several or not any(one.group and one.key == group for one in line.given):
            continue
        for option in set(line.known[group]) - set(raw.options.get(group, [])):
            if not any(one.key.startswith(f"{group}.{option}.") for one in line.given):
                for tree in (raw.tree, raw.saved):
                    there = (tree.get(group) or {}).get(option)
                    if isinstance(there, dict) and "_target_" not in there:
                        del tree[group][option]


def _place_of_file(run_dir: Any) -> list[Mistake]:
    """A shared config may choose a folder below the working folder, and not name it after a variable."""
    if not isinstance(run_dir, str):
        return []
    outside = Path(run_dir).is_absolute() or run_dir.startswith("~") or ".." in Path(run_dir).parts
    if outside or redact(run_dir) != run_dir:
        why = "outside the working folder" if outside else "from the environment"
        fix = f"write run_dir={run_dir} on the command line, if you want that"
        return [Mistake("run_dir", f"a config file says {run_dir!r}, {why}", fix)]
    return []


def _parted(line: CommandLine) -> tuple[CommandLine, list[ParsedOverride]]:
    """A command line without what changes keys of named files (``metric.protocol.seed=1``), and that."""
    inside = [g for g in line.given if g.key.startswith(tuple(f"{key}." for key in NAMED))]
    inside = [g for g in inside if not g.text.startswith("~")]
    return line._replace(given=[g for g in line.given if g not in inside]), inside


def _put_inside(tree: dict[str, Any], inside: Sequence[ParsedOverride]) -> list[Mistake]:
    """Change keys of files that ``_put_named`` has put in. Where none was, its own mistake is enough."""
    wrong = []
    for one in inside:
        named = next(key for key in NAMED if one.key.startswith(f"{key}."))
        there = (tree.get("metric") or {}).get(named.partition(".")[2])
        if isinstance(there, dict):
            _put(tree, one.key, one.value)
        elif there is None:
            wrong.append(Mistake(one.key, f"{named} is null", f"choose one, as {named}=NAME"))
    return wrong


def _put_named(tree: dict[str, Any], dirs: Sequence[Path]) -> list[Mistake]:
    """Put the content of named files (``metric.protocol=NAME``) in the place of their names."""
    wrong = []
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
                fix = f"write the name of a file in {folder}/ of a --config-dir"
            wrong.append(Mistake(key, f"there is no {name!r}", fix))
    extractor, weights = metric.get("extractor"), metric.get("weights")
    if isinstance(extractor, dict) and weights is not None and not wrong:
        if "weights" in extractor:
            extractor["weights"] = weights
        else:
            wrong.append(Mistake("metric.weights", "this extractor takes none", "leave it out"))
    return wrong


def _located(mistake: Mistake, composed: Composed) -> Mistake:
    """Name the user's file, and its line, that most likely holds a wrong key.

    Or tell how to leave out one that the experiment sets for another part than the command line chose.
    """
    where, fix = mistake.where, mistake.fix
    key = re.escape(where.rpartition(".")[2])
    for path in reversed(composed.files):
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
            if re.search(rf"(?:^|[\s{{,]){key}\s*:", line):
                return mistake._replace(what=f"{mistake.what} ({path.name}:{number})")
    words = [word.lstrip("+~").partition("=")[0] for word in composed.overrides]
    if " has no '" in mistake.what and not fix.startswith("did you mean") and where not in words:
        return mistake._replace(fix=f"the experiment sets it: ~{where} leaves it out")
    return mistake
