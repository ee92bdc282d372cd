"""The papers' recipes behind the shipped experiments: where values come from, and which one a run follows.

``ganlab/assets/recipes.yaml`` holds the provenance; the values are those of the experiment files, composed.
No torch here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ganlab.config import compose
from ganlab.config.files import groups, read
from ganlab.errors import ConfigError
from ganlab.system.paths import ASSETS

SOURCES = ("paper", "code", "ganlab")


@dataclass(frozen=True)
class Origin:
    """Where a value comes from. paper, code: what that source has where it is not the recipe's value."""

    source: str
    where: str = ""
    note: str = ""
    paper: Any = None
    code: Any = None
    value: Any = None
    fixed: bool = False  # whether ``value`` was given

    @property
    def disputed(self) -> bool:
        """Whether a source is silent or has something else."""
        return self.paper is not None or self.code is not None


@dataclass(frozen=True)
class Recipe:
    """An experiment's recipe. rows: name -> overrides; settings: those of the paper's table."""

    experiment: str
    paper: str
    what: str
    settings: tuple[str, ...] = ()
    rows: Mapping[str, Sequence[str]] = field(default_factory=dict)
    origins: Mapping[str, Origin] = field(default_factory=dict)

    def origin(self, key: str) -> Origin | None:
        """Of a key, or of the part it belongs to (``loss`` for ``loss.margin``)."""
        while key:
            if key in self.origins:
                return self.origins[key]
            key = key.rpartition(".")[0]
        return None


@functools.cache
def table() -> dict[str, Any]:
    """The whole of ``recipes.yaml``."""
    return read(ASSETS / "recipes.yaml")[0]


@functools.cache
def load(experiment: str) -> Recipe | None:
    """The recipe of an experiment; None if the table has none."""
    told = table()["recipes"].get(experiment)
    if told is None:
        return None
    keys: dict[str, Any] = {}
    for block in told.get("blocks", []):
        keys |= table()["blocks"][block]
    keys |= told.get("keys", {})
    origins = {key: Origin(**fact, fixed="value" in fact) for key, fact in keys.items()}
    rows, settings = told.get("rows", {}), tuple(told.get("settings", ()))
    return Recipe(experiment, told["paper"] or "", told["what"], settings, rows, origins)


@functools.cache
def composed(words: tuple[str, ...]) -> dict[str, Any]:
    """A shipped experiment's tree, for reading only."""
    return compose.compose(list(words)).tree


def is_irrelevant(key: str) -> bool:
    """Whether a key moves no result beyond rounding, or is the run's own."""
    return any(key == k or key.startswith(f"{k}.") for k in table()["silent"])


@dataclass(frozen=True)
class Match:
    """What a run is held against: a recipe, its row, and the tree of both; ``why``: how it was found."""

    recipe: Recipe
    row: str
    tree: dict[str, Any]
    why: str


def match(tree: Mapping[str, Any], experiment: str) -> Match:
    """The recipe of a run's tree: that of its experiment, else of the shipped one nearest to it.

    Raises ConfigError if the run is like none of them: it then has no architecture that any experiment has.
    """
    recipe = load(experiment) if experiment else None
    why = ""
    if recipe is None:
        recipe = nearest(tree)
        unknown = f"no recipe is known for experiment {experiment!r}"
        said = unknown if experiment else "no experiment is recorded"
        why = f"{said}; the nearest by net, data and loss is {recipe.experiment}"
    words = [f"+experiment={recipe.experiment}"]
    if tree.get("setting") in recipe.settings:
        words.append(f"setting={tree['setting']}")
    row = _row(tree, recipe)
    return Match(recipe, row, composed((*words, *recipe.rows.get(row, ()))), why)


def nearest(tree: Mapping[str, Any]) -> Recipe:
    """The recipe whose experiment shares most with the tree: net above all, then data, head, loss, norms."""
    best: tuple[int, Recipe] | None = None
    for name in table()["recipes"]:
        recipe = load(name)
        if recipe is None or name not in groups([]).get("experiment", []):
            continue
        points = _shared(tree, composed((f"+experiment={name}",)))
        if best is None or points > best[0]:
            best = points, recipe
    if best is None or best[0] < _WEIGHTS["architecture._target_"]:
        fix = "name a run folder of ganlab's, or overrides with +experiment="
        raise ConfigError("architecture", "is that of no shipped experiment", fix)
    return best[1]


_WEIGHTS = {
    "architecture._target_": 100,
    "dataset._target_": 20,
    "architecture.head": 15,
    "dataset.resolution": 10,
    "loss._target_": 5,
    "setting": 3,
    "steps": 1,
}


def _shared(tree: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    points = sum(w for key, w in _WEIGHTS.items() if value_at(tree, key) == value_at(other, key))
    ours, theirs = (set(t.get("normalization") or {}) for t in (tree, other))
    return points + 2 * (ours == theirs)


def _row(tree: Mapping[str, Any], recipe: Recipe) -> str:
    """The row that the run is, by normalization, loss and head: the best fitting one, the first of equals."""

    def fits(name: str) -> int:
        other = composed((f"+experiment={recipe.experiment}", *recipe.rows[name]))
        same_norms = set(tree.get("normalization") or {}) == set(other.get("normalization") or {})
        keys = {"loss._target_": 2, "architecture.head": 1}
        return 4 * same_norms + sum(
            w for key, w in keys.items() if value_at(tree, key) == value_at(other, key)
        )

    return max(recipe.rows, key=fits, default="")


def value_at(tree: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key; None where there is none."""
    node: Any = tree
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node
