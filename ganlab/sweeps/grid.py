"""Grid files: a paper's table or figure as cells, each the overrides of one run; reduced grids. No torch."""

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
from ganlab.sweeps.random_search import DRAW, LABEL, RandomSet
from ganlab.sweeps.random_search import overrides as _overrides
from ganlab.sweeps.random_search import read as _random

MOST = 1000  # cells
COUNTS = ("successes", "wins")  # of pairs


Axes = dict[str, dict[str, list[str]]]


@dataclass(frozen=True)
class Cell:
    """One run of a grid. ``axes``: axis -> label; ``overrides``: for ``ganlab train``, run_dir left out.

    ``chosen``: of a random set's member, what was drawn for each key.
    """

    name: str
    axes: dict[str, str]
    overrides: list[str]
    chosen: dict[str, str] = field(default_factory=dict)


class Block(NamedTuple):
    """A product of axes (axis -> label -> overrides), with every member of a random set if there is one."""

    overrides: list[str]
    axes: Axes
    random: RandomSet | None = None

    @property
    def size(self) -> int:
        """How many cells it has."""
        cells = math.prod(len(labels) for labels in self.axes.values())
        return cells * (self.random.n if self.random else 1)


@dataclass(frozen=True)
class Pairs:
    """Which cells a report compares two by two: those that differ along ``axis`` alone, which has two labels.

    count: ``successes`` of either over thresholds, or the ``wins`` of each. paper: whose counts are beside.
    """

    axis: str
    count: str
    paper: str = ""


@dataclass(frozen=True)
class Grid:
    """A grid file as read."""

    name: str
    title: str
    blocks: list[Block] = field(default_factory=list)
    pairs: Pairs | None = None

    def axes(self) -> dict[str, list[str]]:
        """Every axis with its labels, over all blocks."""
        found: dict[str, dict[str, None]] = {}
        for block in self.blocks:
            for axis, values in block.axes.items():
                found.setdefault(axis, {}).update(dict.fromkeys(values))
        return {axis: list(labels) for axis, labels in found.items()}

    def words(self) -> list[str]:
        """The keys that ``restrict`` knows: the axes, and ``n`` and ``seed`` of random sets."""
        return [*self.axes(), *(["n", "seed"] if any(block.random for block in self.blocks) else [])]

    def facts(self) -> dict[str, Any]:
        """For ``grid.json``: the pairs that a report counts, and how a random set was drawn."""
        sets = [block.random.record() for block in self.blocks if block.random]
        pairs = {"pairs": asdict(self.pairs)} if self.pairs else {}
        return {**pairs, **({"random": sets[0]} if sets else {})}

    def marks(self) -> list[str]:
        """What the folder's name must tell: that a random set was drawn by another seed than the file's."""
        sets = [block.random for block in self.blocks if block.random]
        return [f"seed{found.seed}" for found in sets[:1] if found.seed != found.own_seed]


def load(name: str, dirs: Sequence[Path] = ()) -> Grid:
    """Read a grid file. Raises ConfigError with all its mistakes."""
    names = options_of(GRIDS, dirs)
    if name not in names:
        raise ConfigError(
            "grid", f"there is no {name!r}", suggest(name, names, all_of="'ganlab sweep --help' lists them")
        )
    path = find(f"{GRIDS}/{name}", dirs)
    assert path is not None
    content, _ = read(path)
    shown, wrong = display(path), list[Mistake]()
    for key in content:
        if key not in ("title", "blocks", "pairs"):
            fix = suggest(key, ["title", "blocks", "pairs"])
            wrong.append(Mistake(f"{shown}: {key}", "is no key of a grid", fix))
    blocks = content.get("blocks")
    if not isinstance(content.get("title"), str):
        wrong.append(Mistake(f"{shown}: title", "is missing", "write title: what the grid is"))
    if not isinstance(blocks, list) or not blocks:
        wrong.append(Mistake(f"{shown}: blocks", "is no list of blocks", "write '- axes: {setting: [A, B]}'"))
        blocks = []
    grid = Grid(name, str(content.get("title")))
    for number, block in enumerate(blocks):
        where = f"{shown}: blocks[{number}]"
        try:
            grid.blocks.append(_block(block, where))
        except ConfigError as error:
            wrong += error.mistakes
    pairs = None
    if "pairs" in content and not wrong:
        try:
            pairs = _pairs(content["pairs"], grid.axes(), f"{shown}: pairs")
        except ConfigError as error:
            wrong += error.mistakes
    if wrong:
        raise ConfigError(wrong)
    return replace(grid, pairs=pairs)


def _pairs(given: Any, axes: Mapping[str, list[str]], where: str) -> Pairs:
    if not isinstance(given, dict) or not {"axis", "count"} <= {*given} <= {"axis", "count", "paper"}:
        raise ConfigError(where, "is no axis, count and paper", "write {axis: method, count: successes}")
    found = Pairs(str(given["axis"]), str(given["count"]), str(given.get("paper", "")))
    if len(axes.get(found.axis, [])) != 2:
        raise ConfigError(f"{where}.axis", f"{found.axis!r} has not two labels", "name an axis that has two")
    if found.count not in COUNTS:
        raise ConfigError(f"{where}.count", f"there is no {found.count!r}", suggest(found.count, COUNTS))
    return found


def _block(block: Any, where: str) -> Block:
    if not isinstance(block, dict):
        raise ConfigError(where, "is no mapping", "write overrides: [...] and axes: {...}")
    wrong = [
        Mistake(f"{where}.{key}", "is no key of a block", suggest(str(key), Block._fields))
        for key in block
        if key not in Block._fields
    ]
    axes: Axes = {}
    given = block.get("axes", {})
    if not isinstance(given, dict):
        wrong.append(Mistake(f"{where}.axes", "is no mapping", "write axes: {setting: [A, B]}"))
        given = {}
    for axis, values in given.items():
        try:
            axes[str(axis)] = _axis(str(axis), values, f"{where}.axes.{axis}")
        except ConfigError as error:
            wrong += error.mistakes
    overrides: list[str] = []
    try:
        overrides = _overrides(block.get("overrides", []), f"{where}.overrides")
    except ConfigError as error:
        wrong += error.mistakes
    random = None
    if "random" in block and not wrong:
        random = _random(block["random"], axes, f"{where}.random")
    if wrong:
        raise ConfigError(wrong)
    return Block(overrides, axes, random)


def _axis(axis: str, values: Any, where: str) -> dict[str, list[str]]:
    """Label -> overrides of an axis. A list's entries are values of the key that the axis is called by."""
    if isinstance(values, dict) and values:
        found = {str(label): _overrides(given, f"{where}.{label}") for label, given in values.items()}
    elif isinstance(values, list) and values and all(isinstance(v, str | int | float) for v in values):
        found = {_label(axis, value): [f"{axis}={value}"] for value in values}
        if len(found) < len(values):
            raise ConfigError(where, "holds a value twice", "keep one")
    else:
        raise ConfigError(where, "is neither a list of values nor labels with overrides", "write [A, B]")
    for label in found:
        if not LABEL.fullmatch(label):
            raise ConfigError(where, f"{label!r} can't name a folder", "use letters, digits, . _ + -")
    return found


def _label(axis: str, value: Any) -> str:
    """``A`` for setting=A; ``s0`` for seed=0; ``d_steps5``: a bare number says nothing."""
    if isinstance(value, str) and not re.fullmatch(r"[-+.\d]+", value):
        return value
    return f"{'s' if axis == 'seed' else axis.rpartition('.')[2]}{value}"


def restrict(grid: Grid, words: Sequence[str]) -> tuple[Grid, list[str]]:
    """The grid with ``axis=a,b`` words applied, and the other words.

    An axis of labels is cut down to those named; an axis of values takes the new ones, as ``seed=0,1,2``. A
    block without the axis stays. Raises ConfigError.
    """
    known, rest, wrong = grid.axes(), list[str](), list[Mistake]()
    blocks = [block._replace(axes=dict(block.axes)) for block in grid.blocks]
    sets = any(block.random for block in blocks)
    for word in words:
        axis, equals, text = word.partition("=")
        try:
            if equals and sets and axis in ("n", "seed"):
                blocks = [b._replace(random=b.random and b.random.asked(axis, text)) for b in blocks]
            elif equals and axis in known:
                blocks = _restricted(blocks, axis, text, known[axis])
            else:
                rest.append(word)
        except ConfigError as error:
            wrong += error.mistakes
    if wrong:
        raise ConfigError(wrong)
    return replace(grid, blocks=blocks), rest


def _restricted(blocks: Sequence[Block], axis: str, text: str, known: Sequence[str]) -> list[Block]:
    """The blocks with an axis cut down to some labels, or with new values. Raises ConfigError."""
    asked = [v for v in text.strip("[]").split(",") if v]
    if not asked:
        raise ConfigError(axis, "has no value", f"write {axis}={','.join(known)}")
    if all(axis not in block.axes or _is_list(axis, block.axes[axis]) for block in blocks):
        labels = {_label(axis, value): [f"{axis}={value}"] for value in asked}
        return [b._replace(axes={**b.axes, axis: labels}) if axis in b.axes else b for b in blocks]
    if missing := [label for label in asked if label not in known]:
        raise ConfigError(Mistake(axis, f"there is no {m!r}", suggest(m, known)) for m in missing)
    kept = []
    for block in blocks:
        if axis not in block.axes:
            kept.append(block)
        elif some := {label: v for label, v in block.axes[axis].items() if label in asked}:
            kept.append(block._replace(axes={**block.axes, axis: some}))
    return kept


def _is_list(axis: str, values: Mapping[str, list[str]]) -> bool:
    """Whether an axis was a plain list of its key's values."""
    return all(len(v) == 1 and v[0].partition("=")[0] == axis for v in values.values())


def cells(grid: Grid, words: Sequence[str] = (), most: int = MOST) -> list[Cell]:
    """All cells, block by block, ``words`` appended to each.

    Raises ConfigError for doubled names, and for none or more than ``most``, before they are made.
    """
    count = sum(block.size for block in grid.blocks)
    if not 0 < count <= most:
        fix = f"at most {most}, at least one; choose part of an axis, or raise max_jobs="
        raise ConfigError(f"grid {grid.name}", f"has {count} cells", fix)
    found = list(_cells(grid, words))
    names = [cell.name for cell in found]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        what = f"two blocks make a cell called {twice[0]!r}"
        raise ConfigError(f"grid {grid.name}", what, "give their axes other labels")
    return found


def _cells(grid: Grid, words: Sequence[str]) -> Iterator[Cell]:
    for overrides, axes, random in grid.blocks:
        for member in random.members() if random else [None]:
            for labels in itertools.product(*axes.values()):
                chosen = dict(zip(axes, labels, strict=True))
                own = [word for axis, label in chosen.items() for word in axes[axis][label]]
                if member is None:
                    yield Cell("-".join(labels) or "run", chosen, [*overrides, *own, *words])
                    continue
                own += member.words(labels)
                name, at = "-".join([member.label, *labels]), {DRAW: member.label, **chosen}
                yield Cell(name, at, [*overrides, *own, *words], member.chosen)


SCALED = ("steps", "eval_every", "save_every", "log_every", "sample_every", "lr_decay_start")
WIDTH = "architecture.width"
_SILENT = ("device", "threads", "data_memory_gb", "keep_checkpoints")  # move no folder: they change no run


class Scale(NamedTuple):
    """Fractions of a grid's updates and of its networks' width."""

    updates: float = 1.0
    width: float = 1.0

    @property
    def whole(self) -> bool:
        return self == Scale()

    def __str__(self) -> str:
        return f"{self.updates:g} of the updates, {self.width:g} of the width"


def scaled(tree: Mapping[str, Any], scale: Scale, words: Sequence[str]) -> dict[str, Any]:
    """Key -> value of what brings a composed cell to ``scale``; keys that ``words`` set are left alone.

    Raises ConfigError if the width is to change and the architecture has none.
    """
    mine = {w.lstrip("+~").partition("=")[0] for w in words}
    found: dict[str, Any] = {}
    for key in SCALED if scale.updates != 1 else ():
        value = tree.get(key)
        if isinstance(value, int) and value > 0 and key not in mine:
            found[key] = max(1, round(value * scale.updates))
    if scale.width != 1 and WIDTH not in mine:
        width = (tree.get("architecture") or {}).get("width")
        if not isinstance(width, int | float):
            raise ConfigError("scale", "this architecture has no width", "scale=UPDATES alone")
        found[WIDTH] = float(f"{width * scale.width:g}")
    return found


def parse_scale(text: str) -> Scale:
    """``0.01`` or ``0.01,0.125``: updates, width. Raises ConfigError."""
    parts = text.strip("[]").split(",")
    try:
        numbers = [float(p) for p in parts]
        assert len(numbers) in (1, 2)
        assert all(0 < n <= 1 for n in numbers)
    except (ValueError, AssertionError):
        fix = "write scale=UPDATES or scale=UPDATES,WIDTH, fractions such as scale=0.01,0.125"
        raise ConfigError("scale", f"{text!r} is not one or two fractions", fix) from None
    return Scale(*numbers)


def folder_name(grid: str, scale: Scale, words: Sequence[str], marks: Sequence[str] = ()) -> str:
    """``NAME``, ``NAME-u0.01``, ``NAME-u0.01-w0.125``, the ``marks``, and a hash of the other overrides."""
    parts = [grid, *marks]
    if scale.updates != 1:
        parts.append(f"u{scale.updates:g}")
    if scale.width != 1:
        parts.append(f"w{scale.width:g}")
    if others := sorted(w.lstrip("+") for w in words if w.lstrip("+~").partition("=")[0] not in _SILENT):
        parts.append(hashlib.sha256("\n".join(others).encode()).hexdigest()[:6])
    return "-".join(parts)
