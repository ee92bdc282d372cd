"""Grid files: a paper's table or figure as cells, each the overrides of one run. No torch here.

``configs/grid/NAME.yaml`` (or a file of the user's ``--config-dir``)::

    title: what it is
    blocks:                              # each block is a product of axes
      - overrides: [+experiment=NAME]    # of every cell of the block
        axes:
          method: {sn: normalization=sn, wgan-gp: [normalization=gp, loss=wasserstein]}
          setting: [A, B]                # a list: the axis is the key
          seed: [0]

A new grid is one file.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ganlab.config_files import GRIDS, display, find, options_of, read
from ganlab.errors import ConfigError, Mistake
from ganlab.spelling import suggest

MOST = 1000  # cells
SCALED = ("steps", "eval_every", "save_every", "log_every", "sample_every", "lr_decay_start")
WIDTH = "architecture.width"
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
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


@dataclass(frozen=True)
class Cell:
    """One run of a grid. ``axes``: axis -> label; ``overrides``: for ``ganlab train``, run_dir left out."""

    name: str
    axes: dict[str, str]
    overrides: list[str]


@dataclass(frozen=True)
class Grid:
    """A grid file as read: blocks of (overrides, axis -> label -> overrides)."""

    name: str
    title: str
    blocks: list[tuple[list[str], dict[str, dict[str, list[str]]]]] = field(default_factory=list)

    def axes(self) -> dict[str, list[str]]:
        """Every axis with its labels, over all blocks."""
        found: dict[str, dict[str, None]] = {}
        for _, axes in self.blocks:
            for axis, values in axes.items():
                found.setdefault(axis, {}).update(dict.fromkeys(values))
        return {axis: list(labels) for axis, labels in found.items()}


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
        if key not in ("title", "blocks"):
            wrong.append(Mistake(f"{shown}: {key}", "is no key of a grid", suggest(key, ["title", "blocks"])))
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
    if wrong:
        raise ConfigError(wrong)
    return grid


def _block(block: Any, where: str) -> tuple[list[str], dict[str, dict[str, list[str]]]]:
    if not isinstance(block, dict):
        raise ConfigError(where, "is no mapping", "write overrides: [...] and axes: {...}")
    wrong = [
        Mistake(f"{where}.{key}", "is no key of a block", suggest(str(key), ["overrides", "axes"]))
        for key in block
        if key not in ("overrides", "axes")
    ]
    axes: dict[str, dict[str, list[str]]] = {}
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
    if wrong:
        raise ConfigError(wrong)
    return overrides, axes


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
        if not _LABEL.fullmatch(label):
            raise ConfigError(where, f"{label!r} can't name a folder", "use letters, digits, . _ + -")
    return found


def _label(axis: str, value: Any) -> str:
    """``A`` for setting=A; ``s0`` for seed=0; ``d_steps5``: a bare number says nothing."""
    if isinstance(value, str) and not re.fullmatch(r"[-+.\d]+", value):
        return value
    return f"{'s' if axis == 'seed' else axis.rpartition('.')[2]}{value}"


def _overrides(given: Any, where: str) -> list[str]:
    words = [given] if isinstance(given, str) else given
    if not isinstance(words, list) or not all(isinstance(w, str) and "=" in w for w in words):
        raise ConfigError(where, "is no list of key=value overrides", "write [key=value, ...]")
    if any(w.lstrip("+").startswith("run_dir=") for w in words):
        raise ConfigError(where, "sets run_dir", "leave it out: a grid's cells have folders of their own")
    return list(words)


def restrict(grid: Grid, words: Sequence[str]) -> tuple[Grid, list[str]]:
    """The grid with ``axis=a,b`` words applied, and the other words.

    An axis of labels is cut down to those named; an axis of values takes the new ones, as ``seed=0,1,2``. A
    block without the axis stays. Raises ConfigError.
    """
    known, rest, wrong = grid.axes(), list[str](), list[Mistake]()
    blocks = [(overrides, dict(axes)) for overrides, axes in grid.blocks]
    for word in words:
        axis, equals, text = word.partition("=")
        if axis not in known or not equals:
            rest.append(word)
            continue
        asked = [v for v in text.strip("[]").split(",") if v]
        if not asked:
            wrong.append(Mistake(axis, "has no value", f"write {axis}={','.join(known[axis])}"))
            continue
        if all(axis not in axes or _is_list(axis, axes[axis]) for _, axes in blocks):
            labels = {_label(axis, value): [f"{axis}={value}"] for value in asked}
            blocks = [(o, {**axes, axis: labels} if axis in axes else axes) for o, axes in blocks]
            continue
        if missing := [label for label in asked if label not in known[axis]]:
            wrong += [
                Mistake(axis, f"there is no {label!r}", suggest(label, known[axis])) for label in missing
            ]
            continue
        kept = []
        for overrides, axes in blocks:
            if axis in axes:
                some = {label: v for label, v in axes[axis].items() if label in asked}
                if not some:
                    continue
                axes[axis] = some
            kept.append((overrides, axes))
        blocks = kept
    if wrong:
        raise ConfigError(wrong)
    return Grid(grid.name, grid.title, blocks), rest


def _is_list(axis: str, values: Mapping[str, list[str]]) -> bool:
    """Whether an axis was a plain list of its key's values."""
    return all(len(v) == 1 and v[0].partition("=")[0] == axis for v in values.values())


def cells(grid: Grid, words: Sequence[str] = (), most: int = MOST) -> list[Cell]:
    """All cells, block by block, ``words`` appended to each.

    Raises ConfigError for doubled names, and for none or more than ``most``, before they are made.
    """
    count = sum(math.prod(len(labels) for labels in axes.values()) for _, axes in grid.blocks)
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
    for overrides, axes in grid.blocks:
        for labels in itertools.product(*axes.values()):
            chosen = dict(zip(axes, labels, strict=True))
            own = [word for axis, label in chosen.items() for word in axes[axis][label]]
            name = "-".join(labels) or "run"
            yield Cell(name, chosen, [*overrides, *own, *words])


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


def folder_name(grid: str, scale: Scale, words: Sequence[str]) -> str:
    """``NAME``, ``NAME-u0.01``, ``NAME-u0.01-w0.125``, and a hash of the other overrides, if any."""
    parts = [grid]
    if scale.updates != 1:
        parts.append(f"u{scale.updates:g}")
    if scale.width != 1:
        parts.append(f"w{scale.width:g}")
    if others := sorted(w.lstrip("+") for w in words if w.lstrip("+~").partition("=")[0] not in _SILENT):
        parts.append(hashlib.sha256("\n".join(others).encode()).hexdigest()[:6])
    return "-".join(parts)
