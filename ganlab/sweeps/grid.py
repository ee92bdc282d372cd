"""Grid files: a paper's table or figure as cells, each with the overrides of one run. Imports no torch."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ganlab.config.files import GRIDS, display, find, options_of, read
from ganlab.errors import ConfigError, Mistake, suggest
from ganlab.sweeps.placement import MAX_CELLS
from ganlab.sweeps.random_search import DRAW, LABEL, RandomSet, collecting, read_labels
from ganlab.sweeps.random_search import overrides as _overrides
from ganlab.sweeps.random_search import read as _read_random

COUNTS = ("successes", "wins")
Axes = dict[str, dict[str, list[str]]]


@dataclass(frozen=True)
class Cell:
    """One run of a grid. ``axes``: axis -> label. ``overrides``: for ``ganlab train``, without run_dir.

    ``chosen``: for a cell of a random set, the value drawn for each key.
    """

    name: str
    axes: dict[str, str]
    overrides: list[str]
    chosen: dict[str, str] = field(default_factory=dict)


class Block(NamedTuple):
    """A product of axes (axis -> label -> overrides), and of the members of a random set if there is one."""

    overrides: list[str]
    axes: Axes
    random: RandomSet | None = None

    @property
    def size(self) -> int:
        """Number of cells."""
        cells = math.prod(len(labels) for labels in self.axes.values())
        return cells * (self.random.n if self.random else 1)


@dataclass(frozen=True)
class Pairs:
    """Pairs of cells that a report compares: those that differ only along ``axis``, which has two labels.

    count: ``successes`` over thresholds, or ``wins``. paper: the one whose counts are printed beside.
    """

    axis: str
    count: str
    paper: str = ""


@dataclass(frozen=True)
class Grid:
    """The content of a grid file."""

    name: str
    title: str
    blocks: list[Block] = field(default_factory=list)
    pairs: Pairs | None = None

    def axes(self) -> dict[str, list[str]]:
        """All axes of all blocks, with their labels."""
        axes: dict[str, dict[str, None]] = {}
        for block in self.blocks:
            for axis, values in block.axes.items():
                axes.setdefault(axis, {}).update(dict.fromkeys(values))
        return {axis: list(labels) for axis, labels in axes.items()}

    def axis_keys(self) -> list[str]:
        """The keys that ``restrict`` handles: the axes, and ``n`` and ``seed`` of random sets."""
        return [*self.axes(), *(["n", "seed"] if any(block.random for block in self.blocks) else [])]

    def metadata(self) -> dict[str, Any]:
        """For ``grid.json``: the pairs that a report compares, and how a random set was drawn."""
        sets = [block.random.record() for block in self.blocks if block.random]
        pairs = {"pairs": asdict(self.pairs)} if self.pairs else {}
        return {**pairs, **({"random": sets[0]} if sets else {})}

    def folder_suffixes(self) -> list[str]:
        """For the folder's name: the seed of a random set, if it differs from the file's."""
        sets = [block.random for block in self.blocks if block.random]
        return [f"seed{s.seed}" for s in sets[:1] if s.seed != s.own_seed]


def load(name: str, dirs: Sequence[Path] = ()) -> Grid:
    """Read a grid file. Raises ConfigError with all its mistakes."""
    names = options_of(GRIDS, dirs)
    if name not in names:
        fix = suggest(name, names, all_of="'ganlab sweep --help' lists them")
        raise ConfigError("grid", f"no grid {name!r}", fix)
    path = find(f"{GRIDS}/{name}", dirs)
    assert path is not None
    content, _ = read(path)
    file, mistakes = display(path), list[Mistake]()
    for key in content:
        if key not in ("title", "blocks", "pairs"):
            fix = suggest(key, ["title", "blocks", "pairs"])
            mistakes.append(Mistake(f"{file}: {key}", "unknown key of a grid", fix))
    blocks = content.get("blocks")
    if not isinstance(content.get("title"), str):
        mistakes.append(Mistake(f"{file}: title", "is missing", "write title: what the grid is"))
    if not isinstance(blocks, list) or not blocks:
        what = "must be a list of blocks"
        mistakes.append(Mistake(f"{file}: blocks", what, "write '- axes: {setting: [A, B]}'"))
        blocks = []
    grid = Grid(name, str(content.get("title")))
    for number, block in enumerate(blocks):
        with collecting(mistakes):
            grid.blocks.append(_read_block(block, f"{file}: blocks[{number}]"))
    pairs = None
    if "pairs" in content and not mistakes:
        with collecting(mistakes):
            pairs = _read_pairs(content["pairs"], grid.axes(), f"{file}: pairs")
    if mistakes:
        raise ConfigError(mistakes)
    return replace(grid, pairs=pairs)


def _read_pairs(content: Any, axes: Mapping[str, list[str]], where: str) -> Pairs:
    if not isinstance(content, dict) or not {"axis", "count"} <= {*content} <= {"axis", "count", "paper"}:
        fix = "write {axis: method, count: successes}"
        raise ConfigError(where, "must have the keys axis and count, and may have paper", fix)
    pairs = Pairs(str(content["axis"]), str(content["count"]), str(content.get("paper", "")))
    if len(axes.get(pairs.axis, [])) != 2:
        what = f"{pairs.axis!r} must be an axis with two labels"
        raise ConfigError(f"{where}.axis", what, "name such an axis")
    if pairs.count not in COUNTS:
        raise ConfigError(f"{where}.count", f"unknown count {pairs.count!r}", suggest(pairs.count, COUNTS))
    return pairs


def _read_block(block: Any, where: str) -> Block:
    if not isinstance(block, dict):
        raise ConfigError(where, "must be a mapping", "write overrides: [...] and axes: {...}")
    mistakes = [
        Mistake(f"{where}.{key}", "unknown key of a block", suggest(str(key), Block._fields))
        for key in block
        if key not in Block._fields
    ]
    axes: Axes = {}
    content = block.get("axes", {})
    if not isinstance(content, dict):
        mistakes.append(Mistake(f"{where}.axes", "must be a mapping", "write axes: {setting: [A, B]}"))
        content = {}
    for axis, values in content.items():
        with collecting(mistakes):
            axes[str(axis)] = _read_axis(str(axis), values, f"{where}.axes.{axis}")
    overrides: list[str] = []
    with collecting(mistakes):
        overrides = _overrides(block.get("overrides", []), f"{where}.overrides")
    random = None
    if "random" in block and not mistakes:
        random = _read_random(block["random"], axes, f"{where}.random")
    if mistakes:
        raise ConfigError(mistakes)
    return Block(overrides, axes, random)


def _read_axis(axis: str, values: Any, where: str) -> dict[str, list[str]]:
    """Label -> overrides of an axis. In a list, the entries are values of the key named like the axis."""
    labels = read_labels(values, where, lambda v: (_label(axis, v), [f"{axis}={v}"]), _overrides)
    for label in labels:
        if not LABEL.fullmatch(label):
            raise ConfigError(where, f"{label!r} can't name a folder", "use letters, digits, . _ + -")
    return labels


def _label(axis: str, value: Any) -> str:
    """``A`` for setting=A, ``s0`` for seed=0, ``d_steps5`` for d_steps=5."""
    if isinstance(value, str) and not re.fullmatch(r"[-+.\d]+", value):
        return value
    return f"{'s' if axis == 'seed' else axis.rpartition('.')[2]}{value}"


def restrict(grid: Grid, words: Sequence[str]) -> tuple[Grid, list[str]]:
    """Apply the words of form ``axis=a,b`` to the grid; returns it and the other words.

    An axis of labels is restricted to those named; an axis of values takes the new ones, as in
    ``seed=0,1,2``. A block without the axis stays as it is. Raises ConfigError.
    """
    axes, rest, mistakes = grid.axes(), list[str](), list[Mistake]()
    blocks = [block._replace(axes=dict(block.axes)) for block in grid.blocks]
    sets = any(block.random for block in blocks)
    for word in words:
        axis, equals, text = word.partition("=")
        with collecting(mistakes):
            if equals and sets and axis in ("n", "seed"):
                blocks = [b._replace(random=b.random and b.random.with_setting(axis, text)) for b in blocks]
            elif equals and axis in axes:
                blocks = _restrict_axis(blocks, axis, text, axes[axis])
            else:
                rest.append(word)
    if mistakes:
        raise ConfigError(mistakes)
    return replace(grid, blocks=blocks), rest


def _restrict_axis(blocks: Sequence[Block], axis: str, text: str, labels: Sequence[str]) -> list[Block]:
    """Restrict an axis to some of its ``labels``, or give it new values. Raises ConfigError."""
    requested = [v for v in text.strip("[]").split(",") if v]
    if not requested:
        raise ConfigError(axis, "has no value", f"write {axis}={','.join(labels)}")
    if all(axis not in block.axes or _is_list(axis, block.axes[axis]) for block in blocks):
        new = {_label(axis, value): [f"{axis}={value}"] for value in requested}
        return [b._replace(axes={**b.axes, axis: new}) if axis in b.axes else b for b in blocks]
    if missing := [label for label in requested if label not in labels]:
        raise ConfigError(Mistake(axis, f"no label {m!r}", suggest(m, labels)) for m in missing)
    kept = []
    for block in blocks:
        if axis not in block.axes:
            kept.append(block)
        elif some := {label: v for label, v in block.axes[axis].items() if label in requested}:
            kept.append(block._replace(axes={**block.axes, axis: some}))
    return kept


def _is_list(axis: str, values: Mapping[str, list[str]]) -> bool:
    """Whether an axis was written as a list of values of its key."""
    return all(len(v) == 1 and v[0].partition("=")[0] == axis for v in values.values())


def cells(grid: Grid, overrides: Sequence[str] = (), max_cells: int = MAX_CELLS) -> list[Cell]:
    """All cells, block by block, with ``overrides`` appended to each.

    Raises ConfigError for duplicate names; and for no cell or more than ``max_cells``, before making them.
    """
    count = sum(block.size for block in grid.blocks)
    if not 0 < count <= max_cells:
        fix = "choose part of an axis, or raise max_jobs="
        raise ConfigError(f"grid {grid.name}", f"{count} cells; must be 1 to {max_cells}", fix)
    result = list(_cells(grid, overrides))
    names = [cell.name for cell in result]
    if duplicates := sorted({n for n in names if names.count(n) > 1}):
        what = f"two blocks have a cell named {duplicates[0]!r}"
        raise ConfigError(f"grid {grid.name}", what, "give their axes different labels")
    return result


def _cells(grid: Grid, extra: Sequence[str]) -> Iterator[Cell]:
    for overrides, axes, random in grid.blocks:
        for member in random.members() if random else [None]:
            for labels in itertools.product(*axes.values()):
                at = dict(zip(axes, labels, strict=True))
                own = [word for axis, label in at.items() for word in axes[axis][label]]
                if member is None:
                    yield Cell("-".join(labels) or "run", at, [*overrides, *own, *extra])
                    continue
                own += member.cell_overrides(labels)
                name, at = "-".join([member.label, *labels]), {DRAW: member.label, **at}
                yield Cell(name, at, [*overrides, *own, *extra], member.chosen)


SCALED = ("steps", "eval_every", "save_every", "log_every", "sample_every", "lr_decay_start")
WIDTH = "architecture.width"
_NOT_IN_NAME = ("device", "threads", "data_memory_gb", "keep_checkpoints")  # do not affect results


class Scale(NamedTuple):
    """Fractions of a grid's updates and of its networks' width."""

    updates: float = 1.0
    width: float = 1.0

    @property
    def whole(self) -> bool:
        return self == Scale()

    def __str__(self) -> str:
        return f"{self.updates:g} of the updates, {self.width:g} of the width"


def scaled(tree: Mapping[str, Any], scale: Scale, overrides: Sequence[str]) -> dict[str, Any]:
    """Key -> value of the changes that scale a composed cell; keys set by ``overrides`` are left alone.

    Raises ConfigError if the width is scaled and the architecture has none.
    """
    overridden = {w.lstrip("+~").partition("=")[0] for w in overrides}
    changes: dict[str, Any] = {}
    for key in SCALED if scale.updates != 1 else ():
        value = tree.get(key)
        if isinstance(value, int) and value > 0 and key not in overridden:
            changes[key] = max(1, round(value * scale.updates))
    if scale.width != 1 and WIDTH not in overridden:
        width = (tree.get("architecture") or {}).get("width")
        if not isinstance(width, int | float):
            raise ConfigError("scale", "the architecture has no width", "write scale=UPDATES")
        changes[WIDTH] = float(f"{width * scale.width:g}")
    return changes


def parse_scale(text: str) -> Scale:
    """``0.01`` or ``0.01,0.125``: updates, width. Raises ConfigError."""
    parts = text.strip("[]").split(",")
    try:
        numbers = [float(p) for p in parts]
        assert len(numbers) in (1, 2)
        assert all(0 < n <= 1 for n in numbers)
    except (ValueError, AssertionError):
        fix = "write scale=UPDATES or scale=UPDATES,WIDTH, such as scale=0.01,0.125"
        raise ConfigError("scale", f"{text!r} is not one or two fractions", fix) from None
    return Scale(*numbers)


def folder_name(grid: str, scale: Scale, overrides: Sequence[str], suffixes: Sequence[str] = ()) -> str:
    """``NAME``, ``NAME-u0.01`` or ``NAME-u0.01-w0.125`` with ``suffixes`` and a hash of ``overrides``."""
    parts = [grid, *suffixes]
    if scale.updates != 1:
        parts.append(f"u{scale.updates:g}")
    if scale.width != 1:
        parts.append(f"w{scale.width:g}")
    if hashed := sorted(
        w.lstrip("+") for w in overrides if w.lstrip("+~").partition("=")[0] not in _NOT_IN_NAME
    ):
        parts.append(hashlib.sha256("\n".join(hashed).encode()).hexdigest()[:6])
    return "-".join(parts)
