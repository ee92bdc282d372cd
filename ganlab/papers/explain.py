"""``ganlab explain``: how a run, or overrides not yet run, differ from the paper's recipe, key by key.

Lists what differs, where the recipe's own values rest on a choice (paper and code disagree, or the paper is
silent), and what is ganlab's own. Offline; a run folder is explained without torch, overrides are checked
as for training, which loads it.
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
    """One key. here, recipe: values in words. source: of the recipe's value. paper, code: if they differ."""

    key: str
    here: str
    recipe: str
    source: str
    where: str
    paper: str
    code: str
    note: str


class Explanation(NamedTuple):
    """A run against its recipe.

    differing: other values than the recipe's. open: as the recipe, whose sources differ or are silent. own:
    as the recipe, ganlab's own choice. same: how many other keys are as in the recipe.
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
    """Explain the run folder ``run``, or what ``overrides`` would run, and print it.

    Raises DataError if the folder is no run's, ConfigError with every mistake of the overrides.
    """
    if run:
        tree, experiment = saved_config(run)
        name = run
    else:
        made = compose.compose(overrides, config_dirs)
        if wrong := compose.mistakes(made):
            raise ConfigError(wrong)
        name, tree = " ".join(overrides) or "ganlab train", made.tree
        experiment = str(made.choices.get("experiment") or "")
    found = against(clean(name, 200), tree, recipes.match(tree, experiment))
    print(json.dumps(plain(found), indent=1, ensure_ascii=False) if as_json else format_explanation(found))
    return found


def saved_config(run: str) -> tuple[dict[str, Any], str]:
    """The config and the experiment that a run folder records. Raises DataError, ConfigError."""
    folder = RunFolder(run)
    saved = folder.read_config()
    if saved is None:
        raise DataError(run, "is not a run folder: it has no config.yaml", "name a folder under outputs/")
    result = read_json(folder.result)
    experiment = result.get("experiment") if isinstance(result, dict) else None
    return saved, experiment if isinstance(experiment, str) else ""


def against(name: str, tree: Mapping[str, Any], match: Match) -> Explanation:
    """Every key of the run and the recipe, sorted into what differs, what is open and what is our own."""
    mine, theirs = _comparable(tree), _comparable(match.tree)
    _by_name(mine, theirs, "metric", "protocol")
    changed = [d for d in differences(theirs, mine) if not recipes.is_irrelevant(d.key)]
    differing = []
    for d in changed:
        for key, recipe, here in _pieces(d.key, d.stored, d.requested):
            differing.append(_line(key, here, recipe, match.recipe.origin(key.partition("[")[0])))
    touched = {line.key.partition("[")[0] for line in differing}
    open_, own, same = [], [], 0
    for key, node in _leaves(theirs):
        if recipes.is_irrelevant(key) or any(key == t or key.startswith(f"{t}.") for t in touched):
            continue
        origin = match.recipe.origins.get(key)
        if origin is not None and origin.fixed and not _is(node, origin.value):
            origin = None  # another row or setting of the table: the fact is not about it
        line = _line(key, node, node, origin)
        if origin is not None and origin.disputed:
            open_.append(line)
        elif origin is not None and origin.source == "ganlab":
            own.append(line)
        else:
            same += 1
    return Explanation(name, match, sorted(differing, key=_rank), sorted(open_, key=_rank), own, same)


def _comparable(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with the values that stand for each other made one."""
    made: dict[str, Any] = copy.deepcopy(dict(tree))
    for key in ("g_batch_size",):
        if made.get(key) == made.get("batch_size"):
            made[key] = None  # null stands for batch_size
    return made


def _by_name(mine: dict[str, Any], theirs: dict[str, Any], *place: str) -> None:
    """Two protocols of different names are one difference, not ten."""
    parts = [recipes.value_at(t, ".".join(place[:-1])) for t in (mine, theirs)]
    nodes = [p.get(place[-1]) if isinstance(p, dict) else None for p in parts]
    names = [n.get("name") if isinstance(n, dict) else None for n in nodes]
    if None not in names and names[0] != names[1]:
        for part, name in zip(parts, names, strict=True):
            part[place[-1]] = name


def _pieces(key: str, recipe: Any, here: Any) -> Iterator[tuple[str, Any, Any]]:
    """A difference, split where lists of equal length differ in some of their items."""
    if isinstance(recipe, list) and isinstance(here, list) and len(recipe) == len(here):
        for i, (a, b) in enumerate(zip(recipe, here, strict=True)):
            if a != b:
                yield f"{key}[{i}]", a, b
    elif here is not ABSENT:  # a run from before there was the key has its default, which is the recipe's
        yield key, recipe, here
    elif "normalization." in key:
        yield key, recipe, "none"


def _leaves(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key -> value; a part with a class is a key of its own too."""
    if isinstance(node, dict) and node:
        if where and "_target_" in node:
            yield where, node
        for key, below in node.items():
            yield from _leaves(below, f"{where}.{key}" if where else str(key))
    else:
        yield where, node


def _line(key: str, here: Any, recipe: Any, origin: Origin | None) -> Line:
    if recipe is ABSENT:
        origin = Origin("not in this row")
    origin = origin or Origin("the experiment file")
    return Line(
        key=clean(key, 80),
        here=value(here, key),
        recipe=value(recipe, key),
        source=origin.source,
        where=origin.where,
        paper=_or_empty(origin.paper),
        code=_or_empty(origin.code),
        note=origin.note,
    )


def _is(value: Any, told: Any) -> bool:
    """Whether a config value is what recipes.yaml has: a part is told by its name or its class."""
    node = value.get("name", value.get("_target_")) if isinstance(value, dict) else value
    return bool(node == told)


def _or_empty(told: Any) -> str:
    return "" if told is None else value(told)


def value(told: Any, key: str = "") -> str:
    """A config value in words: a part by its name or class, with the file of a dataset; lists as written."""
    if told is ABSENT:
        return "–"
    if isinstance(told, dict):
        name = clean(str(told.get("name", told.get("_target_", "several keys"))).rsplit(".", 1)[-1], 40)
        path = told.get("path")
        return f"{name} ({clean(Path(str(path)).name, 60)})" if path else name
    if isinstance(told, bool) or told is None:
        return {True: "true", False: "false", None: "null"}[told]
    if isinstance(told, float):
        return f"{told:g}"
    if key.endswith("_target_"):
        return clean(str(told).rsplit(".", 1)[-1], 60)
    return clean(told, 60)


_ORDER = (
    *("dataset", "architecture", "normalization", "loss", "class_loss", "prior", "setting", "optimizer"),
    *("d_steps", "steps", "batch_size", "g_batch_size"),
)


def _rank(line: Line) -> tuple[int, str]:
    """The parts first, then the schedule, then the rest; scoring last."""
    top = line.key.partition(".")[0].partition("[")[0]
    if top == "metric":
        return len(_ORDER) + 1, line.key
    return (_ORDER.index(top) if top in _ORDER else len(_ORDER)), line.key


def plain(found: Explanation) -> dict[str, Any]:
    """For ``--json``."""
    recipe = found.match.recipe
    about = {"experiment": recipe.experiment, "paper": recipe.paper, "what": recipe.what}
    return {
        "run": found.name,
        "recipe": about | {"row": found.match.row, "found_by": found.match.why or "the run's experiment"},
        "differing": [line._asdict() for line in found.differing],
        "open": [line._asdict() for line in found.open],
        "own": [line._asdict() for line in found.own],
        "same": found.same,
    }


def format_explanation(found: Explanation) -> str:
    """For people: tables of plain text."""
    recipe, row = found.match.recipe, found.match.row
    head = f"recipe: {recipe.experiment}, {recipe.paper or 'no paper'}: {recipe.what}"
    lines = [found.name, f"{head}; row: {row}" if row else head]
    if found.match.why:
        lines.append(f"note: {found.match.why}")
    if found.differing:
        lines += ["", f"differs from the recipe ({len(found.differing)})"]
        lines += _columns(
            ("key", "here", "recipe", "the recipe's value is from"),
            [(x.key, x.here, x.recipe, _from(x)) for x in found.differing],
        )
    else:
        lines += ["", "nothing differs from the recipe"]
    if found.open:
        lines += ["", "as the recipe, but its sources differ, or the paper is silent"]
        sources = [(x.paper or _if(x, "paper"), x.code or _if(x, "code")) for x in found.open]
        rows = [(x.key, x.here, *has, x.note) for x, has in zip(found.open, sources, strict=True)]
        lines += _columns(("key", "here", "paper", "code", "note"), rows)
    if found.own:
        listed = ", ".join(f"{x.key} {x.here}" for x in found.own)
        lines += ["", f"as the recipe, ganlab's own choice: {listed}"]
    lines += ["", f"{found.same} other keys are as in the recipe; those that move no result are left out"]
    return "\n".join(lines)


def _if(line: Line, source: str) -> str:
    """The recipe's value if it is that source's."""
    return line.here if line.source == source else "–"


def _from(line: Line) -> str:
    """``paper, Table 1``, and what the others have."""
    parts = [", ".join(p for p in (line.source, line.where) if p)]
    parts += [f"{who}: {has}" for who, has in (("paper", line.paper), ("code", line.code)) if has]
    return "; ".join([*parts, *([line.note] if line.note else [])])


def _columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned columns; the last one may be as long as it likes."""
    table = [heads, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
    return ["  " + "  ".join(f"{w:<{n}}" for w, n in zip(row, widths, strict=True)).rstrip() for row in table]
