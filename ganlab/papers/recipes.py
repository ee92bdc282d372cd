"""The papers' recipes behind the shipped experiments: provenance of each value, and matching of runs.

``ganlab/assets/recipes.yaml`` holds the provenance; the values are those of the composed experiment files.
Needs no torch.
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
    """Provenance of a value. paper, code: that source's value where it differs from the recipe's."""

    source: str
    where: str = ""
    note: str = ""
    paper: Any = None
    code: Any = None
    value: Any = None
    fixed: bool = False  # whether recipes.yaml has ``value``

    @property
    def disputed(self) -> bool:
        """Whether a source differs or is silent."""
        return self.paper is not None or self.code is not None


@dataclass(frozen=True)
class Recipe:
    """An experiment's recipe. what: a summary; rows: name -> overrides; settings: of its table."""

    experiment: str
    paper: str
    what: str
    settings: tuple[str, ...] = ()
    rows: Mapping[str, Sequence[str]] = field(default_factory=dict)
    origins: Mapping[str, Origin] = field(default_factory=dict)

    def origin(self, key: str) -> Origin | None:
        """Provenance of a key, or of its closest parent (``loss`` for ``loss.margin``)."""
        while key:
            if key in self.origins:
                return self.origins[key]
            key = key.rpartition(".")[0]
        return None


@functools.cache
def table() -> dict[str, Any]:
    """``recipes.yaml``."""
    return read(ASSETS / "recipes.yaml")[0]


@functools.cache
def load(experiment: str) -> Recipe | None:
    """The recipe of an experiment; None if there is none."""
    node = table()["recipes"].get(experiment)
    if node is None:
        return None
    keys: dict[str, Any] = {}
    for block in node.get("blocks", []):
        keys |= table()["blocks"][block]
    keys |= node.get("keys", {})
    origins = {key: Origin(**fact, fixed="value" in fact) for key, fact in keys.items()}
    rows, settings = node.get("rows", {}), tuple(node.get("settings", ()))
    return Recipe(experiment, node["paper"] or "", node["what"], settings, rows, origins)


@functools.cache
def composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    """The config tree of a shipped experiment with overrides. Cached: don't modify it."""
    return compose.compose(list(overrides)).tree


def is_irrelevant(key: str) -> bool:
    """Whether a key affects no result beyond rounding, or belongs to the single run."""
    return any(key == k or key.startswith(f"{k}.") for k in table()["silent"])


@dataclass(frozen=True)
class Match:
    """The recipe, row and config tree to compare a run with; ``reason``: why, if not by its experiment."""

    recipe: Recipe
    row: str
    tree: dict[str, Any]
    reason: str


def match(tree: Mapping[str, Any], experiment: str) -> Match:
    """The recipe for a run's tree: that of its experiment, else of the closest shipped experiment.

    Raises ConfigError if no shipped experiment has its architecture.
    """
    recipe = load(experiment) if experiment else None
    reason = ""
    if recipe is None:
        recipe = nearest(tree)
        problem = f"no recipe for experiment {experiment!r}" if experiment else "no experiment is recorded"
        reason = f"{problem}; the closest by network, dataset and loss is {recipe.experiment}"
    overrides = [f"+experiment={recipe.experiment}"]
    if tree.get("setting") in recipe.settings:
        overrides.append(f"setting={tree['setting']}")
    row = _row(tree, recipe)
    return Match(recipe, row, composed((*overrides, *recipe.rows.get(row, ()))), reason)


def nearest(tree: Mapping[str, Any]) -> Recipe:
    """The recipe whose experiment shares most with the tree: net first, then dataset, head, loss, norms."""
    best: tuple[int, Recipe] | None = None
    for name in table()["recipes"]:
        recipe = load(name)
        if recipe is None or name not in groups([]).get("experiment", []):
            continue
        points = _shared(tree, composed((f"+experiment={name}",)))
        if best is None or points > best[0]:
            best = points, recipe
    if best is None or best[0] < _WEIGHTS["architecture._target_"]:
        fix = "name a ganlab run folder, or overrides with +experiment="
        raise ConfigError("architecture", "matches no shipped experiment", fix)
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
    """The recipe's row closest to the run in normalization, technique, loss and head; the first of equals."""

    def fits(name: str) -> int:
        other = composed((f"+experiment={recipe.experiment}", *recipe.rows[name]))
        groups = {"normalization": 8, "technique": 4}
        same = sum(w for g, w in groups.items() if set(tree.get(g) or {}) == set(other.get(g) or {}))
        keys = {"loss._target_": 2, "architecture.head": 1}
        return same + sum(w for key, w in keys.items() if value_at(tree, key) == value_at(other, key))

    return max(recipe.rows, key=fits, default="")


def value_at(tree: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; None if absent."""
    node: Any = tree
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node
