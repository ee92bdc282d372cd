"""Paths of the shipped configs, the package's own files, and the user's cache. Imports no torch."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ganlab.errors import EnvError

PACKAGE = Path(__file__).resolve().parents[1]
ASSETS = PACKAGE / "assets"


def config_dir() -> Path:
    """The shipped ``configs/``: inside the package in a wheel, beside it in a repository."""
    for folder in (PACKAGE / "configs", PACKAGE.parent / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configs/train.yaml in or beside {PACKAGE}; reinstall ganlab")


def keep_caches() -> None:
    """Make matplotlib's cache a subfolder of ``cache_dir``, unless MPLCONFIGDIR is set."""
    if "MPLCONFIGDIR" not in os.environ:
        os.environ["MPLCONFIGDIR"] = library_cache("matplotlib")


def library_cache(name: str) -> str:
    """A cache folder for a library: in ``cache_dir``, or a temporary one if that is not writable.

    The temporary one is deleted when the process exits. Raises EnvError if it can't be created either.
    """
    folder = cache_dir() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return str(folder)
    except OSError:
        pass
    try:
        temporary = tempfile.mkdtemp(prefix="ganlab-")
    except OSError as error:
        what = f"neither {cache_dir()} nor the temporary folder is writable"
        raise EnvError("GANLAB_CACHE", what, "set it to a writable folder") from error
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary


def cache_dir() -> Path:
    """The cache of datasets, reference statistics and weights: ``$GANLAB_CACHE``, else ``~/.cache/ganlab``.

    Follows ``$XDG_CACHE_HOME``. The folder is not created here. If neither is set and the user has no home
    (an unknown uid, as in a container), the path is not writable.
    """
    if path := os.environ.get("GANLAB_CACHE"):
        return expanded(path)
    base = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (Path(os.devnull) if str(base).startswith("~") else base) / "ganlab"


def expanded(path: str | os.PathLike[str]) -> Path:
    """Replace ``~`` by the home folder; unchanged if that is unknown, as in a shell."""
    return Path(os.path.expanduser(path))


def python_path(env: Mapping[str, str]) -> str:
    """PYTHONPATH with which a subprocess imports this ganlab: its folder, then the entries of ``env``."""
    return os.pathsep.join([str(PACKAGE.parent), *filter(None, [env.get("PYTHONPATH")])])
