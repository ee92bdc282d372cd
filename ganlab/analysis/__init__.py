"""``ganlab analyze``: one figure and its numbers from runs, a file per analysis.

A module here with a class under ``base.Analysis`` is an analysis of the module's name: no list is edited. Its
docstring's first line is its help, its constructor's arguments are its keys. ``base`` says what an
analysis is, ``subjects`` opens runs, ``series`` groups their scores, ``drawing`` and ``sheet`` draw.

Runs are only read: what is made goes into a folder ``analysis/``. Random draws have generators of their own.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_origin

import yaml  # type: ignore[import-untyped, unused-ignore]

from ganlab import (
    errors,  # as modules: an analysis may bear the name of what is in them
    schema,
)
from ganlab.errors import CheckpointError, ConfigError, DataError, EnvError, Mistake

if TYPE_CHECKING:
    from ganlab.analysis.base import Analysis, Finding
    from ganlab.analysis.subjects import Subject

ALL = "all"
OUT = Path("outputs/analysis")
LISTED = "'ganlab analyze --help' lists them"


class Entry(NamedTuple):
    """An analysis as its source tells it: its docstring, and its keys with the source of their defaults."""

    doc: str
    keys: dict[str, str]

    @property
    def title(self) -> str:
        return self.doc.partition("\n")[0]


def catalogue() -> dict[str, Entry]:
    """Every analysis by name, read as text: no torch, no matplotlib, no waiting."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and any(ast.unparse(b) == "Analysis" for b in node.bases):
                inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
                found[path.stem] = Entry(ast.get_docstring(node) or "", _keys(inits[0]) if inits else {})
    return found


def _keys(init: ast.FunctionDef) -> dict[str, str]:
    names = [a.arg for a in init.args.args][1:]
    return dict(zip(names, map(ast.unparse, init.args.defaults), strict=True))


def load(name: str) -> type[Analysis]:
    """The class of an analysis."""
    from ganlab.analysis.base import Analysis

    module = importlib.import_module(f"ganlab.analysis.{name}")
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
    return next(c for c in classes if issubclass(c, Analysis))


def analyze(
    paths: Sequence[str | Path],
    analysis: str,
    out: str | Path | None = None,
    words: Sequence[str] = (),
    config_dirs: Sequence[str] = (),
) -> list[Path]:
    """Make ``analysis`` (a name, several as ``a,b``, or ``all`` that fit) of the runs at or under ``paths``.

    ``words``: ``key=value``, the analysis's own keys or what ``config.reopen`` lets change. ``NAME.png`` and
    ``NAME.csv`` go to ``out``, else to ``analysis/`` in the one folder given, else to ``outputs/analysis``.
    Returns the pictures. Raises ConfigError for unknown names and keys, DataError where runs do not fit.
    """
    names, every = chosen(analysis), analysis == ALL
    kinds = {name: load(name) for name in names}
    options, others = _options(kinds, words)
    import torch

    from ganlab.analysis import subjects

    runs = subjects.open_runs([Path(p) for p in paths], others, config_dirs) if paths else []
    place = Path(out) if out else Path(paths[0]) / "analysis" if len(paths) == 1 else OUT
    made: list[Path] = []
    for name, kind in kinds.items():
        maker = kind(**options[name])
        try:
            with torch.random.fork_rng():
                finding = _make(name, maker, runs, others, config_dirs)
        except (DataError, CheckpointError, EnvError) as error:
            if not every:
                raise
            print(f"{name}: not made: {'; '.join(m.what for m in error.mistakes)}")
            continue
        made.append(finding.write(place, name))
    if not made:
        raise DataError("analysis", "nothing can be made from these runs", "the lines above say why")
    return made


def _make(
    name: str, maker: Analysis, runs: Sequence[Subject], words: Sequence[str], config_dirs: Sequence[str]
) -> Finding:
    least, most = maker.runs
    if len(runs) < least:
        what = f"wants {'runs' if least > 1 else 'a run'}, and was given {len(runs) or 'none'}"
        raise DataError(name, what, f"write ganlab analyze RUN... analysis={name}")
    if len(runs) > most:
        what = f"shows at most {most} run{'s' if most > 1 else ''}, and was given {len(runs)}"
        raise DataError(name, what, "name fewer")
    if len(maker.kinds) < 3:
        for run in runs:
            if (kind := run.experiment.shape.kind) not in maker.kinds:
                what = f"is of {' and '.join(maker.kinds)}, and {run.run.label} has {kind}"
                raise DataError(name, what, f"name other runs; {LISTED}")
    if words and not runs and not maker.composes:
        key = words[0].partition("=")[0]
        raise ConfigError(key, f"is no key of {name}", errors.suggest(key, schema.parameters(type(maker))))
    maker.words, maker.config_dirs = words, config_dirs
    return maker.make(runs)


def chosen(analysis: str) -> list[str]:
    """The names behind ``analysis=``. Raises ConfigError with a suggestion for each unknown one."""
    known = catalogue()
    if analysis == ALL:
        return list(known)
    names = [name.strip() for name in analysis.strip("[]").split(",")]
    if wrong := [name for name in names if name not in known]:
        raise ConfigError(
            Mistake("analysis", f"there is no {name!r}", errors.suggest(name, [*known, ALL], all_of=LISTED))
            for name in wrong
        )
    return list(dict.fromkeys(names))


def _options(
    kinds: Mapping[str, type[Analysis]], words: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The values of each analysis's own keys, and the words that set others. All mistakes at once."""
    options: dict[str, dict[str, Any]] = {name: {} for name in kinds}
    every = {key for kind in kinds.values() for key in schema.parameters(kind)}
    others, wrong = [], list[Mistake]()
    for word in words:
        key, equals, given = word.partition("=")
        if key not in every:
            near = (
                errors.nearest(key, every) if equals and "." not in key and not key.startswith("+") else None
            )
            if near:
                wrong.append(Mistake(key, "is no key here", f"did you mean {near!r}?"))
            others.append(word)
            continue
        for name, kind in kinds.items():
            if key in schema.parameters(kind):
                wanted, default = schema.parameters(kind)[key]
                value = _value(given, wanted)
                options[name][key] = value
                if not schema.fits(value, wanted):
                    shown = "null" if default is None else default
                    what = f"{given!r} is not {schema.describe(wanted)}"
                    wrong.append(Mistake(key, what, f"the default is {shown}"))
    if wrong:
        raise ConfigError(dict.fromkeys(wrong))
    return options, others


def _value(given: str, wanted: Any) -> Any:
    """Text from the command line as YAML; ``a,b`` is a list where one is wanted."""
    if get_origin(wanted) in (list, tuple) and not given.startswith("["):
        given = f"[{given}]"
    try:
        return yaml.safe_load(given)
    except yaml.YAMLError:
        return given
