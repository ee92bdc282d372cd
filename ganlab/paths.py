"""Where things lie: the shipped configs, the package's own files, and the user's cache. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ASSETS = PACKAGE / "assets"


def config_dir() -> Path:
    """The shipped ``configs/``: inside the package in a wheel, beside it in a checkout."""
    for folder in (PACKAGE / "configs", PACKAGE.parent / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configs/train.yaml in or beside {PACKAGE}; reinstall ganlab")


def keep_caches() -> None:
    """Let matplotlib write into ``cache_dir``, not below ``$HOME``, unless the user has chosen a place."""
    os.environ.setdefault("MPLCONFIGDIR", str(cache_dir() / "matplotlib"))


def cache_dir() -> Path:
    """Prepared datasets, reference statistics and weights: ``$GANLAB_CACHE``, else ``~/.cache/ganlab``.

    Follows ``$XDG_CACHE_HOME``. The folder is not created here.
    """
    if chosen := os.environ.get("GANLAB_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ganlab"


def python_path(env: Mapping[str, str]) -> str:
    """PYTHONPATH for a child that is to find this ganlab: its place before what ``env`` has."""
    return os.pathsep.join([str(PACKAGE.parent), *filter(None, [env.get("PYTHONPATH")])])
