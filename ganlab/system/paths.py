"""Where things lie: the shipped configs, the package's own files, and the user's cache. Imports no torch."""

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
    """The shipped ``configs/``: inside the package in a wheel, beside it in a checkout."""
    for folder in (PACKAGE / "configs", PACKAGE.parent / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configs/train.yaml in or beside {PACKAGE}; reinstall ganlab")


def keep_caches() -> None:
    """Let matplotlib write into ``cache_dir``, not below ``$HOME``, unless the user has chosen a place."""
    if "MPLCONFIGDIR" not in os.environ:
        os.environ["MPLCONFIGDIR"] = library_cache("matplotlib")


def library_cache(name: str) -> str:
    """A folder of ``cache_dir`` for a library that insists on one; where that can't be written, a new one.

    The new one goes with this process. Raises EnvError if there is no room for that either.
    """
    place = cache_dir() / name
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return str(place)
    except OSError:
        pass
    try:
        own = tempfile.mkdtemp(prefix="ganlab-")
    except OSError as error:
        what = f"neither {cache_dir()} nor a temporary folder can be written"
        raise EnvError("GANLAB_CACHE", what, "set it to a folder that can be written") from error
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own


def cache_dir() -> Path:
    """Prepared datasets, reference statistics and weights: ``$GANLAB_CACHE``, else ``~/.cache/ganlab``.

    Follows ``$XDG_CACHE_HOME``. The folder is not created here. Where neither is set and the user has no
    home (a uid that no one knows, as in a container), nothing can be written there: what can does without it.
    """
    if chosen := os.environ.get("GANLAB_CACHE"):
        return expanded(chosen)
    base = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (Path(os.devnull) if str(base).startswith("~") else base) / "ganlab"


def expanded(path: str | os.PathLike[str]) -> Path:
    """With the home folder for ``~``; as it stands where nobody knows that folder, as the shell has it."""
    return Path(os.path.expanduser(path))


def python_path(env: Mapping[str, str]) -> str:
    """PYTHONPATH for a child that is to find this ganlab: its place before what ``env`` has."""
    return os.pathsep.join([str(PACKAGE.parent), *filter(None, [env.get("PYTHONPATH")])])
