"""Parts of a help page: tables, wrapped text, and descriptions read from config files and docstrings."""

from __future__ import annotations

import ast
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ganlab.config.files import find
from ganlab.system.paths import PACKAGE


def arguments(name: str) -> dict[str, str]:
    """Argument -> description, from the "Args:" of a class in experiment.py, without importing it."""
    tree = ast.parse((PACKAGE / "experiment.py").read_text("utf-8"))
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name]
    return argument_descriptions(ast.get_docstring(classes[0]) or "" if classes else "")


def argument_descriptions(text: str) -> dict[str, str]:
    """Argument -> description, from the "Args:" of a docstring."""
    descriptions: dict[str, str] = {}
    current = ""
    for line in text.partition("Args:\n")[2].splitlines():
        if line.strip() and not line.startswith(" "):
            break  # the next section
        if line.startswith("    ") and not line.startswith("     ") and ":" in line:
            current, _, words = line.strip().partition(":")
            descriptions[current] = words.strip()
        elif current and line.strip():
            descriptions[current] += f" {line.strip()}"
    return {k: v.replace("``", "") for k, v in descriptions.items()}


def title(name: str, dirs: Sequence[Path]) -> str:
    """The first comment line of a config file."""
    path = find(name, dirs)
    lines = path.read_text("utf-8", "replace").splitlines() if path else []
    comments = (line for line in lines if line.startswith("#") and "@package" not in line)
    return next(comments, "").removeprefix("#").strip()


def default_of(root: dict[str, Any], key: str) -> str:
    """The default of a top-level key, from the content of train.yaml."""
    return plain(root[key]) if key in root else "(by setting)" if key in ("d_steps", "setting") else "..."


def plain(value: Any) -> str:
    """A value as in YAML."""
    if isinstance(value, list):
        return f"[{','.join(map(plain, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def marked(options: list[str], default: Any) -> str:
    """The options of a group, the default ones marked with a star."""
    chosen = default if isinstance(default, list) else [default]
    return " ".join(f"*{o}" if o in chosen else o for o in options)


def width() -> int:
    """Columns of a help page."""
    return max(60, min(110, shutil.get_terminal_size((100, 24)).columns))


def wrap(text: str, indent: str = "  ") -> list[str]:
    """Lines of an indented paragraph."""
    return textwrap.wrap(
        text, width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def table(rows: Iterable[tuple[str, str]], column: int = 26) -> list[str]:
    """Lines of a two-column table."""
    lines: list[str] = []
    for name, text in rows:
        body = textwrap.wrap(text, width() - column - 2, break_on_hyphens=False) or [""]
        if len(name) > column - 2:
            lines.append(f"  {name}")
        else:
            lines.append(f"  {name:<{column}}{body.pop(0)}".rstrip())
        lines += [" " * (column + 2) + line for line in body]
    return lines


def default(source: str) -> str:
    """A default as a user would write it: ``a,b`` for a tuple."""
    value = ast.literal_eval(source)
    return ",".join(map(str, value)) if isinstance(value, tuple) else plain(value)


def body(doc: str) -> str:
    """The paragraphs of a docstring between its first line and its arguments, as one."""
    return " ".join(doc.partition("\n")[2].partition("Args:")[0].split()).replace("``", "")
