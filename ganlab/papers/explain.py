"""``ganlab explain``: how a run, or a set of overrides, differs from the paper's recipe, key by key.

Lists the differences, the recipe's values on which paper and code disagree or the paper is silent, and the
values chosen by ganlab. Offline. A run folder needs no torch; overrides are checked as for training, which
loads it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ganlab.config import compose
from ganlab.errors import ConfigError, DataError
from ganlab.papers import recipes
from ganlab.papers.recipes import Match, Origin
from ganlab.runs.folder import ABSENT, RunFolder, differences
from ganlab.system.files import read_json
from ganlab.text import clean


class Line(NamedTuple):
    """One key with formatted values. source, where: of the recipe's value; paper, code: where they differ."""

    key: str
    here: str
    recipe: str
    source: str
    where: str
    paper: str
    code: str
    note: str


class Explanation(NamedTuple):
    """A run compared with its recipe.

    differing: keys whose values differ from the recipe's. Keys equal to the recipe's: ``open``, whose sources
    disagree or are silent; ``own``, chosen by ganlab; ``same``, the number of all others.
    """

    name: str
    match: Match
    differing: list[Line]
    open: list[Line]
    own: list[Line]
    same: int


def explain(
    run: str = "",
    overrides: Sequence[str] = (),
    config_dirs: Sequence[str] = (),
    as_json: bool = False,
) -> Explanation:
    """Explain the run folder ``run``, or the run that ``overrides`` describe, and print the result.

    Raises DataError if ``run`` is not a run folder, ConfigError with every mistake in the overrides.
    """
    if run:
        tree, experiment = saved_config(run)
        name = run
    else:
        composed = compose.compose(overrides, config_dirs)
        if mistakes := compose.mistakes(composed):
            raise ConfigError(mistakes)
        name, tree = " ".join(overrides) or "ganlab train", composed.tree
        experiment = str(composed.choices.get("experiment") or "")
    explanation = explain_tree(clean(name, 200), tree, recipes.match(tree, experiment))
    record = to_record(explanation)
    print(json.dumps(record, indent=1, ensure_ascii=False) if as_json else format_explanation(explanation))
    return explanation


def saved_config(run: str) -> tuple[dict[str, Any], str]:
    """A run folder's config tree and experiment. Raises DataError, ConfigError."""
    folder = RunFolder(run)
    saved = folder.read_config()
    if saved is None:
        raise DataError(run, "is not a run folder: it has no config.yaml", "name a folder under outputs/")
    result = read_json(folder.result)
    experiment = result.get("experiment") if isinstance(result, dict) else None
    return saved, experiment if isinstance(experiment, str) else ""


def explain_tree(name: str, tree: Mapping[str, Any], match: Match) -> Explanation:
    """Sort every key of a run's config tree and its recipe into the parts of an Explanation."""
    mine, theirs = _comparable(tree), _comparable(match.tree)
    _merge_protocols(mine, theirs)
    changed = [d for d in differences(theirs, mine) if not recipes.is_irrelevant(d.key)]
    differing = []
    for d in changed:
        for key, recipe, here in _split(d.key, d.stored, d.requested):
            differing.append(_line(key, here, recipe, match.recipe.origin(key.partition("[")[0])))
    changed_keys = {line.key.partition("[")[0] for line in differing}
    open_, own, same = [], [], 0
    for key, node in _leaves(theirs):
        if recipes.is_irrelevant(key) or any(key == t or key.startswith(f"{t}.") for t in changed_keys):
            continue
        origin = match.recipe.origins.get(key)
        if origin is not None and origin.fixed and not _matches(node, origin.value):
            origin = None  # from another row or setting of the table
        line = _line(key, node, node, origin)
        if origin is not None and origin.disputed:
            open_.append(line)
        elif origin is not None and origin.source == "ganlab":
            own.append(line)
        else:
            same += 1
    return Explanation(name, match, sorted(differing, key=_rank), sorted(open_, key=_rank), own, same)


def _comparable(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which equivalent values are equal."""
    normalized: dict[str, Any] = copy.deepcopy(dict(tree))
    if normalized.get("g_batch_size") == normalized.get("batch_size"):
        normalized["g_batch_size"] = None  # null means batch_size
    return normalized


def _merge_protocols(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Replace protocols with different names by their names: one difference instead of ten."""
    names = [recipes.value_at(tree, "metric.protocol.name") for tree in (mine, theirs)]
    if None not in names and names[0] != names[1]:
        mine["metric"]["protocol"], theirs["metric"]["protocol"] = names


def _split(key: str, recipe: Any, here: Any) -> Iterator[tuple[str, Any, Any]]:
    """A difference, split into items where two lists have equal length."""
    if isinstance(recipe, list) and isinstance(here, list) and len(recipe) == len(here):
        for i, (a, b) in enumerate(zip(recipe, here, strict=True)):
            if a != b:
                yield f"{key}[{i}]", a, b
    elif here is not ABSENT:  # an older run lacks the key: it used the default, as the recipe does
        yield key, recipe, here
    elif key.startswith(("normalization.", "technique.")):
        yield key, recipe, "none"


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; an object with a class is also a key itself."""
    if isinstance(node, dict) and node:
        if prefix and "_target_" in node:
            yield prefix, node
        for key, child in node.items():
            yield from _leaves(child, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def _line(key: str, here: Any, recipe: Any, origin: Origin | None) -> Line:
    if recipe is ABSENT:
        origin = Origin("not in this row")
    origin = origin or Origin("the experiment file")
    return Line(
        key=clean(key, 80),
        here=format_value(here, key),
        recipe=format_value(recipe, key),
        source=origin.source,
        where=origin.where,
        paper="" if origin.paper is None else format_value(origin.paper),
        code="" if origin.code is None else format_value(origin.code),
        note=origin.note,
    )


def _matches(value: Any, expected: Any) -> bool:
    """Whether a config value equals that of recipes.yaml, which has an object's name or class."""
    node = value.get("name", value.get("_target_")) if isinstance(value, dict) else value
    return bool(node == expected)


def format_value(value: Any, key: str = "") -> str:
    """A config value as text: an object by its name or class, with a dataset's file name."""
    if value is ABSENT:
        return "–"
    if isinstance(value, dict):
        name = clean(str(value.get("name", value.get("_target_", "several keys"))).rsplit(".", 1)[-1], 40)
        path = value.get("path")
        return f"{name} ({clean(Path(str(path)).name, 60)})" if path else name
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if key.endswith("_target_"):
        return clean(str(value).rsplit(".", 1)[-1], 60)
    return clean(value, 60)


_ORDER = (
    *("dataset", "architecture", "normalization", "loss", "class_loss", "prior", "setting", "optimizer"),
    *("d_steps", "steps", "batch_size", "g_batch_size"),
)


def _rank(line: Line) -> tuple[int, str]:
    """Sort key: objects first, then the schedule, then the rest; scoring last."""
    top = line.key.partition(".")[0].partition("[")[0]
    if top == "metric":
        return len(_ORDER) + 1, line.key
    return (_ORDER.index(top) if top in _ORDER else len(_ORDER)), line.key


def to_record(explanation: Explanation) -> dict[str, Any]:
    """An explanation for ``--json``."""
    recipe = explanation.match.recipe
    about = {"experiment": recipe.experiment, "paper": recipe.paper, "what": recipe.what}
    return {
        "run": explanation.name,
        "recipe": about
        | {"row": explanation.match.row, "found_by": explanation.match.reason or "the run's experiment"},
        "differing": [line._asdict() for line in explanation.differing],
        "open": [line._asdict() for line in explanation.open],
        "own": [line._asdict() for line in explanation.own],
        "same": explanation.same,
    }


def format_explanation(explanation: Explanation) -> str:
    """An explanation as text tables."""
    recipe, row = explanation.match.recipe, explanation.match.row
    head = f"recipe: {recipe.experiment}, {recipe.paper or 'no paper'}: {recipe.what}"
    lines = [explanation.name, f"{head}; row: {row}" if row else head]
    if explanation.match.reason:
        lines.append(f"note: {explanation.match.reason}")
    if explanation.differing:
        lines += ["", f"differs from the recipe ({len(explanation.differing)})"]
        lines += _columns(
            ("key", "here", "recipe", "source of the recipe's value"),
            [(x.key, x.here, x.recipe, _format_source(x)) for x in explanation.differing],
        )
    else:
        lines += ["", "nothing differs from the recipe"]
    if explanation.open:
        lines += ["", "same as the recipe, where paper and code disagree or the paper is silent"]
        rows = [
            (x.key, x.here, x.paper or _value_from(x, "paper"), x.code or _value_from(x, "code"), x.note)
            for x in explanation.open
        ]
        lines += _columns(("key", "here", "paper", "code", "note"), rows)
    if explanation.own:
        choices = ", ".join(f"{x.key} {x.here}" for x in explanation.own)
        lines += ["", f"same as the recipe, chosen by ganlab: {choices}"]
    rest = f"{explanation.same} other keys match the recipe; keys that don't affect results are omitted"
    lines += ["", rest]
    return "\n".join(lines)


def _value_from(line: Line, source: str) -> str:
    """The recipe's value if it comes from that source."""
    return line.here if line.source == source else "–"


def _format_source(line: Line) -> str:
    """``paper, Table 1``, and the values of other sources."""
    parts = [", ".join(p for p in (line.source, line.where) if p)]
    parts += [f"{name}: {value}" for name, value in (("paper", line.paper), ("code", line.code)) if value]
    return "; ".join([*parts, *([line.note] if line.note else [])])


def _columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned columns."""
    table = [heads, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
    return ["  " + "  ".join(f"{w:<{n}}" for w, n in zip(row, widths, strict=True)).rstrip() for row in table]
