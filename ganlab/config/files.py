"""The YAML files behind a config: where they lie, and reading one safely. No Hydra here, and no torch.

Groups are folders; ``protocol`` and ``extractor`` hold *named files*, which a key of ``metric`` chooses.
A user's folders may add files, but never put another in the place of a shipped one.
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
GRIDS = "grid"  # the folder of grid files: no group of a run


def user_dirs(given: Iterable[str | Path] = ()) -> list[Path]:
    """The user's config folders: those given (``--config-dir``), then ``$GANLAB_CONFIGS``.

    Raises ConfigError for one that is not there.
    """
    named = [("--config-dir", str(d)) for d in given]
    named += [("GANLAB_CONFIGS", d) for d in os.environ.get("GANLAB_CONFIGS", "").split(os.pathsep) if d]
    wrong = [
        Mistake(source, f"there is no folder {folder!r}", "name an existing folder")
        for source, folder in named
        if not expanded(folder).is_dir()
    ]
    if wrong:
        raise ConfigError(wrong)
    return list(dict.fromkeys(expanded(folder).resolve() for _, folder in named))


def groups(dirs: Sequence[Path]) -> dict[str, list[str]]:
    """Group -> its options, over the shipped configs and ``dirs``; a sub-folder's file is ``sub/name``."""
    found: dict[str, set[str]] = {}
    for root in (config_dir(), *dirs):
        for folder in _folders(root):
            if folder.name == "hydra":
                for sub in _folders(folder):
                    found.setdefault(f"hydra/{sub.name}", set()).update(_options(sub))
            elif folder.name != GRIDS and (options := set(_options(folder))):
                found.setdefault(folder.name, set()).update(options)
    return {name: sorted(options) for name, options in sorted(found.items())}


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
        raise ConfigError(str(root), f"can't be read ({error.strerror})", "mend its permissions") from error


def _options(folder: Path, depth: int = 2) -> Iterator[str]:
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.is_file() and entry.name.endswith(".yaml"):
            yield entry.name.removesuffix(".yaml")
        elif depth > 1 and entry.is_dir() and not entry.name.startswith((".", "_")):
            yield from (f"{entry.name}/{name}" for name in _options(Path(entry), depth - 1))


def find(name: str, dirs: Sequence[Path]) -> Path | None:
    """The file of ``group/option``: the shipped one, else the first of the user's.

    Raises ConfigError when a user's file of that name says something else than the shipped one.
    """
    places = [folder / f"{name}.yaml" for folder in (config_dir(), *dirs)]
    there = [place for place in places if place.is_file()]
    for hidden in there[1:]:
        if hidden.read_bytes() != there[0].read_bytes():
            what = f"hides behind {display(there[0])}, which differs"
            raise ConfigError(display(hidden), what, "give it another name")
    return there[0] if there else None


def read(path: Path) -> tuple[dict[str, Any], str | None]:
    """A config file's mapping, and the package of its ``# @package`` line. Raises as ``safe_yaml.load``."""
    found, text = yaml_loader.load(path, display(path))
    return found, _package(text, display(path))


def _package(text: str, shown: str) -> str | None:
    """The ``# @package NAME`` among the first comment lines."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("#"):
            break
        if words := re.fullmatch(r"#\s*@(\S+)\s*(.*?)\s*", line):
            if words[1] != "package" or not re.fullmatch(r"\S+", words[2]):
                raise ConfigError(f"{shown}:{number}", f"can't read {line!r}", "write '# @package NAME'")
            return words[2]
    return None
