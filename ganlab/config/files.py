"""Find and read the YAML files of a config. Imports neither Hydra nor torch.

Groups are folders; ``protocol`` and ``extractor`` hold *named files*, which a key of ``metric`` chooses.
A user's folders may add files, but never replace a shipped one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ganlab.errors import ConfigError, Mistake
from ganlab.system import yaml_loader
from ganlab.system.paths import config_dir, expanded

NAMED = {"metric.extractor": "extractor", "metric.protocol": "protocol", "metric.progress": "protocol"}
GRIDS = "grid"  # the folder of grid files, which is not a group of a run


def user_dirs(config_dirs: Iterable[str | Path] = ()) -> list[Path]:
    """The user's config folders: ``config_dirs`` (``--config-dir``), then ``$GANLAB_CONFIGS``.

    Raises ConfigError for one that does not exist.
    """
    named = [("--config-dir", str(d)) for d in config_dirs]
    named += [("GANLAB_CONFIGS", d) for d in os.environ.get("GANLAB_CONFIGS", "").split(os.pathsep) if d]
    mistakes = [
        Mistake(source, f"there is no folder {folder!r}", "name an existing folder")
        for source, folder in named
        if not expanded(folder).is_dir()
    ]
    if mistakes:
        raise ConfigError(mistakes)
    return list(dict.fromkeys(expanded(folder).resolve() for _, folder in named))


def groups(dirs: Sequence[Path]) -> dict[str, list[str]]:
    """Group -> its options, over the shipped configs and ``dirs``; a sub-folder's file is ``sub/name``."""
    options: dict[str, set[str]] = {}
    for root in (config_dir(), *dirs):
        for folder in _folders(root):
            if folder.name == "hydra":
                for sub in _folders(folder):
                    options.setdefault(f"hydra/{sub.name}", set()).update(_options(sub))
            elif folder.name != GRIDS and (names := set(_options(folder))):
                options.setdefault(folder.name, set()).update(names)
    return {group: sorted(names) for group, names in sorted(options.items())}


def options_of(folder: str, dirs: Sequence[Path] = ()) -> list[str]:
    """The names of the files in ``folder`` of the shipped configs and of ``dirs``."""
    roots = [root / folder for root in (config_dir(), *dirs)]
    return sorted({name for root in roots if root.is_dir() for name in _options(root)})


def display(path: Path) -> str:
    """The path as a user would type it: relative where it lies below the working folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _folders(root: Path) -> list[Path]:
    try:
        return [Path(e) for e in os.scandir(root) if e.is_dir() and not e.name.startswith((".", "_"))]
    except OSError as error:
        raise ConfigError(str(root), f"cannot be read ({error.strerror})", "fix its permissions") from error


def _options(folder: Path, depth: int = 2) -> Iterator[str]:
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.is_file() and entry.name.endswith(".yaml"):
            yield entry.name.removesuffix(".yaml")
        elif depth > 1 and entry.is_dir() and not entry.name.startswith((".", "_")):
            yield from (f"{entry.name}/{name}" for name in _options(Path(entry), depth - 1))


def find(name: str, dirs: Sequence[Path]) -> Path | None:
    """The file of ``group/option``: the shipped one, else the first of the user's.

    Raises ConfigError if a later file of that name has other content.
    """
    places = [folder / f"{name}.yaml" for folder in (config_dir(), *dirs)]
    files = [place for place in places if place.is_file()]
    for hidden in files[1:]:
        if hidden.read_bytes() != files[0].read_bytes():
            what = f"has the name of {display(files[0])}, but differs from it"
            raise ConfigError(display(hidden), what, "rename it")
    return files[0] if files else None


def read(path: Path) -> tuple[dict[str, Any], str | None]:
    """A config file's mapping, and the package of its ``# @package`` line. Raises as ``yaml_loader.load``."""
    content, text = yaml_loader.load(path, display(path))
    return content, _package(text, display(path))


def _package(text: str, file: str) -> str | None:
    """The ``# @package NAME`` among the first comment lines."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("#"):
            break
        if words := re.fullmatch(r"#\s*@(\S+)\s*(.*?)\s*", line):
            if words[1] != "package" or not re.fullmatch(r"\S+", words[2]):
                raise ConfigError(f"{file}:{number}", f"cannot parse {line!r}", "write '# @package NAME'")
            return words[2]
    return None
