"""Sorts runs into sections (dataset and net) and cells (method and setting); a cell's runs are its seeds.

Runs are averaged only if they differ in nothing but the seed. A method whose runs differ in anything else
(updates, width, loss, any config key) is split into variants named after the difference. Scores are averaged
only under one protocol.
"""

from __future__ import annotations

import functools
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ganlab import text
from ganlab.config.files import find, read
from ganlab.papers import labels, published
from ganlab.report.read.collect import Run, Score

# Config keys that don't affect a score, or that the section, seed or protocol already cover.
_IGNORED = (
    *("seed", "label_seed", "run_dir", "device", "threads", "deterministic", "keep_checkpoints", "resume"),
    *("save_every", "log_every", "sample_every", "spectral_every", "eval_every", "eval_start"),
    *("dataset.path", "name", "validation", "validation_n", "keep_every", "data_memory_gb"),
)
_IGNORED_GROUPS = ("metric.", "hydra.")
_SETTING = ("setting", "d_steps", "optimizer.")  # what a setting chooses
MAX_GROUPS = 40  # drawn and compared with each other
_SCALE = ("steps", "architecture.width", "batch_size")  # always named where they differ within a section


class Key(NamedTuple):
    """What one figure shows: a score, of one checkpoint, under one protocol."""

    score: str
    checkpoint: str
    protocol_id: str


class Summary(NamedTuple):
    """A cell's score: mean and sample std over ``n`` runs (std None for one run).

    ``mark``: "" if every run finished, else "div.", "1/2 div.", "unf.", "fail", ...
    """

    mean: float | None
    std: float | None
    n: int
    mark: str


@dataclass
class Cell:
    """The runs of one method at one setting."""

    runs: list[Run] = field(default_factory=list)

    @property
    def mark(self) -> str:
        """Abbreviation of which runs did not finish; "" if all did."""
        counts = Counter(r.status for r in self.runs)
        parts = []
        for statuses, word in (
            (("diverged",), "div."),
            (("failed",), "fail"),
            (("running", "stopped"), "unf."),
        ):
            if n := sum(counts[status] for status in statuses):
                parts.append(word if n == len(self.runs) else f"{n}/{len(self.runs)} {word}")
        return " ".join(parts)

    def scores(self, key: Key) -> list[tuple[Run, Score]]:
        """The scores of the finished runs, or of the others if none finished."""
        pairs = [(run, score) for run in self.runs for score in run.scores]
        matches = [(r, s) for r, s in pairs if (s.name, s.checkpoint, s.protocol_id) == key]
        finished = [pair for pair in matches if pair[0].status == "finished"]
        return finished or matches

    def summary(self, key: Key) -> Summary:
        values = [s.value for _, s in self.scores(key)]
        mean = statistics.fmean(values) if values else None
        return Summary(mean, statistics.stdev(values) if len(values) > 1 else None, len(values), self.mark)


class Group(NamedTuple):
    """One group of a figure: a method, and its variant where the section has several."""

    method: str
    variant: str

    @property
    def label(self) -> str:
        name = labels.method_label(self.method)
        return f"{name}, {self.variant}" if self.variant else name


Cells = dict[tuple[Group, str], Cell]


def groups(cells: Cells) -> list[Group]:
    """The methods in the paper's order, the variants of each in natural order."""
    return sorted(
        {g for g, _ in cells}, key=lambda g: (*labels.method_rank(g.method), labels.natural(g.variant))
    )


def settings(cells: Cells) -> list[str]:
    """A to F, then others."""
    return sorted({s for _, s in cells}, key=labels.setting_rank)


@dataclass
class Section:
    """The runs on one dataset with one architecture; ``cells`` by group and setting."""

    dataset: str  # as in the config: cifar10, digits, folder
    dataset_path: str  # name of the file or folder, for ``folder`` datasets
    resolution: str
    architecture: str
    runs: list[Run] = field(default_factory=list)
    cells: Cells = field(default_factory=dict)

    @property
    def title(self) -> str:
        name = labels.DATASETS.get(self.dataset, self.dataset) or "unknown dataset"
        if self.dataset == "folder" and self.dataset_path:
            name = self.dataset_path
        net = labels.ARCHITECTURES.get(self.architecture, self.architecture) or "unknown net"
        return f"{name} {self.resolution}×{self.resolution}, {net}" if self.resolution else f"{name}, {net}"

    @property
    def net(self) -> str:
        """The kind of net as in published.csv: ``resnet`` for every size."""
        return self.architecture.rstrip("0123456789_-")

    @property
    def pixels(self) -> int | None:
        return int(self.resolution) if self.resolution.isascii() and self.resolution.isdigit() else None

    @property
    def groups(self) -> list[Group]:
        return groups(self.cells)

    @property
    def crowded(self) -> bool:
        """Whether there are too many groups to draw or to compare in pairs, as in a random set."""
        return len({group for group, _ in self.cells}) > MAX_GROUPS

    @property
    def settings(self) -> list[str]:
        return settings(self.cells)

    def first_run(self, group: Group) -> Run:
        """A run of the group, with whose config it is compared."""
        return next(cell.runs[0] for (g, _), cell in self.cells.items() if g == group)

    def settings_of(self, group: Group) -> list[str]:
        return sorted((s for g, s in self.cells if g == group), key=labels.setting_rank)

    def loss(self, group: Group) -> str:
        return published.loss_name(self.first_run(group).text("loss"))

    def published_method(self, group: Group) -> str:
        """The group's method as in published.csv."""
        run = self.first_run(group)
        return published.canonical_method(group.method, run.text("loss"), run.config)

    @property
    def published_dataset(self) -> tuple[str, str]:
        """The dataset as in published.csv, and why ours is not the same ("" if it is)."""
        return published.canonical_dataset(self.dataset, self.dataset_path)

    def cells_for(self, key: Key) -> Cells:
        """The cells in a figure of ``key``: those with the score, and those that ended without it."""

        def empty(cell: Cell) -> bool:
            return bool(cell.mark) and all(s.name != key.score for r in cell.runs for s in r.scores)

        return {place: cell for place, cell in self.cells.items() if cell.scores(key) or empty(cell)}

    def score_keys(self, checkpoint: str | None = None) -> list[Key]:
        """Every score, checkpoint and protocol of the runs; the most common protocol of a score first."""
        counts = Counter(Key(s.name, s.checkpoint, s.protocol_id) for r in self.runs for s in r.scores)
        keys = [k for k in counts if checkpoint is None or k.checkpoint == checkpoint]
        return sorted(keys, key=lambda k: (labels.score_rank(k.score), k.checkpoint != "last", -counts[k], k))

    def protocol(self, key: Key) -> dict[str, Any]:
        """The protocol record of a key."""
        scores = (s for r in self.runs for s in r.scores)
        return next((s.protocol for s in scores if s.protocol_id == key.protocol_id), {})

    def scales(self) -> tuple[list[float], list[float]]:
        """The configured generator updates and widths of its runs, sorted."""
        steps = {s for r in self.runs if (s := r.scale[0]) is not None}
        widths = {w for r in self.runs if (w := r.scale[1]) is not None}
        return sorted(steps), sorted(widths)


def sections(runs: Iterable[Run]) -> list[Section]:
    """Sort readable runs into sections and cells."""
    by_key: dict[tuple[str, ...], Section] = {}
    for run in runs:
        if run.problem:
            continue
        dataset = run.text("dataset") or text.clean(run.config.get("dataset.name") or "")
        path = run.text("dataset_path") if dataset == "folder" else ""
        resolution = text.clean(run.config.get("dataset.resolution") or "", 8)
        key = (dataset, path, resolution, run.text("architecture"))
        by_key.setdefault(key, Section(*key)).runs.append(run)
    for section in by_key.values():
        for run, variant in _variants(section.runs):
            group = Group(run.text("method"), variant)
            section.cells.setdefault((group, run.text("setting")), Cell()).runs.append(run)
    return [by_key[key] for key in sorted(by_key)]


def ranked_keys(sections: Iterable[Section]) -> Iterator[tuple[Section, Key]]:
    """The scores of last checkpoints that have a good direction, by section."""
    for section in sections:
        yield from ((section, key) for key in section.score_keys("last") if labels.better(key.score))


def _variants(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    """Each run with its variant: how it differs, besides the seed, from other runs of its method."""
    recipes = {id(r): _recipe(r) for r in runs}
    shared = {key for key in _SCALE if len({repr(recipes[id(r)].get(key)) for r in runs}) > 1}
    implied_loss = {m for r in runs if {"gan-gp", "wgan-gp"} & set((m := r.text("method")).split("+"))}
    losses = {_loss(recipes[id(r)]) for r in runs if r.text("method") not in implied_loss}
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        by_method.setdefault(run.text("method"), []).append(run)
    variants = []
    for method, peers in by_method.items():
        by_setting: dict[str, list[Run]] = {}
        for run in peers:
            by_setting.setdefault(run.text("setting"), []).append(run)
        keys = shared | _differing([recipes[id(r)] for r in peers], of_setting=False)
        if len(losses) > 1 and method not in implied_loss:
            keys.add("loss._target_")
        for seeds in by_setting.values():
            keys |= _differing([recipes[id(r)] for r in seeds], of_setting=True)
        variants += [(run, _variant_name(recipes[id(run)], keys)) for run in peers]
    return variants


def _recipe(run: Run) -> dict[str, Any]:
    """The run's config, without the keys that don't affect its scores."""
    if not run.config:  # all that result.json has
        return {"steps": run.number("steps"), "loss._target_": run.text("loss")}
    config = {**_defaults(), **run.config}  # a run older than a key used what is now its default
    return {k: v for k, v in config.items() if k not in _IGNORED and not k.startswith(_IGNORED_GROUPS)}


@functools.cache
def _defaults() -> dict[str, Any]:
    """Default values of the top-level config keys."""
    path = find("train", [])
    assert path is not None, "configs/train.yaml is part of the package"
    return {k: v for k, v in read(path)[0].items() if isinstance(v, bool | int | float | str) and k[0] != "_"}


def _differing(recipes: Sequence[dict[str, Any]], of_setting: bool) -> set[str]:
    keys = {key for recipe in recipes for key in recipe if key.startswith(_SETTING) == of_setting}
    return {key for key in keys if len({repr(recipe.get(key)) for recipe in recipes}) > 1}


def _variant_name(recipe: dict[str, Any], keys: set[str]) -> str:
    """``1,000 updates, hinge, d_steps 5``: the values of at most three keys, and a digest of the rest."""
    if "loss._target_" in keys:
        keys = {k for k in keys if not k.startswith("loss.")} | {"loss._target_"}
    keys = keys - {k.removesuffix("._target_") for k in keys if k.endswith("._target_")}  # null, or an object
    ordered = sorted(keys, key=lambda k: (_SCALE.index(k) if k in _SCALE else len(_SCALE), k))
    parts = [_variant_part(key, recipe.get(key)) for key in ordered[:3]]
    if len(ordered) > 3:
        rest = repr([(key, recipe.get(key)) for key in ordered[3:]])
        parts.append(f"+{len(ordered) - 3} keys {labels.slug('x', rest)[-6:]}")
    return ", ".join(parts)


def _loss(recipe: dict[str, Any]) -> str:
    """The loss's name, from its class or its config group."""
    return text.clean(str(recipe.get("loss._target_") or "unknown loss").rsplit(".", 1)[-1].lower(), 20)


def _variant_part(key: str, value: object) -> str:
    if key == "steps" and isinstance(value, (int, float)):
        return f"{labels.count(value)} updates"
    if key == "loss._target_":
        return _loss({key: value})
    if key.endswith("._target_"):  # an object: its key and its class
        key, value = key.removesuffix("._target_"), "none" if value is None else str(value).rsplit(".", 1)[-1]
    text_value = "unset" if value is None else f"{value:g}" if isinstance(value, float) else value
    short = {"architecture.width": "width", "batch_size": "batch"}.get(key, key.rsplit(".", 1)[-1])
    short = f"D's {short}" if key.startswith("d_optimizer.") else short
    return f"{text.clean(short, 24)} {text.clean(text_value, 20)}"
