"""``ganlab analyze``: figures and tables computed from runs, one module per analysis.

To add an analysis, add a module with a subclass of ``base.Analysis``; its name is the module's, its docstring
is the help text, and its annotated attributes are its keys (an example: docs/extending.md).
``base`` defines the interface, ``subjects`` opens runs and draws samples, ``series`` groups their scores, and
``drawing`` draws. Runs are only read; results are written to a folder ``analysis/``. Random draws use
separate generators.
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
    errors,  # as modules: an analysis may share a name with their contents
    schema,
)
from ganlab.errors import CheckpointError, ConfigError, DataError, EnvError, Mistake

if TYPE_CHECKING:
    from ganlab.analysis.base import Analysis, Finding
    from ganlab.analysis.subjects import Subject

ALL = "all"
OUT = Path("outputs/analysis")
LIST_HINT = "'ganlab analyze --help' lists them"


class Entry(NamedTuple):
    """An analysis as parsed from its source: docstring, and default values of its keys as source text."""

    doc: str
    keys: dict[str, str]

    @property
    def title(self) -> str:
        return self.doc.partition("\n")[0]


def catalogue() -> dict[str, Entry]:
    """All analyses by name, parsed without importing torch or matplotlib."""
    entries = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and any(ast.unparse(b) == "Analysis" for b in node.bases):
                fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and n.value]
                keys = {ast.unparse(n.target): ast.unparse(n.value) for n in fields if n.value}
                entries[path.stem] = Entry(ast.get_docstring(node) or "", keys)
    return entries


def load(name: str) -> type[Analysis]:
    """Import the class of an analysis."""
    from ganlab.analysis.base import Analysis

    module = importlib.import_module(f"ganlab.analysis.{name}")
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
    return next(c for c in classes if issubclass(c, Analysis))


def analyze(
    paths: Sequence[str | Path],
    analysis: str,
    out: str | Path | None = None,
    arguments: Sequence[str] = (),
    config_dirs: Sequence[str] = (),
) -> list[Path]:
    """Run ``analysis`` (``a``, ``a,b``, or ``all`` that apply) on the runs at or under ``paths``.

    ``arguments``: ``key=value`` pairs, either keys of the analysis or config overrides that
    ``compose.reopen`` allows. ``NAME.png`` and ``NAME.csv`` are written to ``out``; by default to
    ``analysis/`` in a single input folder, or to ``outputs/analysis`` for several. Returns the PNG paths.
    Raises ConfigError for unknown names and keys, DataError if the runs do not suit the analysis.
    """
    names, make_all = select(analysis), analysis == ALL
    kinds = {name: load(name) for name in names}
    options, overrides = _options(kinds, arguments)
    import torch

    from ganlab.analysis import subjects

    runs = subjects.open_runs([Path(p) for p in paths], overrides, config_dirs) if paths else []
    folder = Path(out) if out else Path(paths[0]) / "analysis" if len(paths) == 1 else OUT
    pictures: list[Path] = []
    for name, kind in kinds.items():
        instance = kind(**options[name])
        try:
            with torch.random.fork_rng():
                finding = _make(name, instance, runs, overrides, config_dirs)
        except (DataError, CheckpointError, EnvError) as error:
            if not make_all:
                raise
            print(f"{name}: skipped: {'; '.join(m.what for m in error.mistakes)}")
            continue
        pictures.append(finding.write(folder, name))
    if not pictures:
        raise DataError("analysis", "no analysis applies to these runs", "see the reasons above")
    return pictures


def _make(
    name: str,
    instance: Analysis,
    runs: Sequence[Subject],
    overrides: Sequence[str],
    config_dirs: Sequence[str],
) -> Finding:
    fewest, most = instance.runs
    if len(runs) < fewest:
        needs = f"needs at least {fewest} run{'s' if fewest > 1 else ''}, got {len(runs)}"
        raise DataError(name, needs, f"use 'ganlab analyze RUN... analysis={name}'")
    if len(runs) > most:
        limit = f"takes at most {most} run{'s' if most > 1 else ''}, got {len(runs)}"
        raise DataError(name, limit, "pass fewer runs")
    if len(instance.kinds) < 3:
        for run in runs:
            if (kind := run.experiment.shape.kind) not in instance.kinds:
                problem = f"for runs on {' and '.join(instance.kinds)} only; {run.run.label} has {kind}"
                raise DataError(name, problem, f"choose other runs; {LIST_HINT}")
    if overrides and not runs and not instance.composes:
        key = overrides[0].partition("=")[0]
        raise ConfigError(
            key, f"unknown key of {name}", errors.suggest(key, schema.parameters(type(instance)))
        )
    instance.overrides, instance.config_dirs = overrides, config_dirs
    return instance.make(runs)


def select(analysis: str) -> list[str]:
    """Names selected by ``analysis=``. Raises ConfigError with a suggestion for each unknown name."""
    available = catalogue()
    if analysis == ALL:
        return list(available)
    names = [name.strip() for name in analysis.strip("[]").split(",")]
    if unknown := [name for name in names if name not in available]:
        raise ConfigError(
            Mistake(
                "analysis",
                f"unknown analysis {name!r}",
                errors.suggest(name, [*available, ALL], all_of=LIST_HINT),
            )
            for name in unknown
        )
    return list(dict.fromkeys(names))


def _options(
    kinds: Mapping[str, type[Analysis]], arguments: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Split ``key=value`` arguments into each analysis's own options and the remaining overrides.

    Raises ConfigError with all mistakes at once.
    """
    options: dict[str, dict[str, Any]] = {name: {} for name in kinds}
    keys = {key for kind in kinds.values() for key in schema.parameters(kind)}
    overrides, mistakes = [], list[Mistake]()
    for word in arguments:
        key, equals, value_text = word.partition("=")
        if key not in keys:
            closest = (
                errors.nearest(key, keys) if equals and "." not in key and not key.startswith("+") else None
            )
            if closest:
                mistakes.append(Mistake(key, "unknown key", f"did you mean {closest!r}?"))
            overrides.append(word)
            continue
        for name, kind in kinds.items():
            if key in schema.parameters(kind):
                annotation, default = schema.parameters(kind)[key]
                value = _value(value_text, annotation)
                options[name][key] = value
                if not schema.fits(value, annotation):
                    default_text = "null" if default is None else default
                    problem = f"{value_text!r} is not {schema.describe(annotation)}"
                    mistakes.append(Mistake(key, problem, f"the default is {default_text}"))
    if mistakes:
        raise ConfigError(dict.fromkeys(mistakes))
    return options, overrides


def _value(value_text: str, annotation: Any) -> Any:
    """Parse a command-line value as YAML; ``a,b`` is a list if the annotation is one."""
    if get_origin(annotation) in (list, tuple) and not value_text.startswith("["):
        value_text = f"[{value_text}]"
    try:
        return yaml.safe_load(value_text)
    except yaml.YAMLError:
        return value_text
