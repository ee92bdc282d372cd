"""Cache of composed cells, so that repeating a sweep's command does not compose them again.

One file holds the cells composed by one state of the code, the config files and the libraries, whose hash is
its name; a line is a cell. Lines that are damaged or missing are composed anew. Imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from ganlab.config import compose
from ganlab.config.files import user_dirs
from ganlab.errors import DataError, EnvError
from ganlab.system.files import read_regular, write_atomic
from ganlab.system.paths import PACKAGE, cache_dir, config_dir

KEPT = 4  # files
MAX_BYTES = 64 << 20
LIBRARIES = ("hydra-core", "omegaconf", "torch")


class Composition(NamedTuple):
    """What a sweep needs of a ``compose.Composed``."""

    tree: dict[str, Any]
    saved: dict[str, Any]
    choices: dict[str, Any]
    overrides: list[str]


class Cache:
    """Compositions of this code with the user's ``config_dirs``. ``save`` writes the new ones."""

    def __init__(self, config_dirs: Sequence[str]) -> None:
        self.config_dirs = config_dirs
        self.path = cache_dir() / "compositions" / f"{_fingerprint(user_dirs(config_dirs))}.jsonl"
        self.lines: dict[str, bytes] = {}  # key -> line, not parsed before it is needed
        self.is_new = False
        with contextlib.suppress(OSError, ValueError, DataError):
            for line in read_regular(self.path, MAX_BYTES).splitlines():
                self.lines[line[:64].decode("ascii", "replace")] = line

    def compose(self, overrides: Sequence[str]) -> Composition:
        """Compose and check a cell. Raises ConfigError; errors of data and machine wait until it runs."""
        key = hashlib.sha256(json.dumps([*overrides]).encode("utf-8", "backslashreplace")).hexdigest()
        if cached := _parse(key, self.lines.get(key, b"")):
            return cached
        composed = compose.compose(overrides, self.config_dirs)
        with contextlib.suppress(DataError, EnvError):
            compose.build(composed)
        result = Composition(composed.tree, composed.saved, composed.choices, composed.overrides)
        if "oc.env" not in composed.text and composed.tree == composed.saved:
            text = json.dumps([composed.saved, composed.choices, composed.overrides]).encode()
            line = f"{key} {hashlib.sha256(text).hexdigest()} ".encode() + text
            if _parse(key, line) == result:  # JSON has no tuples, and no keys that are numbers
                self.lines[key], self.is_new = line, True
        return result

    def save(self) -> None:
        """Write the file, and remove all but the newest few of the folder; a full disk is no error."""
        if not self.is_new or sum(map(len, self.lines.values())) > MAX_BYTES:
            return
        with contextlib.suppress(OSError, EnvError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, b"\n".join(self.lines.values()), durable=False)
            files = sorted(self.path.parent.glob("*.jsonl"), key=os.path.getmtime)
            for old in files[:-KEPT]:
                old.unlink()


def _parse(key: str, line: bytes) -> Composition | None:
    """The composition in a line of the cache; None if the line is damaged."""
    head, _, text = line[64 + 1 :].partition(b" ")
    if line[:64].decode("ascii", "replace") != key or head != hashlib.sha256(text).hexdigest().encode():
        return None
    saved, choices, overrides = json.loads(text)
    return Composition(json.loads(text)[0], saved, choices, overrides)


def _fingerprint(dirs: Sequence[Path]) -> str:
    """Hash of everything that composing and checking a config depends on, but the overrides."""
    state = hashlib.sha256()
    sources = [("*.py", PACKAGE), ("*.yaml", config_dir()), *(("*.yaml", folder) for folder in dirs)]
    for pattern, folder in sources:
        for path in sorted(folder.rglob(pattern)):
            content = path.read_bytes() if path.is_file() else b""
            state.update(f"{path}\n{hashlib.sha256(content).hexdigest()}\n".encode(errors="backslashreplace"))
    versions = [platform.python_version(), *map(version, LIBRARIES), str(Path.home())]
    state.update(json.dumps(versions).encode())
    return state.hexdigest()[:20]
